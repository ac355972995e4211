package pick

import (
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// indexed is the number of endpoints from which on a model has an index: to ask
// each of fewer costs no more.
const indexed = 96

// sweep is how often all cells are worked out again. Between sweeps those are
// whose endpoint has changed; only what comes with time alone, such as the end
// of an ejection, may be seen so much late.
const sweep = 250 * time.Millisecond

// index has what a large model's endpoints cost side by side, so that a choice
// reads two words for each instead of following its pointers.
//
// A request that is cached nowhere costs an endpoint so much for its wait, so
// much for each prompt token and so much for each token of output. The index
// finds the endpoints to price; what they cost, price says.
type index struct {
	// Constant.
	model   *Model
	cells   []cell
	byCache map[uint32]int32 // number of the endpoint with the cache

	// Atomic.
	stale []atomic.Uint64 // a bit for each endpoint: whether its cell is out of date
	swept atomic.Int64    // Unix nanoseconds
}

// cell is one endpoint's cost in milliseconds, as float32.
type cell struct {
	tokens atomic.Uint64 // for a prompt token, and in the low half for one of output
	paces  atomic.Uint64 // milliseconds of a prompt token, and in the low half of one of output
	wait   atomic.Uint32 // infinite: the endpoint is not of the best tier
}

// mark is where an endpoint says that its cell is out of date.
type mark struct {
	word *atomic.Uint64
	bit  uint64
}

// changed marks the endpoint's cell as out of date, if an index has the endpoint.
func (l *Live) changed() {
	if m := l.mark.Load(); m != nil && m.word.Load()&m.bit == 0 {
		m.word.Or(m.bit)
	}
}

// index returns the model's index, up to date; nil: it is too small for one.
func (m *Model) index(usual usual, now int64) *index {
	if len(m.Endpoints) < indexed {
		return nil
	}
	x := m.dense.Load()
	if x == nil {
		x = newIndex(m)
		if m.dense.CompareAndSwap(nil, x) {
			x.mark(m.Endpoints)
		} else {
			x = m.dense.Load()
		}
	}
	x.refresh(m.Endpoints, usual, now)
	return x
}

func newIndex(m *Model) *index {
	es := m.Endpoints
	x := &index{
		model:   m,
		cells:   make([]cell, len(es)),
		byCache: make(map[uint32]int32, len(es)),
		stale:   make([]atomic.Uint64, (len(es)+63)/64),
	}
	for i, e := range es {
		x.byCache[e.KV.ID()] = int32(i)
	}
	return x
}

// mark makes the endpoints mark their cells here. Endpoints that change while this
// runs are found by the next sweep.
func (x *index) mark(es []*Endpoint) {
	marks := make([]mark, len(es))
	for i, e := range es {
		marks[i] = mark{&x.stale[i/64], 1 << (i % 64)}
		e.Live.mark.Store(&marks[i])
	}
	x.swept.Store(0)
}

// refresh works out the cells that are out of date.
func (x *index) refresh(es []*Endpoint, usual usual, now int64) {
	last := x.swept.Load()
	if age := now - last; (age > int64(sweep) || age < 0) && x.swept.CompareAndSwap(last, now) {
		for i, e := range es {
			x.cells[i].set(e, x.model, &usual, now)
		}
		return
	}
	for w := range x.stale {
		if x.stale[w].Load() == 0 {
			continue
		}
		// What changes from here on sets its bit again.
		for word := x.stale[w].Swap(0); word != 0; word &= word - 1 {
			i := 64*w + bits.TrailingZeros64(word)
			x.cells[i].set(es[i], x.model, &usual, now)
		}
	}
}

// set works out what an endpoint costs for a model.
func (c *cell) set(e *Endpoint, m *Model, usual *usual, now int64) {
	if e.tier(now) != tierReady {
		c.wait.Store(math.Float32bits(float32(math.Inf(1))))
		return
	}
	t := e.tariff(m, usual, now)
	c.tokens.Store(pair(t.prompt*(1+t.fill+t.delay), t.output+t.prompt*t.fill))
	c.paces.Store(pair(t.prompt, t.output))
	c.wait.Store(math.Float32bits(float32(t.wait + t.load)))
}

// pair packs two numbers into a word, b in its low half.
func pair(a, b float64) uint64 {
	return uint64(math.Float32bits(float32(a)))<<32 | uint64(math.Float32bits(float32(b)))
}

// unpair is the numbers of a word.
func unpair(w uint64) (a, b float32) {
	return math.Float32frombits(uint32(w >> 32)), math.Float32frombits(uint32(w))
}

// rank is an endpoint's number and about what it costs.
type rank struct {
	cost float32
	at   int32
}

// mostCaching is how many endpoints that have the conversation cached are priced.
const mostCaching = 16

// ranks are the cheapest endpoints, cheapest first, and others to price.
type ranks struct {
	best    [MaxCandidates]rank
	n       int
	caching [mostCaching]int32
	more    int // how many of held there are
}

// add takes in an endpoint that has the conversation cached, once.
func (r *ranks) add(at int32) {
	for _, k := range r.best[:r.n] {
		if k.at == at {
			return
		}
	}
	if r.more < mostCaching && !slices.Contains(r.caching[:r.more], at) {
		r.caching[r.more] = at
		r.more++
	}
}

// cheapest finds the endpoints that are cheapest for who has nothing cached. The
// walk begins at an offset of its own, so that equals take turns.
func (x *index) cheapest(q *Query, from int) (r ranks) {
	r.walk(x.cells[from:], from, q)
	r.walk(x.cells[:from], 0, q)
	return r
}

// walk takes in the cells that are numbered from first on.
func (r *ranks) walk(cells []cell, first int, q *Query) {
	prompt, output := float32(float64(q.Prompt)-q.credit()), float32(q.Output)
	limit, goals := r.limit(), q.Goal != Goal{}
	for i := range cells {
		c := &cells[i]
		ofPrompt, ofOutput := unpair(c.tokens.Load())
		wait := math.Float32frombits(c.wait.Load())
		cost := wait + prompt*ofPrompt + output*ofOutput
		if cost >= limit {
			continue // the risk makes it dearer
		}
		if goals {
			ofPrompt, ofOutput = unpair(c.paces.Load())
			soonest := float64(wait + float32(q.Prompt)*ofPrompt)
			cost += float32(goalWorth * q.Goal.risk(soonest, float64(ofOutput), soonest+float64(output*ofOutput)))
		}
		if cost < limit {
			r.insert(rank{cost, int32(first + i)})
			limit = r.limit()
		}
	}
}

// limit is the cost from which on an endpoint is of no interest.
func (r *ranks) limit() float32 {
	if r.n < len(r.best) {
		return math.MaxFloat32
	}
	return r.best[r.n-1].cost
}

func (r *ranks) insert(k rank) {
	if r.n < len(r.best) {
		r.n++
	}
	i := r.n - 1
	for ; i > 0 && k.cost < r.best[i-1].cost; i-- {
		r.best[i] = r.best[i-1]
	}
	r.best[i] = k
}

// searchIndex is search by the index: it prices the cheapest endpoints and those
// that have the conversation cached. n is 0 if no endpoint is ready.
func (c *Choice) searchIndex(x *index, q *Query, usual usual, now int64, turn int) (n int, home Candidate) {
	es := q.Model.Endpoints
	r := x.cheapest(q, turn%len(es))
	if q.Found != nil {
		for _, p := range q.Found.Matches {
			if i, ok := x.byCache[p.Cache]; ok {
				r.add(i)
			}
		}
	}
	for i := range r.n + r.more {
		e := es[r.at(i)]
		if e.tier(now) != tierReady {
			continue
		}
		cand := e.price(q, usual, now)
		if cand.matched && (home.Endpoint == nil || cand.Cost() < home.Cost()) {
			home = cand
		}
		n = c.insert(&cand, n)
	}
	return n, home
}

// at is the number of the i-th endpoint to price.
func (r *ranks) at(i int) int32 {
	if i < r.n {
		return r.best[i].at
	}
	return r.caching[i-r.n]
}
