package replay

import (
	"cmp"
	"math"
	"slices"
)

// sglang goes by the longest prefix if that is at least a share of the prompt, else to the
// engine that was sent the least; by requests in flight when these differ too much.
type sglang struct{ rival }

const (
	cacheThreshold = 0.3
	balanceAbs     = 64
	balanceRel     = 1.5
)

func (p *sglang) Choose(_ int, r *Request, _ float64) int {
	least, most := math.Inf(1), 0.0
	for i, n := range p.inFlight {
		if !p.down[i] {
			least, most = min(least, float64(n)), max(most, float64(n))
		}
	}
	if most-least > balanceAbs && most > balanceRel*least {
		return p.place(p.best(func(i int) float64 { return float64(p.inFlight[i]) }), r)
	}
	match := p.matches(r)
	n := p.best(func(i int) float64 { return -float64(match[i]) })
	if float64(match[n]) <= cacheThreshold*float64(len(r.Blocks)) {
		n = p.best(func(i int) float64 { return float64(len(p.sent[i].blocks)) })
	}
	return p.place(n, r)
}

// aibrix goes by the longest prefix of engines that are not much busier than the mean; by
// requests in flight when these differ by more than a number.
type aibrix struct{ rival }

const (
	imbalance  = 16
	deviations = 2
)

func (p *aibrix) Choose(_ int, r *Request, _ float64) int {
	least, most, sum, squares := math.Inf(1), 0.0, 0.0, 0.0
	for i := range p.inFlight {
		n := float64(p.inFlight[i])
		least, most = min(least, n), max(most, n)
		sum, squares = sum+n, squares+n*n
	}
	count := float64(len(p.inFlight))
	bound := sum/count + deviations*math.Sqrt(max(0, squares/count-sum/count*sum/count))
	match := p.matches(r)
	n := p.best(func(i int) float64 {
		if most-least > imbalance || match[i] == 0 || float64(p.inFlight[i]) > bound {
			return float64(p.inFlight[i])
		}
		return float64(p.inFlight[i])/1e6 - float64(match[i])
	})
	return p.place(n, r)
}

// boundedHash sends all prompts that begin alike to one engine, and those beyond its bound to
// the next on the ring.
type boundedHash struct {
	rival
	ring []point
}

// point is a place of an engine on the ring.
type point struct {
	at uint64
	n  int
}

const (
	points    = 256 // of an engine
	loadBound = 1.25
)

func newBoundedHash(p rival) *boundedHash {
	h := &boundedHash{rival: p}
	for n := range p.engines {
		for i := range points {
			h.ring = append(h.ring, point{mix(mix(uint64(n), 7), uint64(i)), n})
		}
	}
	slices.SortFunc(h.ring, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	return h
}

func (p *boundedHash) Choose(_ int, r *Request, _ float64) int {
	sum, up := 1, 0
	for i, n := range p.inFlight {
		if sum += n; !p.down[i] {
			up++
		}
	}
	key := mix(uint64(r.Session), 1)
	if len(r.Blocks) > 0 {
		key = mix(r.Blocks[0], 1)
	}
	bound := int(math.Ceil(loadBound * float64(sum) / float64(max(1, up))))
	from, _ := slices.BinarySearchFunc(p.ring, key, func(a point, key uint64) int { return cmp.Compare(a.at, key) })
	for i := range p.ring {
		n := p.ring[(from+i)%len(p.ring)].n
		if !p.down[n] && p.inFlight[n]+1 <= bound {
			return p.place(n, r)
		}
	}
	return p.place(0, r)
}

// twoChoices takes of two engines the one with fewer requests in flight.
type twoChoices struct{ rival }

func (p *twoChoices) Choose(_ int, r *Request, _ float64) int {
	a, b := p.r.IntN(len(p.engines)), p.r.IntN(len(p.engines)-1)
	if b >= a {
		b++
	}
	return p.place(p.best(func(i int) float64 {
		if i != a && i != b {
			return math.MaxFloat64
		}
		return float64(p.inFlight[i])
	}), r)
}

// shortestDelay takes the engine at which the requests in flight and this one take the least,
// by the speed of prompts and answers together.
type shortestDelay struct{ rival }

func (p *shortestDelay) Choose(_ int, r *Request, _ float64) int {
	return p.place(p.best(func(i int) float64 {
		e := &p.engines[i]
		return float64(p.inFlight[i]+1) * e.work(r, 0)
	}), r)
}
