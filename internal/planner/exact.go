package planner

// exactly is the largest number of units that are laid out exactly.
const exactly = 10

// packing is groups that share no unit.
type packing []group

// worth is what a packing is compared by: tokens per second, and a little for what stays.
func (t *task) worth(p packing) float64 {
	sum := 0.0
	for _, g := range p {
		sum += t.value(g)
	}
	return sum
}

// stay is how much better what runs is than an equal group elsewhere, and alone how much
// better one stage less is among equals.
const (
	stay  = 1e-3
	alone = 1e-4
)

func (t *task) value(g group) float64 {
	v := g.decode * (1 - alone*float64(len(g.stages)))
	if len(t.stays) > 0 && t.stays[t.key(g)] {
		v *= 1 + stay
	}
	return v
}

// better reports whether a packing is better than another: more replicas first where
// a number is asked for.
func (t *task) better(p, q packing) bool {
	if t.Goal.Replicas > 0 && len(p) != len(q) {
		return len(p) > len(q)
	}
	return t.worth(p) > t.worth(q)*(1+1e-12)
}

// exact returns the best packing of at most exactly units, with so many groups at most; 0:
// any number. It tries each set of units as a group, and each partition in groups.
func (t *task) exact(units []int, most int, inOne bool) packing {
	n := len(units)
	groups := make([]group, 1<<n)
	for set := 1; set < 1<<n; set++ {
		var of []int
		for i := range n {
			if set>>i&1 == 1 {
				of = append(of, units[i])
			}
		}
		if t.allowed(of, inOne) {
			groups[set] = t.best(of)
		}
	}
	if most == 0 {
		return t.partition(groups, 1, false)
	}
	return t.partition(groups, min(most, n), true)
}

// allowed reports whether a group may lie on these units.
func (t *task) allowed(units []int, inOne bool) bool {
	for _, u := range units[1:] {
		a, b := t.units[units[0]].node, t.units[u].node
		if !t.Model.Spans && a != b || inOne && t.field.domain(a) != t.field.domain(b) {
			return false
		}
	}
	return true
}

// cell is the best that some groups make of the units of a set.
type cell struct {
	worth float64
	set   int  // of the group that has the lowest unit; 0: none has
	ok    bool // whether so many groups have room
}

// partition returns the best groups that share no unit: at most so many, or, where they
// are counted, as near to so many as can be; where not, most is 1.
func (t *task) partition(groups []group, most int, counted bool) packing {
	all := len(groups)
	// rows[r] has the cells of r groups by set. Without a count one row is enough: what is
	// below it is in it.
	rows := [][]cell{make([]cell, all)}
	for set := range rows[0] {
		rows[0][set] = cell{ok: true}
	}
	for r := 1; r <= most; r++ {
		row, under := make([]cell, all), rows[r-1]
		if !counted {
			under = row
			row[0].ok = true
		}
		for set := 1; set < all; set++ {
			row[set] = t.lowest(groups, row, under, set)
		}
		rows = append(rows, row)
	}
	r := most
	for r > 0 && !rows[r][all-1].ok {
		r--
	}
	var p packing
	for set := all - 1; set > 0 && r > 0; {
		c := rows[r][set]
		if c.set == 0 {
			set &= set - 1 // the lowest unit is in no group
			continue
		}
		p = append(p, groups[c.set])
		if set ^= c.set; counted {
			r--
		}
	}
	return p
}

// lowest returns the cell of a set: its lowest unit is in no group, or in one of those that
// have it, above what under has of the rest.
func (t *task) lowest(groups []group, row, under []cell, set int) cell {
	low := set & -set
	rest := set ^ low
	best := row[rest]
	best.set = 0
	for sub := rest; ; sub = (sub - 1) & rest {
		g := sub | low
		if u := under[set^g]; groups[g].decode > 0 && u.ok {
			if w := u.worth + t.value(groups[g]); !best.ok || w > best.worth {
				best = cell{w, g, true}
			}
		}
		if sub == 0 {
			return best
		}
	}
}
