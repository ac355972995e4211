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
	// Down is whether the engine does not answer.
	Down bool
	// Adapters are the LoRA adapters that are loaded, the last used first.
	Adapters []int
}

// Trouble is what happens to an engine from one time until another, in milliseconds.
type Trouble struct {
	Engine    int
	At, Until float64
	// Speed is the share of its speed that is left, of which it says nothing; 0: it is dead,
	// and comes back with nothing cached.
	Speed float64
}

// Mourner is a Policy that is to know which requests an engine has lost. Each is then
// chosen for anew, as Envoy does with the next host of its list.
type Mourner interface {
	// Lost reports that the request with a number was not answered by an engine.
	Lost(id, engine int, now float64)
}

// mostTries is how many engines are tried for a request before its client waits a little.
const mostTries = 3

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
	arrivesReport
	begins
	ends
	again
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
	fleet   *Fleet
	old     [][]Load  // reports under way, the oldest first
	came    []float64 // by request: when it first came; 0: not yet
	tries   []int
}

// Run sends the trace's requests, stretched in time by factor, to engines that policy
// chooses, and returns what came of each. r moves the requests a little; nil: they come as
// the trace says.
func Run(t *Trace, f *Fleet, policy Policy, factor float64, r *rand.Rand) (done []Done, busy []float64) {
	w := &world{
		trace: t, fleet: f, policy: policy, at: t.times(factor, r), waits: make([][]int, len(t.Requests)), left: len(t.Requests),
		done: make([]Done, len(t.Requests)), came: make([]float64, len(t.Requests)), tries: make([]int, len(t.Requests)),
	}
	for _, e := range f.Engines {
		w.engines = append(w.engines, &engine{Engine: e, slow: 1, block: t.Block, cache: newCache(e.Cache / t.Block)})
	}
	for i, trouble := range f.Troubles {
		w.push(event{at: trouble.At, kind: begins, n: i})
		w.push(event{at: trouble.Until, kind: ends, n: i})
	}
	if s, ok := policy.(seer); ok {
		s.see(w.engines)
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
		w.came[ev.n] = ev.at
		w.send(ev.n, ev.at)
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
		loads := make([]Load, len(w.engines))
		for i := range w.engines {
			loads[i] = w.load(i)
		}
		if w.fleet.Age == 0 {
			w.policy.Reports(loads, ev.at)
		} else {
			w.old = append(w.old, loads)
			w.push(event{at: ev.at + w.fleet.Age, kind: arrivesReport})
		}
		w.push(event{at: ev.at + tick, kind: reports})
	case arrivesReport:
		w.policy.Reports(w.old[0], ev.at)
		w.old = w.old[1:]
	case again:
		w.send(ev.n, ev.at)
	case begins:
		w.begin(&w.fleet.Troubles[ev.n], ev.at)
	case ends:
		e := w.engines[w.fleet.Troubles[ev.n].Engine]
		e.slow, e.down = 1, false
	}
}

// begin makes an engine slow, or takes it down.
func (w *world) begin(t *Trouble, now float64) {
	e := w.engines[t.Engine]
	if t.Speed > 0 {
		e.slow = 1 / t.Speed
		return
	}
	for _, j := range e.die() {
		w.lost(j.id, t.Engine, now)
		w.send(j.id, now)
	}
}

// send has a request sent to an engine that takes it.
func (w *world) send(id int, now float64) {
	r := &w.trace.Requests[id]
	for {
		n := w.policy.Choose(id, r, now)
		if w.tries[id]++; w.engines[n].down {
			w.lost(id, n, now)
			if w.tries[id]%mostTries == 0 { // by then Envoy is at an end: the client tries again
				w.push(event{at: now + tick, kind: again, n: id})
				return
			}
			continue
		}
		if w.engines[n].add(&job{id: id, r: r}, now) {
			w.schedule(n)
		}
		return
	}
}

func (w *world) lost(id, engine int, now float64) {
	if m, ok := w.policy.(Mourner); ok {
		m.Lost(id, engine, now)
	}
}

func (w *world) load(n int) Load { return w.engines[n].load() }

func (w *world) schedule(n int) {
	e := w.engines[n]
	w.push(event{at: e.end(), kind: steps, n: n, version: e.version})
}

// finish ends a step of an engine.
func (w *world) finish(n int, now float64) {
	done, first := w.engines[n].finish()
	finish := func(j *job, f func(*Done, float64)) {
		d := Done{ID: j.id, Engine: n, Request: j.r, Cached: j.cached, Came: w.came[j.id], Began: j.began, First: j.first, End: now, Load: w.load(n)}
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
			w.push(event{at: max(now+w.trace.Requests[next].Think, w.at[next]), kind: arrives, n: next})
		}
	}
}
