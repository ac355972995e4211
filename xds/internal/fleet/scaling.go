package fleet

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/internal/layout"
	"millrace.dev/millrace/xds/internal/scale"
	"millrace.dev/millrace/xds/internal/turns"
)

// Replicas of models whose number follows demand:
//
//	not there ─ demand ─► wanted ─ too many, and it has the least ─► closing ─ nothing runs or
//	    ▲                    ▲                                          │  │   waits there any more
//	    │                    └──────────────── demand ──────────────────┘  │
//	    └───────────────────────────────────────────────────────────────────┘
//
// Who is closing gets no new requests, and those that extproc had sent before it knew arrive.
// After a start, wanted is what nodes run, and what min says once all of them may have reported.

const (
	// scaleEvery is how often it is decided. A request for a model without replicas is not
	// waited with.
	scaleEvery = time.Second
	// closedMost is how long a replica is closing at most: then it ends as one that is not
	// desired any more does, which waits for its requests, too.
	closedMost = time.Minute
	// adoptFor is for how long after the start what nodes run is taken as wanted.
	adoptFor = 30 * time.Second
	// firstStart is how long a replica is taken to need to start until one was seen to.
	firstStart = 30 * time.Second
	// failedAfter is how long one may take that has failed then, at least.
	failedAfter = 2 * time.Minute
)

// scaled is a model whose number of replicas follows demand.
type scaled struct {
	// wanted has since when replicas are to be, by number, closing since when those take no
	// new requests that are to end, gone those that have ended.
	wanted, closing map[int]time.Time
	gone            map[int]bool
	// served has those of wanted that have taken requests.
	served map[int]bool
	// start is how long the last one took until it took requests; 0: none has yet.
	start time.Duration

	asked    meter
	memory   scale.Memory
	decision scale.Decision
	// variants are those of the decision, at is when it was made; zero: none was yet.
	variants []scale.Variant
	at       time.Time
}

func newScaled() *scaled {
	return &scaled{
		wanted: map[int]time.Time{}, closing: map[int]time.Time{}, gone: map[int]bool{}, served: map[int]bool{}, asked: newMeter(),
	}
}

// scale decides how many replicas there are to be of each model that is scaled. waits is what waits
// in extprocs, by model.
func (f *Fleet) scale(now time.Time, waits map[string]turns.Demand) {
	changed := false
	var all []desired.Object[config.ModelSpec]
	for _, m := range f.desired.State.Models {
		if m.Spec.Scaling.Mode != "" {
			all = append(all, m)
		} else if f.scaled[m.Name] != nil {
			delete(f.scaled, m.Name)
			changed = true
		}
	}
	if len(all) == 0 {
		clear(f.scaled)
	} else {
		changed = f.scaleAll(now, all, waits) || changed
	}
	if changed {
		f.specs = specs(f.desired.State, f.numbers)
	}
}

// scaleAll reports whether other replicas are to be than before.
func (f *Fleet) scaleAll(now time.Time, all []desired.Object[config.ModelSpec], waits map[string]turns.Demand) (changed bool) {
	due, adopts := now.Sub(f.scaledAt) >= scaleEvery, now.Sub(f.began()) < adoptFor || f.leading.follows
	var heads map[string][]*node
	if due || adopts {
		heads = f.heads()
	}
	if due {
		f.scaledAt = now
	}
	free := -1
	for _, m := range all {
		s := f.scaled[m.Name]
		if s == nil {
			s = newScaled()
			f.scaled[m.Name] = s
			changed = true
		}
		auto := m.Spec.Scaled()
		if auto && adopts {
			changed = s.adopt(now, f, heads[m.Name]) || changed
		}
		changed = s.settle(now, f, m, auto) || changed
		asleep := auto && len(s.wanted) == 0 && waits[m.Name].Waiting > 0
		switch {
		case auto && f.leading.follows, now.Sub(f.began()) < f.settle && len(s.wanted) == 0:
			continue // who leads decides; or nodes may not have reported
		case !due && !asleep:
			continue
		}
		if free < 0 {
			free = f.freeNodes(now)
		}
		if due {
			s.asked.count(now, heads[m.Name], waits[m.Name].Waiting)
		}
		in := f.scaleInput(now, m, s, heads[m.Name], waits[m.Name], free)
		s.decision = scale.Decide(in)
		s.memory, s.variants, s.at = s.decision.Memory, in.Variants, now
		if auto {
			more, nodes := s.follow(now, m, in)
			changed = more || changed
			free -= nodes
		}
	}
	return changed
}

// began is since when this xds decides.
func (f *Fleet) began() time.Time {
	if f.leading.since.After(f.start) {
		return f.leading.since
	}
	return f.start
}

// heads returns the nodes whose engines answer for replicas, by model.
func (f *Fleet) heads() map[string][]*node {
	all := make(map[string][]*node, len(f.scaled))
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		n := f.nodes[name]
		if a := n.engine.GetAssignment(); a != nil && a.GetStage() == 0 {
			all[a.GetModel()] = append(all[a.GetModel()], n)
		}
	}
	return all
}

// number is that of a replica of a model; below 0: it has another name.
func number(replica, model string) int {
	rest, ok := strings.CutPrefix(replica, model+"-")
	n, err := strconv.Atoi(rest)
	if !ok || err != nil || n > 1<<20 || desired.Replica(model, n) != replica {
		return -1
	}
	return n
}

// adopt takes what nodes run as wanted: after a start, and while another xds decides.
func (s *scaled) adopt(now time.Time, f *Fleet, heads []*node) (changed bool) {
	runs := map[int]bool{}
	for _, n := range heads {
		a := n.engine.GetAssignment()
		i := number(a.GetReplica(), a.GetModel())
		if i < 0 || slices.ContainsFunc(f.retiring, func(t layout.Retiring) bool { return t.Runs(a) }) {
			continue
		}
		runs[i] = true
		if _, known := s.wanted[i]; !known && s.closing[i].IsZero() && (!s.gone[i] || f.leading.follows) {
			s.wanted[i], s.served[i], changed = now, n.serves(), true
		}
	}
	if f.leading.follows {
		had := len(s.wanted)
		maps.DeleteFunc(s.wanted, func(i int, _ time.Time) bool { return !runs[i] })
		clear(s.closing)
		clear(s.gone)
		changed = changed || len(s.wanted) != had
	}
	return changed
}

// settle notes which replicas have come to take requests, and lets those go that have ended.
func (s *scaled) settle(now time.Time, f *Fleet, m desired.Object[config.ModelSpec], auto bool) (changed bool) {
	if !auto {
		changed = len(s.wanted)+len(s.closing) > 0
		clear(s.closing)
		clear(s.served)
		s.wanted = map[int]time.Time{}
		return changed
	}
	for i, since := range s.wanted {
		if e := f.endpoints[desired.Replica(m.Name, i)]; !s.served[i] && e != nil && e.State == ready {
			s.served[i] = true
			s.start = now.Sub(since)
		}
	}
	for i, since := range s.closing {
		e := f.endpoints[desired.Replica(m.Name, i)]
		if e != nil && now.Sub(since) < closedMost && !f.quiet(e, since) {
			continue
		}
		delete(s.closing, i)
		delete(s.served, i)
		s.gone[i], changed = true, true
	}
	return changed
}

// quiet reports whether the engine of an endpoint has reported that nothing is left there that
// was sent until then.
func (f *Fleet) quiet(e *Endpoint, closed time.Time) bool {
	if len(e.Nodes) == 0 {
		return true
	}
	n := f.nodes[e.Nodes[0]]
	if n == nil {
		return true
	}
	l := n.engine.GetLoad()
	return l.GetRunning()+l.GetWaiting() == 0 && n.last.Sub(closed) >= closedFor
}

// follow does what was decided. It returns whether that changes which replicas there are to be,
// and how many more nodes are needed.
func (s *scaled) follow(now time.Time, m desired.Object[config.ModelSpec], in scale.Input) (changed bool, nodes int) {
	of := variantsOf(m.Spec)
	for _, name := range s.decision.Drain {
		if i := number(name, m.Name); i >= 0 {
			delete(s.wanted, i)
			s.closing[i] = now
			changed = true
		}
	}
	for v, n := range s.decision.Replicas {
		for i := range s.wanted {
			if of.at(i) == v {
				n--
			}
		}
		for _, i := range slices.Sorted(maps.Keys(s.closing)) {
			if n > 0 && of.at(i) == v && !slices.Contains(s.decision.Drain, desired.Replica(m.Name, i)) {
				s.wanted[i] = now
				delete(s.closing, i)
				n--
				changed = true
			}
		}
		for i := 0; n > 0 && i < m.Spec.Scaling.MaxReplicas+len(s.closing); i++ {
			if _, is := s.wanted[i]; is || !s.closing[i].IsZero() || of.at(i) != v {
				continue
			}
			s.wanted[i], changed = now, true
			delete(s.gone, i)
			delete(s.served, i)
			n--
			nodes += of.stages[v]
		}
	}
	return changed, nodes
}

// numbers returns which replicas of a model there are to be, closing ones included, in order.
func (f *Fleet) numbers(m desired.Object[config.ModelSpec]) []int {
	var all []int
	if s := f.scaled[m.Name]; m.Spec.Scaled() && s != nil {
		all = slices.AppendSeq(all, maps.Keys(s.wanted))
		all = slices.AppendSeq(all, maps.Keys(s.closing))
		slices.Sort(all)
	} else if !m.Spec.Scaled() {
		for i := range m.Spec.Replicas {
			all = append(all, i)
		}
	}
	return all
}

// closes says why a replica gets no new requests, though nothing is wrong with it; empty: it does.
func (f *Fleet) closes(r *layout.Replica) string {
	if to := f.closing(r.Spec.Replica); to != "" {
		return "it gives its place to " + to + ", once its requests have ended"
	}
	if s := f.scaled[r.Spec.Model]; s != nil && !s.closing[number(r.Spec.Replica, r.Spec.Model)].IsZero() {
		return "there are more than demand needs: it ends once its requests have ended"
	}
	return ""
}
