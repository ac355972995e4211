package replay

import "slices"

// Engine is how an engine works: with continuous batching, prompts in chunks beside
// the decoding of others, and a KV cache of whole blocks.
type Engine struct {
	// Slots is how many requests it works on at a time; others wait in order.
	Slots int
	// Prefill is the time of a prompt token, in milliseconds.
	Prefill float64
	// Decode is the time of a step that makes one token for one request, in
	// milliseconds, and Crowd by what share of that each further request slows it.
	Decode, Crowd float64
	// Chunk is the most prompt tokens in a step.
	Chunk int
	// Cache is the size of its KV cache, in tokens.
	Cache int
	// Adapters is how many LoRA adapters are loaded at a time, the last used ones, and Load
	// how long it takes to load one, in milliseconds.
	Adapters int
	Load     float64
}

// faster returns the engine at so many times the speed.
func (e Engine) faster(by float64) Engine {
	e.Prefill /= by
	e.Decode /= by
	return e
}

// work is how long the engine is busy with a request, in milliseconds, if so many
// tokens of the prompt are cached and all slots are taken.
func (e *Engine) work(r *Request, cached int) float64 {
	n := float64(e.Slots)
	return float64(r.Input-cached)*e.Prefill + float64(r.Output)*e.Decode*(1+e.Crowd*(n-1))/n
}

// Work is how long the engine is busy with a request of a trace on average, in milliseconds, if
// nothing is cached and all slots are taken.
func (e *Engine) Work(t *Trace) (ms float64) {
	for i := range t.Requests {
		ms += e.work(&t.Requests[i], 0) / float64(len(t.Requests))
	}
	return ms
}

// alone is the time to the first token if nobody else is there.
func (e *Engine) alone(r *Request, cached int) float64 {
	return max(e.Decode, float64(r.Input-cached)*e.Prefill)
}

// job is a request at an engine.
type job struct {
	id       int
	r        *Request
	came     float64 // at the engine
	began    float64
	first    float64 // token
	cached   int
	uncached int // prompt tokens, when it came
	todo     int // prompt tokens
	left     int // output tokens
	blocks   []uint64
}

// engine is a running Engine. Time goes in steps; it stands at the end of the last.
type engine struct {
	Engine
	block   int
	cache   *cache
	queue   []*job
	refused int     // of them, for which there was no room when the step began
	jobs    []*job  // worked on, in order of arrival
	slow    float64 // by what factor everything takes longer than it says
	down    bool
	loaded  []int   // adapters, the last used first
	loading float64 // milliseconds that the next step takes longer

	// The step that runs, or several equal ones.
	start, length float64
	steps         int // 0: idle
	chunks        []chunk
	version       int // of the event that ends it

	busy float64 // time spent working
}

// chunk is a part of a prompt in a step.
type chunk struct {
	j *job
	n int
}

// load is what the engine reports of itself.
func (e *engine) load() Load {
	return Load{
		Requests: int64(len(e.jobs) + len(e.queue)), Waiting: int64(min(e.refused, len(e.queue))),
		KV: float64(e.cache.busy) / float64(e.cache.capacity), Down: e.down, Adapters: e.loaded,
	}
}

// add takes a request in. It returns whether the step that runs now ends
// earlier than it said.
func (e *engine) add(j *job, now float64) (sooner bool) {
	j.came, j.left = now, j.r.Output
	j.uncached = e.uncached(j.r)
	e.queue = append(e.queue, j)
	if e.steps <= 1 {
		return e.steps == 0 && e.begin(now)
	}
	done := int((now-e.start)/e.length) + 1
	if done >= e.steps {
		return false
	}
	e.steps = done
	e.version++
	return true
}

// end is when the step that runs ends.
func (e *engine) end() float64 { return e.start + e.length*float64(e.steps) }

// begin admits what there is room for and begins a step. It returns false if there
// is nothing to do.
func (e *engine) begin(now float64) bool {
	for len(e.queue) > 0 && len(e.jobs) < e.Slots && e.admit(e.queue[0], now) {
		e.jobs = append(e.jobs, e.queue[0])
		e.queue = e.queue[1:]
	}
	e.version++
	e.refused = len(e.queue)
	e.start, e.steps, e.chunks = now, 0, e.chunks[:0]
	if len(e.jobs) == 0 {
		return false
	}
	budget, tokens, decoding, least := e.Chunk, 0, 0, 0
	for _, j := range e.jobs {
		switch {
		case j.todo > 0 && budget > 0:
			n := min(j.todo, budget)
			e.chunks = append(e.chunks, chunk{j, n})
			budget, tokens = budget-n, tokens+n
		case j.todo == 0:
			decoding++
			if least == 0 || j.left < least {
				least = j.left
			}
		}
	}
	e.length, e.steps = float64(tokens)*e.Prefill, 1
	if decoding > 0 {
		e.length += e.Decode * (1 + e.Crowd*float64(decoding-1))
		if tokens == 0 {
			e.steps = least
		}
	} else {
		e.length = max(e.length, e.Decode) // the weights are read once
	}
	e.length = e.length*e.slow + e.loading
	e.loading = 0
	return true
}

// uncached is how many tokens of a prompt are not cached now.
func (e *engine) uncached(r *Request) int {
	keys := r.Blocks[:min(len(r.Blocks), r.Input/e.block, e.cache.capacity)]
	return max(1, r.Input-e.cache.match(keys)*e.block)
}

// use makes sure that an adapter is loaded.
func (e *engine) use(adapter int) {
	if adapter == 0 || e.Adapters == 0 {
		return
	}
	at := slices.Index(e.loaded, adapter)
	if at < 0 {
		e.loading += e.Load
		at = min(len(e.loaded), e.Adapters-1)
	} else {
		at = min(at, len(e.loaded)-1)
	}
	kept := slices.DeleteFunc(slices.Clone(e.loaded), func(a int) bool { return a == adapter })
	e.loaded = append([]int{adapter}, kept[:min(at, len(kept))]...)
}

// die takes the engine down and returns what it had to do. What it had cached is lost.
func (e *engine) die() (lost []*job) {
	lost = append(append(lost, e.jobs...), e.queue...)
	e.down, e.jobs, e.queue, e.steps, e.refused, e.loaded = true, nil, nil, 0, 0, nil
	e.version++
	e.cache = newCache(e.cache.capacity)
	return lost
}

// admit finds what is cached of a prompt and takes room for it.
func (e *engine) admit(j *job, now float64) bool {
	keys := j.r.Blocks[:min(len(j.r.Blocks), j.r.Input/e.block, e.cache.capacity)]
	cached := e.cache.match(keys) * e.block
	if !e.cache.hold(keys) {
		if len(e.jobs) > 0 {
			return false
		}
		keys = nil // larger than the cache: worked on without
	}
	e.use(j.r.Adapter)
	j.blocks, j.began = keys, now
	j.cached = min(cached, j.r.Input-1)
	j.todo = j.r.Input - j.cached
	return true
}

// finish ends the step that runs and returns the requests that are done, and
// those that got their first token.
func (e *engine) finish() (done, first []*job) {
	now := e.end()
	e.busy += now - e.start
	for _, j := range e.jobs {
		if j.todo == 0 {
			j.left -= e.steps
		}
	}
	for _, c := range e.chunks {
		if c.j.todo -= c.n; c.j.todo == 0 {
			c.j.left--
			c.j.first = now
			first = append(first, c.j)
		}
	}
	kept := e.jobs[:0]
	for _, j := range e.jobs {
		if j.todo > 0 || j.left > 0 {
			kept = append(kept, j)
			continue
		}
		e.cache.release(j.blocks)
		if n := len(j.blocks); n == j.r.Input/e.block && len(j.r.After) > 0 {
			e.cache.visit(append(j.blocks[:n:n], j.r.After...))
		}
		done = append(done, j)
	}
	e.jobs = kept
	e.steps = 0
	return done, first
}
