package istio

import (
	"cmp"
	"slices"
	"time"
)

// Found is one of our objects as it is in the cluster.
type Found struct {
	// hash identifies what we compare: our labels and the spec.
	hash string
	// written is the hash of what we wrote last, by the object itself.
	written string
	// weight of a WorkloadEntry.
	weight uint32
	// by is who else has written fields of the spec; empty: nobody.
	by string
	// leaving is whether it is being deleted.
	leaving bool
	// model is the value of its label.
	model string
	kind  Kind
}

// verb is what is done to an object.
type verb int

const (
	apply   verb = iota // by server-side apply
	restore             // the whole spec is replaced, with what somebody else has added
	remove
)

func (v verb) String() string { return [...]string{"apply", "restore", "delete"}[v] }

// action is one write that is due.
type action struct {
	verb verb
	key  Key
	kind Kind
	// object is what is written; nil for remove.
	object *Object
	// by is who had changed it; empty: nobody else.
	by string
}

const (
	// writeEvery bounds how often one object is written.
	writeEvery = time.Second
	// lastRoute is how long after the last change of routes what they had named is
	// removed: every Envoy has the new routes by then.
	lastRoute = 3 * time.Second
	// retryFirst and retryLatest bound how long an object waits after a write that was
	// refused, which doubles each time.
	retryFirst  = time.Second
	retryLatest = 30 * time.Second
)

// memory is what is known of one object besides what is in the cluster.
type memory struct {
	// written is when it was last written, or tried; wrote the hash of what was.
	written time.Time
	wrote   string
	busy    bool
	// failures in a row, the last one for reason.
	failures int
	reason   string
}

// due returns when the object may be written next.
func (m *memory) due() time.Time {
	if m == nil {
		return time.Time{}
	}
	if m.failures > 0 {
		return m.written.Add(min(retryLatest, retryFirst<<min(m.failures-1, 6)))
	}
	return m.written.Add(writeEvery)
}

// plan returns the writes that are due now, in their order, of what is to be, what is
// there, and what was done. It is pure. routed is when routes were last changed.
func plan(now time.Time, want map[Key]*Object, found map[Key]*Found, done map[Key]*memory, routed time.Time) []action {
	var all []action
	pending := [routeStage + 1]bool{} // stages in which something that is to be is missing
	allowed := func(k Key) bool {
		m := done[k]
		return m == nil || !m.busy && !now.Before(m.due())
	}
	for k, o := range want {
		f := found[k]
		if f != nil && f.hash == o.hash && !f.leaving {
			continue
		}
		if f == nil {
			pending[o.Kind.stage] = true
		}
		if !allowed(k) || f != nil && f.leaving {
			continue
		}
		all = append(all, change(k, o, f, done[k]))
	}
	all = slices.DeleteFunc(all, func(a action) bool {
		for s := range a.kind.stage {
			if pending[s] && found[a.key] == nil {
				return true // what it refers to comes first
			}
		}
		return false
	})
	models := make(map[string]bool)
	for _, o := range want {
		models[o.Labels[modelLabel]] = true
	}
	for k, f := range found {
		if want[k] != nil || f.leaving || !allowed(k) {
			continue
		}
		drained := f.kind == WorkloadEntry && models[f.model]
		if f.kind.stage == routeStage || drained || now.Sub(routed) >= lastRoute && !routesLeft(want, found) {
			all = append(all, action{verb: remove, key: k, kind: f.kind})
		}
	}
	slices.SortFunc(all, func(a, b action) int {
		return cmp.Or(cmp.Compare(urgency(a, found), urgency(b, found)), cmp.Compare(a.kind.stage, b.kind.stage),
			cmp.Compare(a.key.Kind, b.key.Kind), cmp.Compare(a.key.Namespace, b.key.Namespace), cmp.Compare(a.key.Name, b.key.Name))
	})
	return all
}

// change returns how an object gets to be as it is to be. Where somebody else has written
// since, all of the spec is replaced: what apply does not name, it would leave.
func change(k Key, o *Object, f *Found, m *memory) action {
	a := action{verb: apply, key: k, kind: o.Kind, object: o}
	switch {
	case f == nil && m != nil && m.wrote == o.hash:
		a.by = "somebody who deleted it"
	case f != nil && f.written != f.hash:
		a.verb, a.by = restore, cmp.Or(f.by, "somebody")
	}
	return a
}

// urgency orders writes: an endpoint that is drained gets no more requests, then what is
// new, then what has only changed.
func urgency(a action, found map[Key]*Found) int {
	switch {
	case a.verb == remove && a.kind == WorkloadEntry:
		return 0
	case found[a.key] == nil || a.verb == restore:
		return 1
	case a.verb == apply:
		return 2
	}
	return 3
}

// routesLeft reports whether a route is still there, or still says, what it is not to.
func routesLeft(want map[Key]*Object, found map[Key]*Found) bool {
	for k, f := range found {
		if f.kind.stage == routeStage && (want[k] == nil || want[k].hash != f.hash) {
			return true
		}
	}
	return false
}
