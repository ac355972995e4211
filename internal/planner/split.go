package planner

import (
	"cmp"
	"slices"
	"time"
)

// tries is how many mixtures of two aims are tried, and halvings how often an interval
// is halved in which the best bound of a stage's time lies.
const (
	tries    = 16
	halvings = 24
)

// sums are what the layers of a group's stages add up to, in seconds: a token, the prompt,
// the slowest stage for a token. Zero: the stages have no room for all layers.
type sums struct{ token, first, slowest float64 }

// decode is what a group with these sums generates, in tokens per second; 0: it has no room
// or is slower than is asked for.
func (t *task) decode(s sums) float64 {
	late := func(s float64, goal time.Duration) bool { return goal > 0 && s > goal.Seconds()*(1+1e-9) }
	switch {
	case s.token <= 0 || late(s.token, t.Goal.Token) || late(s.first, t.Goal.FirstToken):
		return 0
	case t.Model.Overlap:
		return min(float64(t.Goal.Slots)/s.token, 1/s.slowest)
	default:
		return 1 / s.token
	}
}

// within is how many layers a stage may have so that it takes no longer than so many
// seconds; 0: without a bound.
func (s *stage) within(bound float64) int {
	if bound > 0 {
		return min(s.room, int(max(0, (bound-s.once)/s.layer+1e-9)))
	}
	return s.room
}

// fill gives each stage a layer, and the others to the first that have room, where no stage
// takes longer than the bound in seconds, if there is one.
func (t *task) fill(stages []stage, bound float64) sums {
	left := t.Model.Layers - len(stages)
	var sum sums
	for i := range stages {
		s := &stages[i]
		room := s.within(bound)
		if room < 1 {
			return sums{}
		}
		n := min(left, room-1)
		left -= n
		s.layers = 1 + n
		d := s.once + float64(s.layers)*s.layer
		sum.token += d
		sum.first += s.onceIn + float64(s.layers)*s.layerIn
		sum.slowest = max(sum.slowest, d)
	}
	if left > 0 {
		return sums{}
	}
	return sum
}

// split gives the layers to the stages, which are in the order of their speed, so that the
// group is fastest while it meets the goal. It improves best, if it can.
func (t *task) split(stages []stage, best *group) {
	none := true
	take := func(bound float64) {
		sum := t.fill(stages, bound)
		d := t.decode(sum)
		none = none && d == 0
		if d > best.decode {
			*best = group{stages: slices.Clone(stages), decode: d, token: sum.token, first: sum.first}
		}
	}
	take(0)
	if t.Model.Overlap && len(stages) > 1 {
		for _, bound := range t.even(stages, best.decode) {
			take(bound)
		}
	}
	if t.Goal.FirstToken == 0 || !none {
		return
	}
	// What decodes fastest is too slow with prompts: mixtures of both.
	var total, totalIn float64
	for _, s := range stages {
		total, totalIn = total+s.layer, totalIn+s.layerIn
	}
	for i := 1; i <= tries; i++ {
		in := float64(i) / tries
		cost := func(s stage) float64 { return (1-in)*s.layer/total + in*s.layerIn/totalIn }
		slices.SortStableFunc(stages, func(a, b stage) int { return cmp.Compare(cost(a), cost(b)) })
		take(0)
	}
}

// even returns the bounds of a stage's time that are worth a try where stages work at the
// same time: the more even they are, the more passes through them, and the longer each
// token takes. Where nothing above atLeast can come out there are none.
func (t *task) even(stages []stage, atLeast float64) []float64 {
	slots, low, high := float64(t.Goal.Slots), 0.0, 0.0
	for _, s := range stages {
		high = max(high, s.once+float64(s.room)*s.layer)
	}
	if sum := t.fill(stages, high); sum.token == 0 || slots/sum.token <= atLeast {
		return nil // no bound makes a token quicker than this
	}
	for range halvings {
		bound := (low + high) / 2
		if sum := t.fill(stages, bound); sum.token == 0 || slots/sum.token < 1/bound {
			low = bound
		} else {
			high = bound
		}
		if low*atLeast > 1 {
			return nil
		}
	}
	return []float64{low, high}
}

// best returns the best group that has all of these units; without stages: there is none.
func (t *task) best(units []int) group {
	units = slices.Clone(units)
	slices.SortStableFunc(units, func(a, b int) int { return cmp.Compare(t.units[a].layer, t.units[b].layer) })
	var best group
	for _, first := range units {
		for _, last := range units {
			if (first == last) == (len(units) == 1) {
				t.tryEnds(units, first, last, &best)
			}
		}
	}
	return best
}

// tryEnds improves best, if the units can with these as first and last stage.
func (t *task) tryEnds(units []int, first, last int, best *group) {
	was := best.decode
	if !t.stagesOf(units, first, last) {
		return
	}
	if t.split(t.scratch, best); best.decode > was {
		slices.SortStableFunc(best.stages, func(a, b stage) int {
			return cmp.Or(place(a, first, last)-place(b, first, last), cmp.Compare(a.unit, b.unit))
		})
	}
}

// place orders stages: the first, those between, the last.
func place(s stage, first, last int) int {
	switch s.unit {
	case first:
		return 0
	case last:
		return 2
	}
	return 1
}
