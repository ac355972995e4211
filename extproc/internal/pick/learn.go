package pick

import (
	"math"
	"sync/atomic"
	"time"
)

// How fast we learn and forget.
const (
	// keep is what each answer leaves of those before it: the last ten or so count.
	keep = 0.9
	// What the engine's own measurement counts for, in tokens seen.
	priorPrefill, priorDecode = 128, 32
	// Expected output and reuse of a model that has not answered yet.
	firstOutput, firstReuse = 128, 0.3
	// Share of the way that one answer moves a model's expectations in the end.
	modelStep = 0.05
	// Share of the way that one answer moves an endpoint's crowding and hits.
	endpointStep = 0.1
	// Slow-down by each further request at the same time, until learned: one
	// more request makes all slower by this share of the time alone. Machines
	// without batching have 1, GPUs far less.
	firstCrowd = 0.5
	// halfLife is how long it takes until what was learned counts for half: an
	// engine that was slow once, and gets little to do, is to be tried again.
	halfLife = time.Minute
	// outlier is by what factor an answer may differ from what was expected: one
	// that is further off counts as so much.
	outlier = 4
)

// unknown serves an endpoint that has neither measured itself nor answered.
var unknown = Speed{Prefill: 2, Decode: 20}

// Rates is what the answers of an endpoint taught. It never changes: each
// answer makes a new one.
type Rates struct {
	// Decayed sums, in milliseconds at full health and tokens.
	prefillMs, prefillTokens float64
	decodeMs, decodeTokens   float64
	crowd                    float64
	// Share of the tokens believed cached that were.
	hit float64
	at  int64 // when it was learned, Unix nanoseconds
}

// fade returns what is left of r now.
func (r *Rates) fade(now int64) Rates {
	age := float64(max(0, now-r.at)) / float64(halfLife)
	if age < 1.0/256 || r.at == 0 {
		return *r
	}
	left := math.Exp2(-age)
	return Rates{
		prefillMs: left * r.prefillMs, prefillTokens: left * r.prefillTokens,
		decodeMs: left * r.decodeMs, decodeTokens: left * r.decodeTokens,
		crowd: firstCrowd + left*(r.crowd-firstCrowd), hit: 1 + left*(r.hit-1), at: r.at,
	}
}

// Usage is what an engine says about one answer.
type Usage struct {
	// Prompt is its length, of which Cached were found in the cache, and
	// Completion what was generated; all in tokens.
	Prompt, Cached, Completion int
	// PrefillMs and DecodeMs are what that took, without any wait.
	PrefillMs, DecodeMs float64
	// Shape is the request's.
	Shape Shape
}

// pace is an endpoint's speed now, in milliseconds per token, by what it says
// of itself and by what its answers taught.
type pace struct {
	prefill, decode float64
	mixed           float64 // of its usual mix of both
	crowd, hit      float64
}

// pace returns the endpoint's speed.
func (e *Endpoint) pace(now int64) pace {
	r := noRates
	if learned := e.rates.Load(); learned != nil {
		r = learned.fade(now)
	}
	prior := e.Prior
	if prior.Prefill <= 0 {
		prior.Prefill = unknown.Prefill
	}
	if prior.Decode <= 0 {
		prior.Decode = unknown.Decode
	}
	prefillMs, prefillN := r.prefillMs+prior.Prefill*priorPrefill, r.prefillTokens+priorPrefill
	decodeMs, decodeN := r.decodeMs+prior.Decode*priorDecode, r.decodeTokens+priorDecode
	slow := 1 / e.Health
	return pace{
		prefill: slow * prefillMs / prefillN,
		decode:  slow * decodeMs / decodeN,
		mixed:   slow * (prefillMs + decodeMs) / (prefillN + decodeN),
		crowd:   r.crowd,
		hit:     r.hit,
	}
}

var noRates = Rates{crowd: firstCrowd, hit: 1}

// learn takes one answer in, given with how many requests at a time it was
// worked on and how many of its tokens were believed cached.
func (e *Endpoint) learn(u Usage, crowd float64, believed int, now int64) {
	expected := e.pace(now)
	for {
		old := e.rates.Load()
		r := noRates
		if old != nil {
			r = old.fade(now)
		}
		r.prefill(u, e.Health, expected.prefill*e.Health)
		r.decode(u, e.Health, crowd, expected.decode*e.Health)
		r.at = now
		if believed > 0 {
			r.hit += endpointStep * (min(1, float64(u.Cached)/float64(believed)) - r.hit)
			r.hit = max(r.hit, 0.05) // so that it can be proven wrong
		}
		if e.rates.CompareAndSwap(old, &r) {
			e.changed()
			return
		}
	}
}

// prefill learns the speed of prompts, of which one token was expected to take so
// many milliseconds.
func (r *Rates) prefill(u Usage, health, expected float64) {
	if n := float64(u.Prompt - u.Cached); n > 0 && u.PrefillMs > 0 {
		r.prefillMs = keep*r.prefillMs + near(u.PrefillMs*health, n*expected, r.prefillTokens)
		r.prefillTokens = keep*r.prefillTokens + n
	}
}

// near bounds what was seen by what was expected, if that rests on enough tokens.
func near(seen, expected, tokens float64) float64 {
	if tokens < priorDecode {
		return seen
	}
	return min(max(seen, expected/outlier), expected*outlier)
}

// decode learns the speed alone and the crowding: an answer in company says how
// much slower company makes.
func (r *Rates) decode(u Usage, health, crowd, alone float64) {
	if u.Completion < 2 || u.DecodeMs <= 0 {
		return
	}
	ms, n := u.DecodeMs*health, float64(u.Completion)
	if company := crowd - 1; company > 0.5 {
		observed := (ms/n/alone - 1) / company
		r.crowd += endpointStep * (min(max(observed, 0), 4) - r.crowd)
		ms /= 1 + r.crowd*company
	}
	r.decodeMs = keep*r.decodeMs + near(ms, n*alone, r.decodeTokens)
	r.decodeTokens = keep*r.decodeTokens + n
}

// Learned is what the answers of a model taught, and its tokenizer. All of it
// is atomic.
type Learned struct {
	counter atomic.Pointer[Counter]
	output  average
	shapes  shapes
	ratios  ratios
	reuse   average
}

// SetCounter sets the tokenizer; nil: none.
func (l *Learned) SetCounter(c Counter) {
	if c == nil {
		l.counter.Store(nil)
		return
	}
	l.counter.Store(&c)
}

// Counter returns the tokenizer, or nil until it is loaded.
func (l *Learned) Counter() Counter {
	if c := l.counter.Load(); c != nil {
		return *c
	}
	return nil
}

// learn takes one answer in.
func (l *Learned) learn(u Usage) {
	l.learnOutput(&u.Shape, u.Completion)
	l.learnRatio(&u.Shape, u.Prompt)
	if u.Prompt > 0 {
		l.reuse.add(float64(u.Cached)/float64(u.Prompt), firstReuse)
	}
}

// average is a moving average that forgets. The first values count for more: the
// guess that stands in before them is only a guess.
type average struct {
	bits atomic.Uint64 // of a float64
	n    atomic.Uint32 // values taken in
}

func (a *average) value(first float64) float64 {
	if b := a.bits.Load(); b != 0 {
		return math.Float64frombits(b)
	}
	return first
}

func (a *average) add(x, first float64) {
	step := max(modelStep, 1/float64(a.n.Add(1)+1))
	for {
		b := a.bits.Load()
		v := first
		if b != 0 {
			v = math.Float64frombits(b)
		}
		if a.bits.CompareAndSwap(b, math.Float64bits(v+step*(x-v))) {
			return
		}
	}
}
