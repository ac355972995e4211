package replay

import (
	"container/heap"
	"math"
	"slices"
)

// foresee returns the time to the first token and that of a further one, in milliseconds, if
// the engine got the request now and nothing after it. It sees all but what is to come.
func (e *engine) foresee(r *Request, now float64) (ttft, tpot float64) {
	own := e.uncached(r)
	prompts, queued := own, float64(0)
	for _, j := range e.jobs {
		prompts += j.todo
	}
	for _, j := range e.queue {
		prompts += j.uncached
		queued++
	}
	n := float64(len(e.jobs))
	step := e.Decode * (1 + e.Crowd*max(0, min(n+queued, float64(e.Slots))-1))
	if e.steps > 0 { // what the step that runs has left
		ttft = e.length - math.Mod(max(0, now-e.start), e.length)
		for _, c := range e.chunks {
			prompts -= c.n
		}
	}
	steps := math.Ceil(float64(max(own, prompts)) / float64(e.Chunk))
	ttft += e.slow * (float64(max(own, prompts))*e.Prefill + steps*step)
	if wait := e.slotAfter(step) * e.slow; wait > 0 {
		ttft = max(ttft, wait+e.slow*(float64(own)*e.Prefill+step))
	}
	if r.Adapter > 0 && e.Adapters > 0 && !slices.Contains(e.loaded, r.Adapter) {
		ttft += e.Load
	}
	return ttft, e.slow * e.Decode * (1 + e.Crowd*min(n+queued, float64(e.Slots-1)))
}

// slotAfter is when a slot is free for one that comes behind the queue, in milliseconds, if
// each step takes so long; 0: one is.
func (e *engine) slotAfter(step float64) float64 {
	if len(e.jobs)+len(e.queue) < e.Slots {
		return 0
	}
	var ends floats
	for _, j := range e.jobs {
		ends = append(ends, float64(j.left)*step+float64(j.todo)*e.Prefill)
	}
	heap.Init(&ends)
	for _, j := range e.queue {
		if len(ends) < e.Slots {
			heap.Push(&ends, float64(j.r.Output)*step+float64(j.uncached)*e.Prefill)
			continue
		}
		ends[0] += float64(j.r.Output)*step + float64(j.uncached)*e.Prefill
		heap.Fix(&ends, 0)
	}
	if len(ends) < e.Slots {
		return 0
	}
	return ends[0]
}

type floats []float64

func (h floats) Len() int           { return len(h) }
func (h floats) Less(i, j int) bool { return h[i] < h[j] }
func (h floats) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *floats) Push(x any)        { *h = append(*h, x.(float64)) }
func (h *floats) Pop() any {
	x := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return x
}

// oracle knows what is in the engines, and how long each answer will be. It takes the engine
// where the request takes the least together with what it takes from those that are there; one
// at which it misses its goals only if it misses them at all.
type oracle struct {
	rival
	insides []*engine
}

func (p *oracle) see(engines []*engine) { p.insides = engines }

// missed is what a missed goal costs beside a millisecond.
const missed = 1e5

func (p *oracle) Choose(_ int, r *Request, now float64) int {
	n := p.best(func(i int) float64 {
		e := p.insides[i]
		if e.down {
			return math.MaxFloat64
		}
		ttft, tpot := e.foresee(r, now)
		all := ttft + float64(r.Output-1)*tpot
		cost := ttft + all + e.harm(r)
		if !r.Goal.met(ttft, all, r.Output) {
			cost += missed
		}
		return cost
	})
	return p.send(n)
}

// harm is by how many milliseconds those at the engine get later for a request.
func (e *engine) harm(r *Request) (ms float64) {
	prefill := float64(e.uncached(r)) * e.Prefill * e.slow
	crowd := e.Decode * e.Crowd * e.slow
	for _, j := range e.jobs {
		ms += prefill + crowd*float64(min(j.left, r.Output))
	}
	return ms + 2*prefill // whoever comes next
}

// met reports whether a request that took so long, in milliseconds, has met its goals.
func (g *Goal) met(ttft, all float64, output int) bool {
	return (g.TTFT == 0 || ttft <= g.TTFT) && (g.E2E == 0 || all <= g.E2E) &&
		(g.TPOT == 0 || output < 2 || (all-ttft)/float64(output-1) <= g.TPOT)
}
