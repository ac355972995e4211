package flow

import (
	"math"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// mostShown is how many tenants have series of their own.
	mostShown = 20
	// mostTracked is how many tenants' use is compared with theirs.
	mostTracked = 256
	// useHalves is how long it takes until use counts half.
	useHalves = 10 * time.Minute
	// useTokens is how many tokens count as much as a request.
	useTokens = 500
	// clearlyMore is how much more a tenant must use than one that is shown to take its place:
	// twice as much, as a logarithm.
	clearlyMore = 1
	// otherTenants is the label of all that are not shown, and noTenant of requests that
	// name none.
	otherTenants, noTenant = "other", "none"
)

// Outcomes are the ways in which requests end, as in millrace_extproc_requests_total.
var Outcomes = [...]string{"ok", "refused", "failed", "shed", "gone"}

// Ended is a request of a tenant that has ended.
type Ended struct {
	// Tenant is who has sent it, as a hash, and Name the same for people; 0: nobody in
	// particular.
	Tenant uint64
	Name   string
	// Outcome is one of Outcomes.
	Outcome string
	// Tokens is what it needed, as far as that is known.
	Tokens int
	// Took is from its arrival to its end.
	Took time.Duration
	// Now is when that was.
	Now time.Time
}

// tenants shows who uses most: clients may choose names freely, so that not each can have series.
// A tenant that comes into use takes the place of the one of those shown that uses least, whose
// series end; its own begin at 0.
type tenants struct {
	// Constant.
	requests        *prometheus.CounterVec // by tenant and outcome
	tokens, seconds *prometheus.CounterVec // by tenant

	// mu guards the fields below.
	mu    sync.Mutex
	users map[uint64]*user
	shown map[uint64]*user
}

// user is what is known of a tenant's use.
type user struct {
	// use is the binary logarithm of its requests, and its tokens by useTokens, each counting
	// twice as much as what was useHalves before it: so that use is compared as it is, at any time.
	use   float64
	label string // empty: it is not shown
}

// add adds to the use what came at a time.
func (u *user) add(worth float64, now time.Time) {
	now64 := float64(now.UnixMilli()) / float64(useHalves.Milliseconds())
	more := math.Log2(worth) + now64
	high, low := max(u.use, more), min(u.use, more)
	u.use = high + math.Log2(1+math.Exp2(low-high))
}

func newTenants(reg prometheus.Registerer) *tenants {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_extproc_tenant_" + name, Help: help}, append([]string{"tenant"}, labels...))
		reg.MustRegister(v)
		return v
	}
	t := &tenants{
		requests: vec("requests_total", "Requests that have ended, by outcome, of the tenants that use most; other: of all others.", "outcome"),
		tokens:   vec("tokens_total", "Tokens of prompts and answers, as far as they are known, of the tenants that use most; other: of all others."),
		seconds:  vec("request_seconds_total", "Time of requests from their arrival to their end, of the tenants that use most; other: of all others."),
		users:    map[uint64]*user{}, shown: map[uint64]*user{},
	}
	for _, label := range []string{otherTenants, noTenant} {
		t.tokens.WithLabelValues(label)
		t.seconds.WithLabelValues(label)
		t.begin(label)
	}
	return t
}

// begin has a tenant's requests be 0 of each outcome, so that the first of one is an increase.
func (t *tenants) begin(label string) {
	for _, outcome := range Outcomes {
		t.requests.WithLabelValues(label, outcome)
	}
}

// Ended counts a request that has ended for its tenant.
func (c *Controller) Ended(e *Ended) { c.tenants.ended(e) }

func (t *tenants) ended(e *Ended) {
	t.mu.Lock()
	defer t.mu.Unlock()
	label := noTenant
	if e.Tenant != 0 {
		label = t.labelLocked(e)
	}
	t.requests.WithLabelValues(label, e.Outcome).Inc()
	t.tokens.WithLabelValues(label).Add(float64(max(0, e.Tokens)))
	t.seconds.WithLabelValues(label).Add(max(0, e.Took.Seconds()))
}

// labelLocked notes the tenant's use, and returns the label that it has.
func (t *tenants) labelLocked(e *Ended) string {
	u := t.users[e.Tenant]
	if u == nil {
		u = t.enterLocked(e)
	}
	u.add(1+float64(max(0, e.Tokens))/useTokens, e.Now)
	if u.label != "" {
		return u.label
	}
	if len(t.shown) >= mostShown {
		id, least := leastOf(t.shown)
		if u.use <= least.use+clearlyMore {
			return otherTenants
		}
		t.hideLocked(id)
	}
	u.label = t.nameLocked(e.Name)
	t.shown[e.Tenant] = u
	t.begin(u.label)
	return u.label
}

// enterLocked begins to track a tenant, in place of the one that uses least if there are as many
// as there may be: of those that came once, the one that did so first.
func (t *tenants) enterLocked(e *Ended) *user {
	if len(t.users) >= mostTracked {
		id, _ := leastOf(t.users)
		t.hideLocked(id)
		delete(t.users, id)
	}
	u := &user{use: math.Inf(-1)}
	t.users[e.Tenant] = u
	return u
}

// leastOf returns who has used least of some.
func leastOf(all map[uint64]*user) (id uint64, least *user) {
	for other, u := range all {
		if least == nil || u.use < least.use {
			id, least = other, u
		}
	}
	return id, least
}

// hideLocked ends a tenant's series.
func (t *tenants) hideLocked(id uint64) {
	u := t.shown[id]
	if u == nil {
		return
	}
	labels := prometheus.Labels{"tenant": u.label}
	for _, v := range []*prometheus.CounterVec{t.requests, t.tokens, t.seconds} {
		v.DeletePartialMatch(labels)
	}
	u.label = ""
	delete(t.shown, id)
}

// nameLocked returns the label for a tenant's name, different from all others'.
func (t *tenants) nameLocked(name string) string {
	name = strings.ToValidUTF8(name, "?")
	taken := name == "" || name == otherTenants || name == noTenant
	for _, u := range t.shown {
		taken = taken || u.label == name
	}
	if taken {
		return t.nameLocked("tenant " + name)
	}
	return name
}
