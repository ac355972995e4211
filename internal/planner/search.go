package planner

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

const (
	// window is how many units are laid out anew exactly at a time where there are too
	// many for all at once, and rounds how often a task does it.
	window = 7
	rounds = 64
	// apart is the speed that replicas in failure domains of their own may cost.
	apart = 0.02
	// longest bounds a group that is tried with each pair of ends: above, the ends are the
	// units with most room.
	longest = 12
)

// solve returns the best packing that it finds: exact for few units.
func (t *task) solve(effort int) packing {
	p := t.pack(effort, false)
	if len(p) < 2 || !t.Model.Spans || t.contained(p) {
		return p
	}
	q := t.pack(effort, true)
	if len(q) >= len(p) && t.worth(q) >= (1-apart)*t.worth(p) {
		return q
	}
	return p
}

// contained reports whether each group is in one failure domain.
func (t *task) contained(p packing) bool {
	for _, g := range p {
		for _, s := range g.stages {
			if t.field.domain(t.units[s.unit].node) != t.field.domain(t.units[g.stages[0].unit].node) {
				return false
			}
		}
	}
	return true
}

func (t *task) pack(effort int, inOne bool) packing {
	all := make([]int, len(t.units))
	for i := range all {
		all[i] = i
	}
	if len(all) == 0 {
		return nil
	}
	if len(all) <= exactly {
		return t.exact(all, t.Goal.Replicas, inOne)
	}
	return t.improve(t.greedy(inOne), effort, inOne)
}

// greedy adds replicas one by one, each where it is best of what is free.
func (t *task) greedy(inOne bool) packing {
	bySpeed := t.sorted(func(u unit) float64 { return u.layer })
	byRoom := t.sorted(func(u unit) float64 { return -u.memory })
	taken := make([]bool, len(t.units))
	var p packing
	for t.Goal.Replicas == 0 || len(p) < t.Goal.Replicas {
		g := t.single(bySpeed, taken)
		if len(g.stages) == 0 {
			g = t.grow(bySpeed, taken, inOne)
			if h := t.grow(byRoom, taken, inOne); t.denser(h, g) {
				g = h
			}
		}
		if len(g.stages) == 0 {
			break
		}
		for _, s := range g.stages {
			taken[s.unit] = true
		}
		p = append(p, g)
	}
	return p
}

// denser reports whether a group gives more for what it takes.
func (t *task) denser(a, b group) bool {
	if len(a.stages) == 0 || len(b.stages) == 0 {
		return len(a.stages) > 0
	}
	if t.Goal.Replicas == 1 {
		return a.decode > b.decode
	}
	return a.decode/float64(len(a.stages)) > b.decode/float64(len(b.stages))
}

func (t *task) sorted(by func(unit) float64) []int {
	all := make([]int, len(t.units))
	for i := range all {
		all[i] = i
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(by(t.units[a]), by(t.units[b])) })
	return all
}

// single returns the fastest unit that has room for the whole model.
func (t *task) single(order []int, taken []bool) group {
	for _, u := range order {
		if !taken[u] && t.room(&t.units[u], true, true) >= t.Model.Layers {
			if g := t.best([]int{u}); len(g.stages) > 0 {
				return g
			}
		}
	}
	return group{}
}

// heads is how many first units grow tries.
const heads = 4

// grow returns the group that the first free units with enough room make: of those of one
// node or domain where it must, or else of those nearest to the first.
func (t *task) grow(order []int, taken []bool, inOne bool) group {
	var best group
	tried := map[int]bool{}
	for _, head := range order {
		if taken[head] || tried[t.field.domain(t.units[head].node)] {
			continue
		}
		tried[t.field.domain(t.units[head].node)] = true
		if g := t.growFrom(head, order, taken, inOne); t.denser(g, best) {
			best = g
		}
		if len(tried) >= heads && (len(best.stages) > 0 || t.Model.Spans && !inOne) {
			break
		}
	}
	return best
}

func (t *task) growFrom(head int, order []int, taken []bool, inOne bool) group {
	units, room := []int{head}, t.room(&t.units[head], true, false)
	for near := range 2 {
		for _, u := range order {
			close := t.field.domain(t.units[u].node) == t.field.domain(t.units[head].node)
			if u == head || taken[u] || close != (near == 0) || !t.allowed([]int{head, u}, inOne) {
				continue
			}
			if n := t.room(&t.units[u], false, false); n > 0 {
				units, room = append(units, u), room+n
			}
			if room < t.Model.Layers {
				continue
			}
			if g := t.ends(units); len(g.stages) > 0 {
				return g
			}
			if len(units) > longest && room > 2*t.Model.Layers {
				return group{}
			}
		}
	}
	return group{}
}

// ends returns the group on units, with few choices of its ends where they are many.
func (t *task) ends(units []int) group {
	if len(units) <= longest {
		return t.best(units)
	}
	most := slices.MaxFunc(units[1:], func(a, b int) int { return cmp.Compare(t.units[a].memory, t.units[b].memory) })
	units = slices.Clone(units)
	first := units[0]
	slices.SortStableFunc(units, func(a, b int) int { return cmp.Compare(t.units[a].layer, t.units[b].layer) })
	var best group
	t.tryEnds(units, first, most, &best)
	return best
}

// improve lays a few units out anew, again and again: those of some groups, and some that
// are free.
func (t *task) improve(p packing, effort int, inOne bool) packing {
	rnd := rand.New(rand.NewPCG(1, uint64(len(t.units))))
	for range effort {
		part, rest := t.pick(p, rnd)
		units := t.unitsOf(part)
		if len(units) < window {
			units = append(units, t.free(p, window-len(units), rnd)...)
		}
		if len(units) == 0 {
			break
		}
		most := 0
		if t.Goal.Replicas > 0 {
			if most = t.Goal.Replicas - len(rest); most == 0 {
				continue
			}
		}
		if again := slices.Concat(rest, t.exact(units, most, inOne)); t.better(again, p) {
			p = again
		}
	}
	return p
}

// pick parts a packing: groups of at most window units, and the rest.
func (t *task) pick(p packing, rnd *rand.Rand) (part, rest packing) {
	n := 0
	for _, i := range rnd.Perm(len(p)) {
		if k := len(p[i].stages); n+k <= window {
			part, n = append(part, p[i]), n+k
		} else {
			rest = append(rest, p[i])
		}
	}
	return part, rest
}

func (t *task) unitsOf(p packing) []int {
	var all []int
	for _, g := range p {
		for _, s := range g.stages {
			all = append(all, s.unit)
		}
	}
	return all
}

// free returns some units that no group has, the fast ones and those with room first.
func (t *task) free(p packing, most int, rnd *rand.Rand) []int {
	taken := make([]bool, len(t.units))
	for _, u := range t.unitsOf(p) {
		taken[u] = true
	}
	var all []int
	score := make([]float64, len(t.units))
	for u := range t.units {
		if !taken[u] {
			all = append(all, u)
			score[u] = math.Log(1+float64(t.room(&t.units[u], false, false))) - math.Log(t.units[u].layer) + rnd.Float64()
		}
	}
	slices.SortFunc(all, func(a, b int) int { return cmp.Compare(score[b], score[a]) })
	return all[:min(most, len(all))]
}
