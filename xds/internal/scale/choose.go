package scale

import (
	"cmp"
	"math"
	"slices"
)

// choice is the sets of replicas from which one is chosen.
type choice struct {
	// share is what share of the demand one replica meets, cost what it costs, lo and hi bound
	// how many there are, kept is how many there are now with those that drain; by variant.
	share, cost  []float64
	lo, hi, kept []int
	need         float64
	min, max     int
	budget       float64
}

// choice returns the sets that have at least lo and at most hi of each variant.
func (d *decider) choice(lo, hi []int, need float64) *choice {
	c := &choice{share: d.shares, lo: lo, hi: hi, kept: d.kept, need: need, min: d.least(), max: d.in.Settings.Max, budget: d.in.Settings.Budget}
	c.cost = make([]float64, len(lo))
	for v := range c.cost {
		c.cost[v] = max(number(d.in.Variants[v].Cost), tiny) // even what costs nothing is not to be taken in vain
	}
	return c
}

// mostSets bounds how many beginnings of sets are considered: then the best is taken of those
// that were found. The first of them takes most of what is cheapest for what it does.
const mostSets = 2000

// search looks for the best set.
type search struct {
	*choice
	// order has the variants, the cheapest for what they do first; covers is whether the
	// cheapest set is sought that meets the demand, or else the one that meets most of it.
	order  []int
	covers bool
	// rest has of the variants from each on what those cost that must be there and those that
	// are kept, how many must be and may be, and what they meet, and how much may be met.
	rest []bounds
	left int
	set  []int
	// best is the best set so far; nil: none was found.
	best             []int
	bestCost, bestOf float64
}

type bounds struct {
	cost, kept, share, most float64
	lo                      int
	// dearest share of one, and cheapest cost for what it does.
	share1, ratio float64
}

// cover returns the cheapest set that meets the demand; of several the one that does most.
func (c *choice) cover() ([]int, bool) {
	s := c.search(true)
	return s.best, s.best != nil
}

// most returns the set that meets most of the demand; of several the cheapest. nil: there is none.
func (c *choice) most() []int { return c.search(false).best }

func (c *choice) search(covers bool) *search {
	n := len(c.share)
	s := &search{choice: c, covers: covers, order: make([]int, n), rest: make([]bounds, n+1), left: mostSets, set: make([]int, n)}
	for v := range s.order {
		s.order[v] = v
	}
	slices.SortStableFunc(s.order, func(a, b int) int {
		if covers || !math.IsInf(c.budget, 1) {
			if o := cmp.Compare(c.cost[a]/c.share[a], c.cost[b]/c.share[b]); o != 0 {
				return o
			}
		}
		return cmp.Compare(c.share[b], c.share[a])
	})
	s.rest[n].ratio = math.Inf(1)
	for i := n - 1; i >= 0; i-- {
		v, b := s.order[i], s.rest[i+1]
		lo := float64(c.lo[v])
		s.rest[i] = bounds{
			cost: b.cost + lo*c.cost[v], kept: b.kept + max(lo, float64(c.kept[v]))*c.cost[v], share: b.share + lo*c.share[v],
			most: b.most + float64(c.hi[v])*c.share[v], lo: b.lo + c.lo[v],
			share1: max(b.share1, c.share[v]), ratio: min(b.ratio, c.cost[v]/c.share[v]),
		}
	}
	s.from(0, 0, 0, 0, 0)
	return s
}

// from considers all sets that begin like this one: with count replicas, which cost so much, with
// which so much is kept, and which meet so much.
func (s *search) from(i, count int, cost, kept, share float64) {
	if s.left--; s.left < 0 && s.best != nil || s.left < -mostSets {
		return
	}
	r := s.rest[i]
	if count+r.lo > s.max || kept+r.kept > s.budget*(1+1e-9) {
		return
	}
	if i == len(s.order) {
		s.take(count, cost, kept, share)
		return
	}
	if s.covers {
		missing := s.need - share - r.share
		if s.best != nil && cost+r.cost+max(0, missing)*r.ratio > s.bestCost*(1+1e-9) || share+r.most < s.need*(1-1e-9) {
			return
		}
	} else if s.best != nil && share+min(r.most, float64(s.max-count)*r.share1) < s.bestOf*(1+1e-9) {
		return
	}
	v := s.order[i]
	most := min(s.hi[v], s.max-count-r.lo+s.lo[v])
	if s.covers {
		if missing := s.need - share - (r.share - float64(s.lo[v])*s.share[v]); missing < float64(most)*s.share[v] {
			most = int(math.Ceil(max(0, missing)/s.share[v] - 1e-9))
		}
	}
	if left := s.budget - kept - (r.kept - float64(max(s.lo[v], s.kept[v]))*s.cost[v]); float64(most)*s.cost[v] > left*(1+1e-9) {
		most = int(left / s.cost[v] * (1 + 1e-9))
	}
	for k := max(most, s.lo[v]); k >= s.lo[v]; k-- {
		s.set[v] = k
		s.from(i+1, count+k, cost+float64(k)*s.cost[v], kept+float64(max(k, s.kept[v]))*s.cost[v], share+float64(k)*s.share[v])
	}
	s.set[v] = s.lo[v]
}

// take takes a whole set, with the cheapest that are missing to the least number, if it is the
// best so far.
func (s *search) take(count int, cost, kept, share float64) {
	set := s.set
	if count < s.min {
		set = slices.Clone(set)
		by := slices.Clone(s.order)
		slices.SortStableFunc(by, func(a, b int) int { return cmp.Compare(s.cost[a], s.cost[b]) })
		for _, v := range by {
			for ; count < s.min && set[v] < s.hi[v]; count++ {
				more := s.cost[v]
				if set[v] < s.kept[v] {
					more = 0
				}
				if kept+more > s.budget*(1+1e-9) {
					break
				}
				kept += more
				set[v]++
				cost += s.cost[v]
				share += s.share[v]
			}
		}
	}
	if s.covers && share < s.need*(1-1e-9) {
		return
	}
	const same = 1e-9
	better := s.best == nil
	if s.covers && !better {
		better = cost < s.bestCost*(1-same) || cost <= s.bestCost*(1+same) && share > s.bestOf*(1+same)
	} else if !better {
		better = share > s.bestOf*(1+same) || share >= s.bestOf*(1-same) && cost < s.bestCost*(1-same)
	}
	if better {
		s.best, s.bestCost, s.bestOf = slices.Clone(set), cost, share
	}
}

func sum(all []int) (n int) {
	for _, k := range all {
		n += k
	}
	return n
}
