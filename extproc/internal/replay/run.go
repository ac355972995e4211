package replay

import (
	"container/heap"
	"math/rand/v2"
)

// Policy chooses an engine for each request.
type Policy interface {
	// Choose returns the number of an engine for the request with a number.
	Choose(id int, r *Request, now float64) int
	// First reports that the first token has come.
	First(d *Done, now float64)
	// Done reports that the answer is whole.
	Done(d *Done, now float64)
	// Reports takes in, twice a second, what the engines report.
	Reports(loads []Load, now float64)
}

// Done is what came of a request.
type Done struct {
	// ID is its number in the trace, Engine that of the engine.
	ID, Engine int
	// Request is the request.
	Request *Request
	// Cached is how many tokens of the prompt were cached.
	Cached int
	// Came, Began, First and End are when it came, was begun, had its first token, and
	// was done, in milliseconds.
	Came, Began, First, End float64
	// Load is what the engine has to do without it.
	Load Load
}

// Load is what an engine reports.
type Load struct {
	// Requests are those worked on and waiting, Waiting the latter.
	Requests, Waiting int64
	// KV is the share of the cache that is taken.
	KV float64
}

// tick is how often engines report, in milliseconds.
const tick = 500

// event is something that happens.
type event struct {
	at      float64
	kind    int8
	n       int // number of a request or an engine
	version int
}

const (
	arrives int8 = iota
	steps
	reports
)

type events []event

func (h events) Len() int           { return len(h) }
func (h events) Less(i, j int) bool { return h[i].at < h[j].at }
func (h events) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)        { *h = append(*h, x.(event)) }
func (h *events) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// world is one run.
type world struct {
	trace   *Trace
	policy  Policy
	engines []*engine
	events  events
	at      []float64 // when requests come by the trace
	waits   [][]int   // by request: those that come after its answer
	left    int
	done    []Done
	loads   []Load
}

// Run sends the trace's requests, stretched in time by factor, to engines that policy
// chooses, and returns what came of each.
func Run(t *Trace, engines []Engine, policy Policy, factor float64, r *rand.Rand) (done []Done, busy []float64) {
	w := &world{
		trace: t, policy: policy, at: t.times(factor, r), waits: make([][]int, len(t.Requests)), left: len(t.Requests),
		done: make([]Done, len(t.Requests)), loads: make([]Load, len(engines)),
	}
	for _, e := range engines {
		w.engines = append(w.engines, &engine{Engine: e, block: t.Block, cache: newCache(e.Cache / t.Block)})
	}
	for i := range t.Requests {
		if p := t.Requests[i].Parent; p >= 0 {
			w.waits[p] = append(w.waits[p], i)
			continue
		}
		w.push(event{at: w.at[i], kind: arrives, n: i})
	}
	w.push(event{at: tick, kind: reports})
	for w.left > 0 {
		w.step(heap.Pop(&w.events).(event))
	}
	for _, e := range w.engines {
		busy = append(busy, e.busy)
	}
	return w.done, busy
}

func (w *world) push(e event) { heap.Push(&w.events, e) }

func (w *world) step(ev event) {
	switch ev.kind {
	case arrives:
		r := &w.trace.Requests[ev.n]
		n := w.policy.Choose(ev.n, r, ev.at)
		if w.engines[n].add(&job{id: ev.n, r: r}, ev.at) {
			w.schedule(n)
		}
	case steps:
		e := w.engines[ev.n]
		if ev.version != e.version {
			return
		}
		w.finish(ev.n, ev.at)
		if e.begin(ev.at) {
			w.schedule(ev.n)
		}
	case reports:
		for i := range w.engines {
			w.loads[i] = w.load(i)
		}
		w.policy.Reports(w.loads, ev.at)
		w.push(event{at: ev.at + tick, kind: reports})
	}
}

func (w *world) load(n int) Load {
	return w.engines[n].load()
}

func (w *world) schedule(n int) {
	e := w.engines[n]
	w.push(event{at: e.end(), kind: steps, n: n, version: e.version})
}

// finish ends a step of an engine.
func (w *world) finish(n int, now float64) {
	done, first := w.engines[n].finish()
	finish := func(j *job, f func(*Done, float64)) {
		d := Done{ID: j.id, Engine: n, Request: j.r, Cached: j.cached, Came: j.came, Began: j.began, First: j.first, End: now, Load: w.load(n)}
		f(&d, now)
		w.done[j.id] = d
	}
	for _, j := range first {
		finish(j, w.policy.First)
	}
	for _, j := range done {
		finish(j, w.policy.Done)
		w.left--
		for _, next := range w.waits[j.id] {
			w.push(event{at: max(now, w.at[next]), kind: arrives, n: next})
		}
	}
}
