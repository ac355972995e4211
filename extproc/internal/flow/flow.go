// Package flow decides who is admitted when all engines are busy, who waits, who is
// turned away, and who has used up what its budget allows.
//
// stream asks it once for each request, before it asks pick. There is a Queue for
// each model: Enter takes a pass if there is one, else it gives a Ticket, which is
// settled when a pass is free, or when there is no use in waiting any longer.
//
// What is promised: no more requests are inside than there are passes, but for
// those that have waited as long as the gateway allows; critical goes before
// standard, and standard before sheddable, always; in a class tenants share by
// tokens, so that one who sends much delays itself; who must be turned away is the
// newest of the least; every ticket is settled once, or given up.
//
// Budgets are charged by what was generated. Before a request is sent it is charged the most
// that it can cost: its prompt, and what it says that it wants at most, or the policy's
// AssumedMax. That comes back when it is known what it was, by the first of:
//
//   - Usage: a header or trailer of the answer that says it (x-millrace-usage, and the names of others)
//   - Gateway: metadata of a gateway that has read the answer (envoy.ai.token_usage)
//   - Body: the answer's own usage, where the gateway sends bodies of answers to extproc
//   - Engine: the account of an engine of ours, of an answer that was cut
//   - Counters: what the engine's counters show, shared out (package meter)
//   - Reserved: else what was charged stays
//
// So no tenant has more generated at a time than it can pay for, but for answers without a
// limit of their own, whose further tokens are charged while counters show them; what it
// has had it owes (up to longestDebt), and nothing more is admitted before that is paid.
// No stream that is closed, no field that is left out and no large limit makes tokens free;
// and who lets answers come to their end pays for exactly what they had, except for Reserved.
//
// Its one rule: it does no I/O and reads no clock, and a request that finds a pass
// takes no lock and allocates nothing.
package flow

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/wire"
)

// Priority is what a request is worth.
type Priority uint8

// The priorities, the highest first.
const (
	Critical Priority = iota
	Standard
	Sheddable
	priorities
)

// String returns the priority as headers and metrics have it.
func (p Priority) String() string {
	return [priorities]string{wire.Critical, wire.Standard, wire.Sheddable}[p]
}

// PriorityOf returns the priority of a name; any other counts as standard.
func PriorityOf(name string) Priority {
	switch name {
	case wire.Critical:
		return Critical
	case wire.Sheddable:
		return Sheddable
	default:
		return Standard
	}
}

// Policy is the rules. It never changes.
type Policy struct {
	// Queue is the most requests for one model that wait; 0: none ever waits, and
	// none is turned away for want of a pass.
	Queue int
	// Allowance is how many requests beyond its slots an endpoint is given, so that
	// it has the next one at hand when one ends.
	Allowance int
	// Reserve is the share of all passes that only critical requests may take.
	Reserve float64
	// MaxWait is the longest wait by priority; for a model that is on its way, and from when it
	// has come, it is begun anew, up to Gateway in all.
	MaxWait [priorities]time.Duration
	// Gateway is the longest wait that the gateway allows. What has waited for so
	// long is admitted to the engines' own queues, but for sheddable requests.
	Gateway time.Duration
	// GatewayTimeout is the longest that the gateway waits for an answer.
	GatewayTimeout time.Duration
	// DegradeAt is how full the queue is, as a share, from which on sheddable requests
	// go to a smaller model; it is also tried for those that would be turned away.
	DegradeAt float64
	// Degrade names the smaller model, by model.
	Degrade map[string]string
	// TenantHeader names the tenant, in lower case; empty: the API key does.
	TenantHeader string
	// Budget is what each tenant may use.
	Budget Budget
	// AssumedMax is how many tokens an answer is taken to have at most, in advance, whose
	// request names no limit.
	AssumedMax int
	// Tenants is the most tenants whose use is remembered.
	Tenants int
}

// EveryGateway is a GatewayTimeout that holds where nothing is known of the gateway:
// Envoy's default is 200 ms.
const EveryGateway = 150 * time.Millisecond

// Room is how much more a model's endpoints can take: free more requests than they
// have, if that is bounded at all. Awaits is whether there is none that takes requests, and one
// will come: requests wait for it, also where none ever waits for a pass. Comes is whether,
// besides, somebody sees to it.
type Room interface {
	Room(allowance int, now time.Time) (free int, bounded bool)
	Awaits(now time.Time) bool
	Comes(now time.Time) bool
}

// leastQueue is how many requests may wait for the first endpoint of a model at least.
const leastQueue = 64

// Reason is why a request was turned away.
type Reason uint8

const (
	// None: it was not.
	None Reason = iota
	// Full is because too many wait that are worth as much or more.
	Full
	// Hopeless is because it would not get a pass in time.
	Hopeless
	// Late is because it has waited as long as it may.
	Late
	reasons
)

// String returns the reason as metrics have it.
func (r Reason) String() string {
	return [reasons]string{"none", "full", "hopeless", "late"}[r]
}

// Ask is a request for a pass.
type Ask struct {
	Policy   *Policy
	Priority Priority
	// Tenant names who asks; 0: nobody in particular.
	Tenant uint64
	// Tokens is what the request is expected to need.
	Tokens int
	Now    time.Time
	// Patience is how long the client waits; 0: not said.
	Patience time.Duration
}

// Answer is what came of an Ask: a Pass, a Ticket, or a refusal.
type Answer struct {
	// Pass is the pass, if there was one.
	Pass Pass
	// Ticket is for the queue; nil: the request does not wait.
	Ticket *Ticket
	// Refusal says why it was turned away; the zero Refusal: it was not.
	Refusal Refusal
}

// Refusal says why a request was turned away.
type Refusal struct {
	Reason Reason
	// Retry is after how long another try has a chance.
	Retry time.Duration
}

// Controller is the queues of all models, and the budgets of all tenants.
type Controller struct {
	// Constant after New.
	metrics *metrics
	tenants *tenants

	// Atomic.
	queues atomic.Pointer[map[string]*Queue] // by model
	// The Budgets in force; nil: there were none yet.
	budgets atomic.Pointer[Budgets]

	// mu guards the field below, and writing those above.
	mu    sync.Mutex
	named int // queues ever made
}

// mostQueues is how many queues are kept at least until all are looked through for idle ones.
const mostQueues = 4096

// New returns a Controller without any queue, which counts into reg.
func New(reg prometheus.Registerer) *Controller {
	c := new(Controller)
	c.metrics = newMetrics(reg, c.reserved)
	c.tenants = newTenants(reg)
	c.queues.Store(&map[string]*Queue{})
	return c
}

// Queue returns a model's queue. Those of models that are gone stay until there are too many:
// then all are forgotten that nobody is in.
func (c *Controller) Queue(model string) *Queue {
	if q := (*c.queues.Load())[model]; q != nil {
		return q
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.queues.Load()
	if q := old[model]; q != nil {
		return q
	}
	all := make(map[string]*Queue, len(old)+1)
	for name, q := range old {
		if len(old) < mostQueues || !q.idle() {
			all[name] = q
		}
	}
	all[model] = newQueue(c.metrics.of(model, c.named))
	c.named++
	c.queues.Store(&all)
	return all[model]
}

// Budgets returns the budgets of a policy; nil: it has none. Another number of
// tenants begins anew; other budgets hold for what was used already.
func (c *Controller) Budgets(p *Policy) *Budgets {
	if p.Budget == (Budget{}) {
		return nil
	}
	if b := c.budgets.Load(); b != nil && b.most == p.Tenants {
		return b
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.budgets.Load(); b != nil && b.most == p.Tenants {
		return b
	}
	b := newBudgets(p.Tenants, c.metrics.charged)
	c.budgets.Store(b)
	return b
}

// Report says how many tokens were generated for a request with a number; so far, if it is
// not final. What nobody owes changes nothing.
func (c *Controller) Report(request uint64, generated int, final bool, now time.Time) {
	if b := c.budgets.Load(); b != nil {
		b.Report(request, generated, final, now)
	}
}

// reserved is how many tokens are charged in advance now.
func (c *Controller) reserved() float64 {
	if b := c.budgets.Load(); b != nil {
		return float64(b.Reserved())
	}
	return 0
}

// Waiting calls each for every model that requests wait for, with how many do and since when
// the oldest does.
func (c *Controller) Waiting(each func(model string, n int, since time.Time)) {
	for model, q := range *c.queues.Load() {
		if q.waiting.Load() == 0 {
			continue
		}
		if n, since := q.oldest(); n > 0 {
			each(model, n, since)
		}
	}
}

// Alive takes all locks once.
func (c *Controller) Alive(p *Policy) {
	take(&c.mu)
	take(&c.tenants.mu)
	for _, q := range *c.queues.Load() {
		take(&q.mu)
	}
	if b := c.Budgets(p); b != nil {
		take(&b.mu)
	}
}

// take takes a lock and gives it back.
func take(mu *sync.Mutex) {
	mu.Lock()
	defer mu.Unlock()
}

// Probed counts a probe of the mesh's own, which no budget pays for.
func (c *Controller) Probed() { c.metrics.probes.Inc() }

// Degraded counts a request that went to a smaller model.
func (c *Controller) Degraded() { c.metrics.degraded.Inc() }

// OverBudget counts a request that was refused for its tenant's budget.
func (c *Controller) OverBudget(o Over) { c.metrics.budget[o].Inc() }

// Pass is the right to be at the endpoints of a model. The zero Pass is none.
type Pass struct {
	queue    *Queue
	reserved bool // whether the endpoint's load shows the request
}

// Reserved says that from now on the request is a part of its endpoint's load.
func (p *Pass) Reserved() {
	if p.queue != nil && !p.reserved {
		p.reserved = true
		p.queue.entering.Add(-1)
	}
}

// Release gives the pass to the next who waits. Doing it again does nothing. It
// comes before the request leaves its endpoint's load.
func (p *Pass) Release(now time.Time) {
	q := p.queue
	if q == nil {
		return
	}
	p.Reserved()
	p.queue = nil
	q.inside.Add(-1)
	if q.waiting.Load() > 0 {
		q.mu.Lock()
		q.pumpLocked(now)
		q.mu.Unlock()
	}
}

// unlimited is as many passes as there can be.
const unlimited = math.MaxInt64 / 2
