package replay

import (
	"cmp"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// counting is what all simple policies keep: requests in flight by engine, and which of
// these are down.
type counting struct {
	inFlight []int
	down     []bool
}

func newCounting(n int) counting { return counting{make([]int, n), make([]bool, n)} }

func (c *counting) First(*Done, float64) {}

func (c *counting) Done(d *Done, _ float64) { c.inFlight[d.Engine]-- }

func (c *counting) Reports(loads []Load, _ float64) {
	for i := range loads {
		c.down[i] = loads[i].Down
	}
}

// Lost is a Mourner's.
func (c *counting) Lost(_, engine int, _ float64) {
	c.inFlight[engine]--
	c.down[engine] = true
}

// least returns the engine with the fewest requests among those for which ok holds,
// the first after from of equals.
func (c *counting) least(from int, ok func(n int) bool) int {
	best, n := -1, len(c.inFlight)
	for i := range c.inFlight {
		e := (from + i) % n
		if ok(e) && !c.down[e] && (best < 0 || c.inFlight[e] < c.inFlight[best]) {
			best = e
		}
	}
	return max(0, best)
}

func (c *counting) send(n int) int {
	c.inFlight[n]++
	return n
}

func anyEngine(int) bool { return true }

// roundRobin takes turns.
type roundRobin struct {
	counting
	next int
}

func (p *roundRobin) Choose(int, *Request, float64) int {
	for range p.inFlight {
		if p.next++; !p.down[p.next%len(p.inFlight)] {
			break
		}
	}
	return p.send(p.next % len(p.inFlight))
}

// leastRequest chooses the engine with the fewest requests in flight.
type leastRequest struct {
	counting
	next int
}

func (p *leastRequest) Choose(int, *Request, float64) int {
	p.next++
	return p.send(p.least(p.next, anyEngine))
}

// sessionHash sends each session to one engine, by rendezvous hashing.
type sessionHash struct{ counting }

func (p *sessionHash) Choose(_ int, r *Request, _ float64) int {
	best, most := 0, uint64(0)
	for i := range p.inFlight {
		if h := mix(uint64(r.Session), uint64(i)); h >= most && !p.down[i] {
			best, most = i, h
		}
	}
	return p.send(best)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9fb21c651e98df25, (b+1)*0xd6e8feb86659fd93)
	return hi ^ lo
}

// sent is what a picker remembers of what it has sent: an LRU cache for each engine.
type sent []*cache

func newSent(engines []Engine, block int) sent {
	s := make(sent, len(engines))
	for i, e := range engines {
		s[i] = newCache(e.Cache / block)
	}
	return s
}

// longestPrefix chooses the engine to which the longest prefix of the prompt was
// sent, and of equals the one with the fewest requests.
type longestPrefix struct {
	counting
	sent sent
	next int
}

func (p *longestPrefix) Choose(_ int, r *Request, _ float64) int {
	most, match := 0, make([]int, len(p.sent))
	for i, c := range p.sent {
		if match[i] = c.match(r.Blocks); !p.down[i] {
			most = max(most, match[i])
		}
	}
	p.next++
	n := p.least(p.next, func(i int) bool { return match[i] == most })
	p.sent[n].visit(r.Blocks)
	return p.send(n)
}

// scored adds up scores as most pickers do by default: 3 for the share of the prompt
// that was sent there, 2 for the queue, 2 for the free cache, each from 0 to 1.
type scored struct {
	counting
	sent  sent
	loads []Load
	r     *rand.Rand
}

func (p *scored) Reports(loads []Load, now float64) {
	p.counting.Reports(loads, now)
	p.loads = append(p.loads[:0], loads...)
}

func (p *scored) Choose(_ int, r *Request, _ float64) int {
	least, most := math.MaxInt64, 0
	waiting := make([]int, len(p.sent))
	for i := range p.sent {
		if p.loads != nil {
			waiting[i] = int(p.loads[i].Requests)
		}
		least, most = min(least, waiting[i]), max(most, waiting[i])
	}
	best, top := 0, -1.0
	for i, c := range p.sent {
		score := 3 * float64(c.match(r.Blocks)) / float64(max(1, len(r.Blocks)))
		if most > least {
			score += 2 * float64(most-waiting[i]) / float64(most-least)
		}
		if p.loads != nil {
			score += 2 * (1 - p.loads[i].KV)
		}
		if score += 1e-6 * p.r.Float64(); score > top && !p.down[i] {
			best, top = i, score
		}
	}
	p.sent[best].visit(r.Blocks)
	return p.send(best)
}

// Oracle returns how many tokens of the prompts would be cached if all engines had
// one cache in common, and each prompt with its answer were in it at once: by
// request and in all, of requests that come at the given times.
func Oracle(t *Trace, engines []Engine, at []float64) (cached []int, all int) {
	sum := 0
	for _, e := range engines {
		sum += e.Cache / t.Block
	}
	c, order := newCache(sum), make([]int, len(at))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(at[a], at[b]) })
	cached = make([]int, len(t.Requests))
	for _, i := range order {
		r := &t.Requests[i]
		keys := r.Blocks[:min(len(r.Blocks), r.Input/t.Block)]
		cached[i] = min(c.match(keys)*t.Block, r.Input-1)
		all += cached[i]
		n := len(keys)
		c.visit(append(keys[:n:n], r.After...))
	}
	return cached, all
}
