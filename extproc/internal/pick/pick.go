package pick

import (
	"errors"
	"slices"
	"time"

	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
)

// ErrNotReady says that no endpoint may be named.
var ErrNotReady = errors.New("no endpoint is ready")

// Reason is why the first host of an answer was chosen.
type Reason uint8

const (
	// Fallback is a choice by load alone, or among endpoints that are suspect or
	// ejected because there are no others.
	Fallback Reason = iota
	// Fresh is for a conversation that is cached nowhere.
	Fresh
	// Sticky keeps a conversation where it is cached.
	Sticky
	// Moved takes a conversation away from where it is cached, because that is faster.
	Moved
	reasons
)

// String returns the reason as metrics and logs show it.
func (r Reason) String() string {
	return [reasons]string{wire.ReasonFallback, wire.ReasonNew, wire.ReasonSticky, wire.ReasonMoved}[r]
}

// A conversation stays if moving gains less than this: predictions are not that good.
const (
	stayShare = 0.2
	stayMs    = 2
)

// Endpoints whose costs differ by less than this take turns.
const (
	tieShare = 0.01
	tieMs    = 0.5
)

// Query is what is asked of Pick.
type Query struct {
	Model *Model
	// Prompt and Output are the request's tokens, known and expected.
	Prompt, Output int
	// Found says where parts of the prompt are cached, as far as we know.
	Found *prefix.Found
	// Blind is whether the request's body cannot be seen, or means nothing to
	// us: Prompt and Output are guesses.
	Blind bool
	// Only is the endpoints that may be named.
	Only Subset
	// Most is how many hosts to name, 1 to MaxCandidates.
	Most int
	Now  time.Time
	// Goal is how fast the client wants its answer; the zero Goal: it does not say.
	Goal Goal
}

// tight reports whether some of the endpoints may have no room for the prompt, and short
// whether that one has none.
func (q *Query) tight() bool { return q.Model.Least > 0 && q.Prompt >= q.Model.Least }

func (q *Query) short(e *Endpoint) bool { return e.Context > 0 && q.Prompt >= e.Context }

// Terms is the cost of a request at an endpoint, in milliseconds.
type Terms struct {
	// Wait is until the request is begun.
	Wait float64
	// Load is until the model, or its LoRA adapter, is loaded there.
	Load float64
	// Prefill is for prompt tokens that are not cached there.
	Prefill float64
	// Decode is for the expected output.
	Decode float64
	// Fill is the price of what the request evicts: the endpoint's cache is full
	// of others' tokens that are likely to be asked for again.
	Fill float64
	// Delay is what its prefill takes from others, now and later.
	Delay float64
	// Shared is what of Prefill others will have the use of: the prefix that
	// several conversations have in common, and which is to be had there, too.
	Shared float64
	// Goal is for the risk that the request misses one of its goals.
	Goal float64
}

// Finish is how long the request is expected to take there.
func (t *Terms) Finish() float64 { return t.Wait + t.Load + t.Prefill + t.Decode }

// Show is where a term is shown.
type Show uint8

const (
	// Always is in logs, traces and explanations.
	Always Show = iota
	// IfAny is the same, but in logs and traces only if there is any of it.
	IfAny
	// InDetail is in explanations only.
	InDetail
)

// Term is one of the Terms by its name.
type Term struct {
	Name string
	Ms   float64
	Show Show
}

// All returns the terms in the order in which they are shown.
func (t *Terms) All() [8]Term {
	return [...]Term{
		{"wait", t.Wait, Always}, {"load", t.Load, IfAny}, {"prefill", t.Prefill, Always}, {"decode", t.Decode, Always},
		{"fill", t.Fill, IfAny}, {"delay", t.Delay, InDetail}, {"shared", t.Shared, InDetail},
		{"goal", t.Goal, IfAny},
	}
}

// Candidate is an endpoint with its cost.
type Candidate struct {
	*Endpoint
	Terms
	// Cached is how many prompt tokens are estimated to be cached there.
	Cached int
	// Company is how many requests are worked on there at a time, this one included.
	Company float64
	// Output is how many tokens Decode is for.
	Output int

	matched bool // whether the conversation is cached there, as far as we know
}

// Choice is what Pick found. It may be used again for another Pick.
type Choice struct {
	// Reason is why List[0] comes first.
	Reason Reason
	// List is the candidates in the order in which Envoy is to try them: no
	// endpoint twice, other zones and nodes before those already named.
	List []Candidate

	found [MaxCandidates]Candidate
	list  [MaxCandidates]Candidate
}

// tiers of endpoints: a lower one is named only if the higher ones are empty.
const (
	tierNone = iota
	tierSuspect
	tierEjected
	tierReady
)

// tier returns the endpoint's tier now.
func (e *Endpoint) tier(now int64) int {
	switch {
	case e.State == NotReady:
		return tierNone
	case e.State == Suspect:
		return tierSuspect
	case e.standing(now) == out:
		return tierEjected
	default:
		return tierReady
	}
}

// Pick fills c with the endpoints that finish the request first.
func (p *Picker) Pick(q *Query, c *Choice) error {
	now := q.Now.UnixNano()
	turn := p.turn.Add(1)
	n, tier, home := c.search(q, now, int(turn))
	if n == 0 {
		c.List = nil
		return ErrNotReady
	}
	first := c.first(n, tier, home, now)
	c.reason(q, tier, &first, home.Endpoint != nil)
	first.chosen.Store(turn)
	first.picks.Add(1)
	c.order(first, n, min(q.Most, MaxCandidates))
	p.metrics.picks[c.Reason].Inc()
	return nil
}

// search finds the cheapest endpoints of the best tier, cheapest first, and the
// cheapest of those that have the conversation cached. The walk begins elsewhere each
// time, so that equals take turns.
func (c *Choice) search(q *Query, now int64, turn int) (n, tier int, home Candidate) {
	usual := q.Model.usual()
	if q.tight() {
		if n, tier, home = c.walk(q, usual, now, turn, true); n > 0 {
			return n, tier, home
		}
	}
	if x := q.Model.index(usual, now); x != nil && q.Only == nil {
		if n, home = c.searchIndex(x, q, usual, now, turn); n > 0 {
			return n, tierReady, home
		}
	}
	return c.walk(q, usual, now, turn, false)
}

// walk is search by asking every endpoint; roomy is whether only those may be named whose
// context has room for the prompt.
func (c *Choice) walk(q *Query, usual usual, now int64, turn int, roomy bool) (n, tier int, home Candidate) {
	es := q.Model.Endpoints
	for i := range es {
		e := es[(i+turn)%len(es)]
		t := e.tier(now)
		if t < tier || t == tierNone || !q.Only.allows(e.Address) || roomy && q.short(e) {
			continue
		}
		if t > tier {
			n, tier, home = 0, t, Candidate{}
		}
		cand := e.price(q, usual, now)
		if cand.matched && (home.Endpoint == nil || cand.Cost() < home.Cost()) {
			home = cand
		}
		n = c.insert(&cand, n)
	}
	return n, tier, home
}

// insert keeps the cheapest in found, in order.
func (c *Choice) insert(cand *Candidate, n int) int {
	cost := cand.Cost()
	i := n
	for i > 0 && cost < c.found[i-1].Cost() {
		i--
	}
	if i == MaxCandidates {
		return n
	}
	n = min(n+1, MaxCandidates)
	copy(c.found[i+1:n], c.found[i:n-1])
	c.found[i] = *cand
	return n
}

// first returns the candidate to name first: where the conversation is, unless
// moving is faster by more than predictions are off; among equals the one that was not
// chosen for the longest. One on trial must be free.
func (c *Choice) first(n, tier int, home Candidate, now int64) Candidate {
	least := c.found[0].Cost()
	if home.Endpoint != nil && home.Cost() <= least*(1+stayShare)+stayMs && home.allowed(tier, now) {
		return home
	}
	for i := range n {
		best := i
		for j := i + 1; j < n && c.found[j].Cost() <= least*(1+tieShare)+tieMs; j++ {
			if c.found[j].chosen.Load() < c.found[best].chosen.Load() {
				best = j
			}
		}
		c.found[i], c.found[best] = c.found[best], c.found[i]
		if c.found[i].allowed(tier, now) {
			return c.found[i]
		}
	}
	return c.found[0] // all are on trial: there is nobody better
}

// allowed reports whether the endpoint may come first.
func (e *Endpoint) allowed(tier int, now int64) bool {
	return tier != tierReady || e.standing(now) == fine || e.try(now)
}

// reason says why first was chosen; held is whether the conversation is cached anywhere.
func (c *Choice) reason(q *Query, tier int, first *Candidate, matched bool) {
	switch {
	case tier != tierReady:
		c.Reason = Fallback
	case first.matched:
		c.Reason = Sticky
	case q.Blind:
		c.Reason = Fallback
	case matched:
		c.Reason = Moved
	default:
		c.Reason = Fresh
	}
}

// order lists first and then the others by cost: those of other zones before
// those of other nodes before the rest.
func (c *Choice) order(first Candidate, n, most int) {
	c.list[0] = first
	c.List = c.list[:1]
	for _, near := range [...]func(a, b *Endpoint) bool{sameZone, sameNode, nowhere} {
		for i := 0; i < n && len(c.List) < most; i++ {
			if e := c.found[i].Endpoint; !c.listed(e) && !c.near(e, near) {
				c.List = append(c.List, c.found[i])
			}
		}
	}
}

func (c *Choice) listed(e *Endpoint) bool {
	for i := range c.List {
		if c.List[i].Endpoint == e {
			return true
		}
	}
	return false
}

// near reports whether e is near a listed endpoint.
func (c *Choice) near(e *Endpoint, near func(a, b *Endpoint) bool) bool {
	for i := range c.List {
		if near(c.List[i].Endpoint, e) {
			return true
		}
	}
	return false
}

// sameNode reports whether a node holds parts of both.
func sameNode(a, b *Endpoint) bool {
	return slices.ContainsFunc(a.Nodes, func(node string) bool { return slices.Contains(b.Nodes, node) })
}

// sameZone reports whether both may fail together.
func sameZone(a, b *Endpoint) bool {
	return a.Zone != "" && a.Zone == b.Zone || sameNode(a, b)
}

func nowhere(_, _ *Endpoint) bool { return false }

// What a millisecond of a prompt that is not cached counts for beside itself: work
// done twice is taken from all; those that come behind it wait; those that make tokens
// there are held up. Found by replaying traces (extproc/replay).
const (
	workTwice   = 4
	holdWaiting = 8
	holdRunning = 0.1
)

// untilStep is the share of a step that is left on average when a request comes: it is
// started when the next one begins.
const untilStep = 0.5

// crowded is the used share of a cache from which on requests that wait at an engine
// whose slots are not all taken wait for room there, and not just for the next step.
const crowded = 0.5

// price predicts the request at the endpoint.
func (e *Endpoint) price(q *Query, usual usual, now int64) Candidate {
	t := e.tariff(q.Model, &usual, now)
	c := Candidate{Endpoint: e, Output: q.Output, Company: t.company}
	c.Wait, c.Load = t.wait, t.load
	c.cached(q, t.hit)
	c.Prefill = float64(q.Prompt-c.Cached) * t.prompt
	c.Decode = float64(q.Output) * t.output
	c.Fill = (c.Prefill + float64(q.Output)*t.prompt) * t.fill
	c.Delay = c.Prefill * t.delay
	if q.Found != nil && c.Cached < q.Found.Shared {
		c.Shared = float64(q.Found.Shared-c.Cached) * t.prompt * (1 - 1/q.Found.By)
	}
	if q.Goal != (Goal{}) {
		c.Goal = goalWorth * q.Goal.risk(c.Wait+c.Load+c.Prefill, t.output, c.Finish())
	}
	return c
}

// tariff is what an endpoint takes for any request now, in milliseconds: Terms come of it.
type tariff struct {
	wait, load float64
	// prompt is for each prompt token that is not cached, output for each of the answer.
	prompt, output float64
	// fill and delay are for each millisecond of the prompt; fill is also for each that
	// output would take as a prompt.
	fill, delay float64
	// company is how many requests are worked on at a time, with one more.
	company float64
	hit     float64 // see pace
}

func (e *Endpoint) tariff(m *Model, usual *usual, now int64) tariff {
	w, pace := e.load(now, usual), e.pace(now, usual)
	prompts := w.mirror(e.prefilling(now))
	slots := e.slots(&w)
	waiting := max(0, w.requests-slots+1)
	t := tariff{prompt: pace.prefill, hit: pace.hit, company: min(w.requests+1, slots)}
	t.wait = wait(&w, &pace, slots, prompts, waiting)
	t.load = e.wake() + e.loadTime(m, &w, &pace)
	t.output = pace.decode * (1 + pace.crowd*(t.company-1))
	if full := fullness(max(w.kv, e.KV.Used())); full > 0 {
		t.fill = full * e.regret(usual, now)
	}
	// About as many come while it waits as are before it.
	t.delay = workTwice + holdWaiting*(waiting+prompts/(1+w.prompt*pace.prefill)) + holdRunning*(t.company-1)
	return t
}

// slots is how many requests the endpoint works on at a time.
func (e *Endpoint) slots(w *work) float64 {
	slots := float64(e.Slots)
	if e.Slots == 0 {
		slots = w.requests + 1 // unknown: as many as need be
	}
	if w.slots > 0 && (e.Slots == 0 || w.kv >= crowded) {
		slots = min(slots, w.slots)
	}
	return slots
}

// wait is how long it takes until a request is begun that has so many milliseconds of
// prompts before it, and so many requests that wait, itself included.
func wait(w *work, pace *pace, slots, prompts, waiting float64) float64 {
	step := pace.decode * (1 + pace.crowd*(min(w.requests, slots)-1))
	if w.requests > 0 {
		prompts += untilStep * step
	}
	if w.requests < slots {
		return prompts
	}
	// So many requests must end before ours begins. A slot is free each time that one of
	// them, all slots working together, has had what they need on average.
	each := w.prompt*pace.prefill + w.output*step/slots
	return max(prompts, waiting*each)
}

// regret is how likely what the endpoint evicts next would have been used again. All
// endpoints of a model serve the same conversations, so one share is learned for all;
// what was idle for longer than is usual is that much less likely to be.
func (e *Endpoint) regret(usual *usual, now int64) float64 {
	idle := e.KV.Idle(now / int64(time.Second))
	if idle == 0 || usual.idle == 0 {
		return usual.regret
	}
	return min(1, usual.regret*min(mostIdle, usual.idle/idle))
}

// mostIdle bounds what one cache that turns over fast may weigh.
const mostIdle = 2

// almostFull is the used share of a cache from which on it begins to evict.
const almostFull = 0.9

// fullness is the share of new tokens that evict others.
func fullness(used float64) float64 {
	return max(0, used-almostFull) / (1 - almostFull)
}

// credit is about how many tokens of the prompt cost nothing, because others have
// the use of them.
func (q *Query) credit() float64 {
	if q.Found == nil || q.Found.Shared == 0 {
		return 0
	}
	return float64(q.Found.Shared) * (1 - 1/q.Found.By)
}

// cached finds how much of the prompt the endpoint has. At least one token is
// always worked on.
func (c *Candidate) cached(q *Query, hit float64) {
	if q.Found == nil {
		return
	}
	for _, p := range q.Found.Matches {
		if p.Cache == c.KV.ID() && c.KV.Has(p) {
			c.matched = c.matched || int(p.Tokens) > q.Found.Shared
			c.Cached = max(c.Cached, min(int(float64(p.Tokens)*hit), q.Prompt-1))
		}
	}
}

// longestPrefill bounds how long a prompt is taken to be worked on, in milliseconds.
const longestPrefill = 3.6e6

// Reserve adds the request to the candidate's load.
func (c *Candidate) Reserve(q *Query) Reservation {
	r := c.Live.Reserve(q.Prompt-c.Cached, q.Output)
	r.prefill = int64(trust.Clamp(c.Prefill, 0, longestPrefill) * 1e6)
	if name := c.Adapter(q.Model); name != "" {
		c.Adapters.use(name)
	}
	c.prefill(r.prefill, q.Now.UnixNano())
	return r
}
