package pick

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/trust"
)

// How fast we learn and forget.
const (
	// Share of the way, in logarithms, that one answer of enough tokens moves a speed
	// that is faster than was predicted, and one that is slower: what is learned is how
	// fast the engine is by itself, and other requests can only make it slower. An
	// outlier, in logarithms, is not far off.
	stepFaster, stepSlower = 0.2, 0.05
	// pooled is how many of an endpoint's own answers count as much as those of all
	// endpoints together.
	pooled = 24
	// decodeStep is the least share of the way that one answer of enough tokens moves
	// what is known of decoding.
	decodeStep = 0.04
	// enough is the number of tokens from which on an answer counts in full.
	enoughPrefill, enoughDecode = 128, 32
	// Expected output and reuse of a model that has not answered yet.
	firstOutput, firstReuse = 128, 0.3
	// Share of the way that one answer moves a model's expectations in the end.
	modelStep = 0.05
	// Share of the way that one answer moves an endpoint's crowding and hits.
	endpointStep = 0.1
	// Slow-down by each further request at the same time, until learned: one
	// more request makes all slower by this share of the time alone. Machines
	// without batching have 1, GPUs a few hundredths.
	firstCrowd = 0.1
	// By how much the numbers of requests at a time must differ (as a variance) for
	// what they show of crowding to count for half: after many answers, and how much
	// more after few.
	leastRidge, firstRidge = 0.02, 4
	// outlier is by what factor a token may take longer or shorter than was expected:
	// one that is further off counts as so much.
	outlier = 4
	// farthest is by what factor anything may be faster or slower than the engine says of
	// itself, and pooledFarthest what of that is believed of a model's other engines where
	// it does say something.
	farthest, pooledFarthest = 1e6, 64
	// contradictions is how many answers in a row must be further off than outlier, on one
	// side, for what was learned before to be forgotten: whatever it was, it is not true.
	contradictions = 8
	// contradictedStep is the share of the way that a value moves an average that was
	// contradicted.
	contradictedStep = 0.5
	// farMean is by what factor a value is far from a moving average.
	farMean = 8
	// mostTokens bounds what one answer is believed to have had.
	mostTokens = 1 << 24
	// mostCompany bounds how many requests an engine is taken to work on at a time.
	mostCompany = 4096
	// halfLife is how long it takes until what was learned counts for half: an
	// engine that was slow once, and gets little to do, is to be tried again.
	halfLife = time.Minute
)

// unknown serves an endpoint that has neither measured itself nor answered.
var unknown = Speed{Prefill: 2, Decode: 20}

// Rates is what the answers of an endpoint taught. It never changes: each
// answer makes a new one.
type Rates struct {
	// prefill is by what factor a prompt token takes longer than the engine has said of
	// itself, as a logarithm, at full health; prefills, how many answers it rests on.
	prefill, prefills float64
	// prefillOff is how many answers in a row were far off that, below 0 if faster.
	prefillOff int
	// decode is what answers show of tokens made.
	decode line
	// Share of the tokens estimated to be cached that were.
	hit float64
	at  int64 // when it was learned, Unix nanoseconds
}

// line is a straight line through what was seen: y, the time of a token as a multiple
// of what the engine has said of itself, at x, the number of further requests. It
// keeps decaying means.
type line struct {
	x, y, xx, xy float64
	n            float64 // answers that they rest on
	off          int     // answers in a row that were outliers; below 0: faster ones
}

// fit returns the time alone, and by what share of it each further request slows
// all. Where requests were always as many, the slope is what it is at first.
func (l *line) fit() (alone, crowd float64) {
	if l.n == 0 {
		return 1, firstCrowd
	}
	ridge := leastRidge + firstRidge/(1+l.n)
	slope := (l.xy - l.x*l.y + ridge*firstCrowd*l.y/(1+firstCrowd*l.x)) / (l.xx - l.x*l.x + ridge)
	alone = max(l.y-max(0, slope)*l.x, l.y/outlier)
	return alone, max(0, slope) / alone
}

// add takes in an answer of which each token took y in company of x others.
func (l *line) add(x, y, weight float64) {
	if l.n >= 1 {
		alone, crowd := l.fit()
		expected := alone * (1 + crowd*x)
		if l.off = counted(l.off, y, expected, outlier); max(l.off, -l.off) >= contradictions {
			*l = line{}
		} else {
			y = trust.Clamp(y, expected/outlier, expected*outlier)
		}
	}
	l.n += weight
	s := weight * max(decodeStep, 1/l.n)
	l.x += s * (x - l.x)
	l.y += s * (y - l.y)
	l.xx += s * (x*x - l.xx)
	l.xy += s * (x*y - l.xy)
}

// counted returns how many values in a row are far from what was expected, on the same
// side: below 0 if they are lower.
func counted(off int, value, expected, far float64) int {
	switch {
	case value > expected*far:
		return max(0, off) + 1
	case value < expected/far:
		return min(0, off) - 1
	default:
		return 0
	}
}

// left is the share of what was learned that still counts now.
func (r *Rates) left(now int64) float64 {
	age := float64(max(0, now-r.at)) / float64(halfLife)
	if age < 1.0/64 || r.at == 0 {
		return 1
	}
	return math.Exp2(-age)
}

// fade lets what was learned before count for less beside what is learned now.
func (r *Rates) fade(now int64) {
	left := r.left(now)
	r.prefill *= left
	r.prefills *= left
	r.decode.n *= left
	r.hit = 1 + left*(r.hit-1)
	r.at = now
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

// believed returns what can be true of an answer that took so many milliseconds as we saw
// it; 0: we did not see it. Of what an engine says, neither time nor tokens can be more
// than there was room for.
func (u Usage) believed(took float64) Usage {
	most := mostTokens
	if s := &u.Shape; s.Choices > 0 && s.Limit >= 0 {
		most = min(most, s.Choices*min(s.Limit, most))
	}
	u.Completion = max(0, min(u.Completion, most))
	u.Prompt = max(0, min(u.Prompt, mostTokens))
	if known := u.Shape.Prompt; known > 0 {
		u.Prompt = min(u.Prompt, mostRatio*max(known, u.Shape.Guess))
	}
	u.Cached = max(0, min(u.Cached, u.Prompt))
	longest := math.MaxFloat64
	if took > 0 {
		longest = took * float64(max(1, u.Shape.Choices))
	}
	u.PrefillMs, u.DecodeMs = trust.Clamp(u.PrefillMs, 0, longest), trust.Clamp(u.DecodeMs, 0, longest)
	return u
}

// pace is an endpoint's speed now, in milliseconds per token, by what it says
// of itself and by what its answers taught.
type pace struct {
	prefill, decode float64
	crowd, hit      float64
}

// pace returns the endpoint's speed: what it says of itself, corrected by its own
// answers and, as long as these are few, by those of all endpoints of the model. What
// a few answers show is chance, and would scatter conversations.
func (e *Endpoint) pace(now int64, usual *usual) pace {
	p, slow := e.prior(), 1/e.Health
	learned := e.rates.Load()
	if learned == nil {
		learned = &noRates
	}
	left := learned.left(now)
	alone, crowd := learned.decode.fit()
	own := left * learned.decode.n
	share := own / (own + pooled)
	prefills := left * learned.prefills
	return pace{
		prefill: slow * p.Prefill * math.Exp(mix(usual.prefill, learned.prefill, prefills/(prefills+pooled))),
		decode:  slow * p.Decode * mix(usual.alone, alone, share),
		crowd:   mix(usual.crowd, crowd, share),
		hit:     mix(1, learned.hit, left),
	}
}

// mix is a and b, the latter by a share.
func mix(a, b, share float64) float64 { return a + share*(b-a) }

// prior is what the engine measured of itself.
func (e *Endpoint) prior() Speed {
	p := e.Prior
	if p.Prefill <= 0 {
		p.Prefill = unknown.Prefill
	}
	if p.Decode <= 0 {
		p.Decode = unknown.Decode
	}
	return p
}

var noRates = Rates{hit: 1}

// seen is what one answer shows, as multiples of what the engine says of itself.
type seen struct {
	Usage
	// prior is the engine's own word, health its share of full speed.
	prior  Speed
	health float64
	// company is how many requests it worked on at a time, estimated how many of the
	// prompt's tokens were taken to be cached.
	company   float64
	estimated int
	// far is by what factor it may differ from that.
	far float64
}

// pooled is what it shows of the other engines of the model.
func (s seen) pooled(prior Speed) seen {
	if prior.Decode > 0 && prior.Prefill > 0 {
		s.far = pooledFarthest
	}
	return s
}

// learn takes one answer in.
func (e *Endpoint) learn(u Usage, company float64, estimated int, now int64) seen {
	s := seen{Usage: u, prior: e.prior(), health: e.Health, company: trust.Clamp(company, 1, mostCompany), estimated: estimated, far: farthest}
	update(&e.rates, &s, now)
	e.changed()
	return s
}

// update replaces rates by those that know one answer more.
func update(p *atomic.Pointer[Rates], s *seen, now int64) {
	for {
		old := p.Load()
		r := noRates
		if old != nil {
			r = *old
		}
		r.fade(now)
		r.take(s)
		if p.CompareAndSwap(old, &r) {
			return
		}
	}
}

func (r *Rates) take(s *seen) {
	if n := float64(s.Prompt - s.Cached); n > 0 && s.PrefillMs > 0 {
		// It ends with a step, which short prompts show and nothing else.
		alone, crowd := r.decode.fit()
		own := s.PrefillMs*s.health - s.prior.Decode*alone*(1+crowd*(s.company-1))
		if share := own / (s.PrefillMs * s.health); share > 0 {
			r.prefillStep(trust.Clamp(own/n/s.prior.Prefill, 1/s.far, s.far), min(1, n/enoughPrefill)*share*share)
		}
	}
	if n := float64(s.Completion); n >= 2 && s.DecodeMs > 0 {
		r.decode.add(max(0, s.company-1), trust.Clamp(s.DecodeMs*s.health/n/s.prior.Decode, 1/s.far, s.far), min(1, n/enoughDecode))
	}
	if s.estimated > 0 {
		r.hit += endpointStep * (min(1, float64(s.Cached)/float64(s.estimated)) - r.hit)
		r.hit = max(r.hit, 0.05) // so that it can be proven wrong
	}
}

// prefillStep moves the factor of a prompt's tokens, a logarithm, towards one that was seen;
// weight is how much of an answer that was.
func (r *Rates) prefillStep(ratio, weight float64) {
	weight = min(1, weight)
	if r.prefills >= 1 {
		r.prefillOff = counted(r.prefillOff, ratio, math.Exp(r.prefill), outlier)
	}
	if max(r.prefillOff, -r.prefillOff) >= contradictions {
		r.prefill, r.prefills, r.prefillOff = math.Log(ratio), 0, 0
	}
	r.prefills += weight
	far := math.Log(ratio) - r.prefill
	share := stepSlower
	if far < 0 {
		share = stepFaster
	}
	r.prefill += weight * max(share, 1/(r.prefills+1)) * far
}

// Learned is what the answers of a model taught, and its tokenizer. All of it
// is atomic.
type Learned struct {
	counter atomic.Pointer[Counter]
	engines atomic.Pointer[[]Engine] // nil: not known
	output  average
	shapes  shapes
	ratios  ratios
	reuse   average // share of the prompt that is cached
	prompt  average // what of it is not cached
	// What evicted tokens would have been worth, and for how long they were idle.
	regret, idle average
	// speed is of all endpoints together, as a multiple of what they say of themselves;
	// nil: nothing was learned yet.
	speed atomic.Pointer[Rates]
	// patience is with endpoints that are slower than predicted.
	patience patience
}

// usual is what a request of a model usually is like.
type usual struct {
	// prompt is the tokens that are not cached, output those of the answer.
	prompt, output float64
	// regret is how likely an evicted token would have been used again, idle for how
	// many seconds it was not.
	regret, idle float64
	// prefill is the factor by which prompt tokens take longer than engines say, as a
	// logarithm; alone and crowd are those of a line.
	prefill, alone, crowd float64
}

func (l *Learned) usual() usual {
	r := l.speed.Load()
	if r == nil {
		r = &noRates
	}
	u := usual{
		prompt: l.prompt.value(firstOutput), output: l.output.value(firstOutput),
		prefill: r.prefill,
		regret:  l.regret.value(l.reuse.value(firstReuse)), idle: l.idle.value(0),
	}
	u.alone, u.crowd = r.decode.fit()
	return u
}

// SetCounter sets the tokenizer; nil: none.
func (l *Learned) SetCounter(c Counter) {
	if c == nil {
		l.counter.Store(nil)
		return
	}
	l.counter.Store(&c)
}

// SetEngines says which engines serve the model. It returns whether they are others than
// before: then the tokenizer is to be set anew.
func (l *Learned) SetEngines(engines []Engine) bool {
	old := l.engines.Swap(&engines)
	return old == nil && len(engines) > 0 || old != nil && !slices.Equal(*old, engines)
}

// Engines returns which engines serve the model, as far as that is known.
func (l *Learned) Engines() []Engine {
	if e := l.engines.Load(); e != nil {
		return *e
	}
	return nil
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
		l.prompt.add(float64(u.Prompt-u.Cached), firstOutput)
	}
}

// average is a moving average that forgets. The first values count for more: the
// guess that stands in before them is only a guess. So do values that contradict it one
// after the other.
type average struct {
	bits atomic.Uint64 // of a float64
	n    atomic.Uint32 // values taken in
	off  atomic.Int32  // values in a row that were far off; below 0: lower ones
}

func (a *average) value(first float64) float64 {
	if b := a.bits.Load(); b != 0 {
		return math.Float64frombits(b)
	}
	return first
}

// add takes a value in.
func (a *average) add(x, first float64) { a.move(x, a.contradicted(x, first, farMean), first) }

// contradicted reports whether x, like enough values before it, is off by a factor on the
// same side.
func (a *average) contradicted(x, first, far float64) bool {
	off := counted(int(a.off.Load()), x, a.value(first), far)
	a.off.Store(int32(max(-contradictions, min(contradictions, off))))
	return max(off, -off) >= contradictions
}

// move moves the average towards x, by much or by little.
func (a *average) move(x float64, much bool, first float64) {
	step := max(modelStep, 1/float64(a.n.Add(1)+1))
	if much {
		step = contradictedStep
	}
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
