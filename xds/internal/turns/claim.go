package turns

import (
	"cmp"
	"slices"
)

// claims returns the units that are to get places, in order: those that are always loaded and
// have none, then the first of each model that is waited for.
func (t *table) claims() []int {
	var always, waited []int
	served := map[string]bool{}
	for i := range t.in.Units {
		if u := &t.in.Units[i]; u.OnDemand {
			served[u.Model] = served[u.Model] || t.places[i].Has
		} else if !t.got[i] && t.possible(i) {
			always = append(always, i)
		}
	}
	for i := range t.in.Units {
		u := &t.in.Units[i]
		if u.OnDemand && !served[u.Model] && t.in.Demand[u.Model].Waiting > 0 && t.possible(i) {
			served[u.Model] = true
			waited = append(waited, i)
		}
	}
	slices.SortStableFunc(waited, func(a, b int) int {
		return t.in.Demand[t.in.Units[a].Model].Since.Compare(t.in.Demand[t.in.Units[b].Model].Since)
	})
	return append(always, waited...)
}

// possible reports whether a unit could have a place if all that are loaded on demand gave
// theirs up.
func (t *table) possible(i int) bool {
	u, n := &t.in.Units[i], 0
	for name := range t.usable {
		if owner, taken := t.owner[name]; !taken || t.in.Units[owner].OnDemand {
			n++
		} else if slices.Contains(u.Nodes, name) {
			return false
		}
	}
	for _, name := range u.Nodes {
		if _, known := t.usable[name]; !known {
			return false
		}
	}
	return n >= u.Stages
}

// grant gives a unit a place, or has others make room for it; false: it has to wait, and so
// have those behind it.
func (t *table) grant(i int) bool {
	if t.fits(i) {
		has := t.now(i)
		t.take(i)
		t.places[i].Asked, t.places[i].Has = true, has || !t.in.Units[i].OnDemand
		return true
	}
	victims := t.victims(i)
	if victims == nil {
		return false
	}
	gone := !slices.ContainsFunc(victims, func(v int) bool { u := &t.in.Units[v]; return len(u.On) > 0 && !(u.Quiet && !u.Closing.IsZero()) })
	for _, v := range victims {
		t.leave(v)
		t.places[v].Has = false
	}
	gone = gone && t.now(i)
	for _, v := range victims {
		if t.places[v].Has = !gone; !gone {
			t.places[v].For = t.in.Units[i].Model
		}
	}
	t.take(i)
	t.places[i].Asked, t.places[i].Has = true, gone || !t.in.Units[i].OnDemand
	return true
}

// victims returns the units whose places a unit is to have; nil: there are none yet.
func (t *table) victims(i int) []int {
	u, now := &t.in.Units[i], t.in.Now
	must := !u.OnDemand
	var all []int
	for v := range t.in.Units {
		if c := &t.in.Units[v]; c.OnDemand && !c.Placed.IsZero() && t.got[v] && t.yields(v) > 0 && (must || c.idle(now) || c.gives(now) || !c.Closing.IsZero()) {
			all = append(all, v)
		}
	}
	class := func(v int) int {
		switch c := &t.in.Units[v]; {
		case !c.Closing.IsZero():
			return 0
		case c.idle(now) && t.extra[v]:
			return 1
		case c.idle(now):
			return 2
		}
		return 3
	}
	slices.SortStableFunc(all, func(a, b int) int {
		x, y := &t.in.Units[a], &t.in.Units[b]
		byAge := x.Used.Compare(y.Used)
		if class(a) == 3 {
			byAge = x.Began.Compare(y.Began)
		}
		return cmp.Or(cmp.Compare(class(a), class(b)), byAge, cmp.Compare(b, a))
	})
	if len(u.Nodes) > 0 {
		return t.owners(u.Nodes, all)
	}
	need := u.Stages - t.free()
	for n, v := range all {
		if need -= t.yields(v); need <= 0 {
			return all[:n+1]
		}
	}
	return nil
}

// owners returns those that have the named nodes, if all of these are usable, and theirs who
// may lose them; nil: they aren't.
func (t *table) owners(nodes []string, may []int) []int {
	var all []int
	for _, name := range nodes {
		owner, taken := t.owner[name]
		if !t.usable[name] || taken && !slices.Contains(may, owner) {
			return nil
		}
		if taken && !slices.Contains(all, owner) {
			all = append(all, owner)
		}
	}
	return all
}

// fill gives room that nobody waits for to those without a place: the first of each model
// before the second.
func (t *table) fill() {
	for again := true; again; {
		again = false
		had := map[string]int{}
		for i := range t.in.Units {
			if t.places[i].Has {
				had[t.in.Units[i].Model]++
			}
		}
		best := -1
		for i := range t.in.Units {
			u := &t.in.Units[i]
			if u.OnDemand && !t.places[i].Has && !t.places[i].Asked && t.fits(i) && t.now(i) && (best < 0 || had[u.Model] < had[t.in.Units[best].Model]) {
				best = i
			}
		}
		if best >= 0 {
			t.take(best)
			again = true
		}
	}
}
