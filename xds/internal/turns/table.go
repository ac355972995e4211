package turns

import "slices"

// table is the state of one Decide.
type table struct {
	in     Input
	places []Place
	usable map[string]bool // of nodes; one that is gone is not in it
	owner  map[string]int  // index of the unit that has a node, or names it, by node
	// pending is how many nodes those units need that have a place and no nodes yet, whichever.
	pending int
	// got is whether a unit has nodes, or room for it; extra whether its model has another one
	// with a place, before it.
	got, extra []bool
}

func newTable(in Input) *table {
	t := &table{
		in: in, places: make([]Place, len(in.Units)), usable: map[string]bool{}, owner: map[string]int{},
		got: make([]bool, len(in.Units)), extra: make([]bool, len(in.Units)),
	}
	for _, n := range in.Nodes {
		if !n.Gone {
			t.usable[n.Name] = n.Usable
		}
	}
	return t
}

// free is how many usable nodes nobody has.
func (t *table) free() int {
	n := -t.pending
	for name, usable := range t.usable {
		if _, taken := t.owner[name]; usable && !taken {
			n++
		}
	}
	return n
}

// now reports whether there is room for a unit that nobody has to leave first.
func (t *table) now(i int) bool {
	u, room := &t.in.Units[i], -t.in.Units[i].Stages
	for _, usable := range t.usable {
		if usable {
			room++
		}
	}
	for other, p := range t.places {
		o := &t.in.Units[other]
		if other == i || !p.Has || !o.OnDemand && !t.got[other] {
			continue
		}
		room -= t.needs(other)
		if p.For != "" && slices.ContainsFunc(o.On, func(n string) bool { return slices.Contains(u.Nodes, n) }) {
			return false
		}
	}
	return room >= 0
}

// needs is how many usable nodes a unit has, or takes.
func (t *table) needs(i int) (n int) {
	u := &t.in.Units[i]
	if len(u.On) == 0 {
		return u.Stages
	}
	for _, name := range u.On {
		if t.usable[name] {
			n++
		}
	}
	return n
}

// fits reports whether there is room for a unit.
func (t *table) fits(i int) bool {
	u := &t.in.Units[i]
	for _, name := range u.Nodes {
		if _, taken := t.owner[name]; taken || !t.usable[name] {
			return false
		}
	}
	return t.free() >= u.Stages
}

// take gives a unit its place.
func (t *table) take(i int) {
	u := &t.in.Units[i]
	t.places[i].Has, t.got[i] = true, true
	nodes := u.On
	if len(nodes) == 0 {
		nodes = u.Nodes
	}
	for _, name := range nodes {
		if _, taken := t.owner[name]; !taken {
			t.owner[name] = i
		}
	}
	if len(nodes) == 0 {
		t.pending += u.Stages
	}
}

// leave takes the nodes of a unit from it.
func (t *table) leave(i int) {
	t.got[i] = false
	for name, owner := range t.owner {
		if owner == i {
			delete(t.owner, name)
		}
	}
	if u := &t.in.Units[i]; len(u.On) == 0 && len(u.Nodes) == 0 {
		t.pending -= u.Stages
	}
}

// yields is how many usable nodes a unit gives up.
func (t *table) yields(i int) (n int) {
	u := &t.in.Units[i]
	if len(u.On) == 0 {
		return u.Stages
	}
	for _, name := range u.On {
		if t.usable[name] && t.owner[name] == i {
			n++
		}
	}
	return n
}

// keep gives places to those that have them, and to those that are always loaded as far as
// there is room.
func (t *table) keep() {
	each := func(do func(i int, u *Unit)) {
		for i := range t.in.Units {
			do(i, &t.in.Units[i])
		}
	}
	each(func(i int, u *Unit) {
		if t.places[i].Has = !u.OnDemand; len(u.On) > 0 && !u.OnDemand {
			t.take(i)
		}
	})
	each(func(i int, u *Unit) {
		if u.OnDemand && len(u.On) > 0 && !u.Placed.IsZero() {
			t.take(i)
		}
	})
	each(func(i int, u *Unit) {
		if len(u.On) == 0 && (!u.OnDemand || !u.Placed.IsZero()) && t.fits(i) {
			t.take(i)
		}
	})
	seen := map[string]bool{}
	each(func(i int, u *Unit) {
		if t.places[i].Has {
			t.places[i].Asked = u.Asked
			t.extra[i], seen[u.Model] = seen[u.Model], true
		}
	})
}
