package flow

import (
	"container/list"
	"sync"
	"time"
)

// Budget is what one tenant may use in a minute; 0: as much as it likes. It may use
// all of it at once. The zero Budget is none.
type Budget struct {
	// Requests and Tokens are of a minute; tokens are of prompts and of answers.
	Requests, Tokens int64
}

// Over is what there is too little of.
type Over uint8

const (
	// OverNothing: there is enough of all.
	OverNothing Over = iota
	// OverRequests is too many requests.
	OverRequests
	// OverTokens is too many tokens.
	OverTokens
	overs
)

// String returns what it is as metrics have it.
func (o Over) String() string { return [overs]string{"nothing", "requests", "tokens"}[o] }

// Left is what is left of a budget.
type Left struct {
	Requests, Tokens int64
	// RequestsReset and TokensReset are until all of it is there again.
	RequestsReset, TokensReset time.Duration
	// Over is what there was too little of, and Retry how long until there is enough.
	Over  Over
	Retry time.Duration
}

// Source is how it is known what was generated for a request, and so what it is charged.
type Source uint8

// The sources, in the order in which they are believed.
const (
	// Unanswered requests cost nothing: no engine has them, or it refused.
	Unanswered Source = iota
	// Usage is what the engine says of the answer, in a header or trailer.
	Usage
	// Gateway is what the gateway has read in the answer and says in metadata.
	Gateway
	// Body is the answer itself, where the gateway sends it anyway.
	Body
	// Engine is the account that an engine of ours gives of an answer that was cut.
	Engine
	// Counters are those of the engine, shared out among the requests that it had.
	Counters
	// Reserved is the most that the request could cost: nothing says how much it was.
	Reserved
	// Prompt is that of a request that generates nothing.
	Prompt
	sources
)

// String returns the source as metrics and the access log have it.
func (s Source) String() string {
	return [sources]string{"unanswered", "usage", "gateway", "body", "engine", "counters", "reserved", "prompt"}[s]
}

// charged takes what a request was charged in the end. It is called with Budgets.mu held.
type charged func(by Source, tokens int)

// Budgets is what tenants have used of theirs. The one that has asked for nothing
// for longest is forgotten when there are too many; it has its whole budget again.
type Budgets struct {
	// Constant after newBudgets.
	most    int
	charged charged

	// mu guards the fields below.
	mu       sync.Mutex
	tenants  map[uint64]*list.Element // of *account
	recent   list.List                // of *account, the last that asked first
	debts    map[uint64]Debt          // by number of the request
	reserved int                      // tokens that they are charged in advance
	ended    []owing                  // of debts whose requests have ended, the oldest first
}

// Debt is a request that is charged in advance, until it is known what it has needed.
type Debt struct {
	Budget Budget
	Tenant uint64
	// Prompt is its prompt, Charged what was taken for all of it so far, in tokens.
	Prompt, Charged int
	// By is who will say what was generated; Reserved: nobody will.
	By Source
}

// owing is when a request with a number ended.
type owing struct {
	request uint64
	at      time.Time
}

// What is kept of debts whose requests have ended: so many, so long. Engines report, and
// counters show, within a second or two. (There are no more debts of others than streams.)
const (
	mostOwed = 4096
	owedFor  = 15 * time.Second
)

// longestDebt is how much a tenant may owe, in minutes of its budget. What it has used it
// pays back in full, however it was used; but whatever engines say, it has something
// again after an hour.
const longestDebt = 60

// account is what one tenant has left.
type account struct {
	key              uint64
	requests, tokens float64 // below 0: it has used more than there was
	reserved         float64 // tokens that come back at most when its requests end
	at               time.Time
}

func newBudgets(most int, charged charged) *Budgets {
	return &Budgets{most: max(1, most), charged: charged, tenants: map[uint64]*list.Element{}, debts: map[uint64]Debt{}}
}

// Spend takes one request of so many tokens from a tenant's budget if there is
// enough. One that needs more tokens than there ever are needs all of them.
func (b *Budgets) Spend(each Budget, tenant uint64, tokens int, now time.Time) Left {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.account(each, tenant, now)
	a.refill(each, now)
	cost := float64(min(int64(tokens), each.Tokens))
	l := Left{}
	switch {
	case each.Requests > 0 && a.requests < 1:
		l.Over, l.Retry = OverRequests, until(1-a.requests, each.Requests)
	case each.Tokens > 0 && a.tokens < cost:
		l.Over, l.Retry = OverTokens, until(cost-a.tokens, each.Tokens)
		if a.reserved > 0 { // some of it may be there as soon as those that run have ended
			l.Retry = min(l.Retry, max(time.Second, until(cost-a.tokens-a.reserved, each.Tokens)))
		}
	default:
		a.requests--
		a.tokens -= float64(tokens)
	}
	l.Requests, l.Tokens = max(0, int64(a.requests)), max(0, int64(a.tokens))
	l.RequestsReset = until(float64(each.Requests)-a.requests, each.Requests)
	l.TokensReset = until(float64(each.Tokens)-a.tokens, each.Tokens)
	return l
}

// Correct says that a request took more tokens than were spent for it, or fewer.
func (b *Budgets) Correct(each Budget, tenant uint64, more int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.correctLocked(each, tenant, more, 0, now)
}

// correctLocked charges a tenant for more, of which so much is reserved in addition.
func (b *Budgets) correctLocked(each Budget, tenant uint64, more, reserved int, now time.Time) {
	b.reserved += reserved
	e := b.tenants[tenant]
	if e == nil {
		return
	}
	a := e.Value.(*account)
	a.refill(each, now)
	a.tokens = bounded(a.tokens-float64(more), each)
	a.reserved = max(0, a.reserved+float64(reserved))
}

// Owe notes that a request with a number was sent, which is charged in advance.
func (b *Budgets) Owe(request uint64, d Debt, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.debts[request] = d
	b.correctLocked(d.Budget, d.Tenant, 0, d.Charged, now)
}

// Settle says what a request has needed in all, and who says so. Doing it again does nothing.
func (b *Budgets) Settle(request uint64, tokens int, by Source, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleLocked(request, tokens, by, now)
}

func (b *Budgets) settleLocked(request uint64, tokens int, by Source, now time.Time) {
	d, ok := b.debts[request]
	if !ok {
		return
	}
	delete(b.debts, request)
	b.correctLocked(d.Budget, d.Tenant, tokens-d.Charged, -d.Charged, now)
	b.charged(by, tokens)
}

// End says that a request has ended, and that what it has needed is still to be reported. If
// that does not come soon, or never can, it stays charged as it is.
func (b *Budgets) End(request uint64, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := 0
	for old < len(b.ended) && (len(b.ended)-old >= mostOwed || now.Sub(b.ended[old].at) > owedFor) {
		b.keepLocked(b.ended[old].request, now)
		old++
	}
	b.ended = append(b.ended[:0], b.ended[old:]...)
	if d := b.debts[request]; d.By == Reserved {
		b.keepLocked(request, now)
		return
	}
	b.ended = append(b.ended, owing{request, now})
}

// keepLocked leaves a request charged as it is.
func (b *Budgets) keepLocked(request uint64, now time.Time) {
	b.settleLocked(request, b.debts[request].Charged, Reserved, now)
}

// Report says how many tokens were generated for a request; so far, if it is not final. Of
// what is not owed it changes nothing, nor does doing it again.
func (b *Budgets) Report(request uint64, generated int, final bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.debts[request]
	switch total := d.Prompt + generated; {
	case !ok:
	case final:
		b.settleLocked(request, total, d.By, now)
	case total > d.Charged:
		b.correctLocked(d.Budget, d.Tenant, total-d.Charged, total-d.Charged, now)
		d.Charged = total
		b.debts[request] = d
	}
}

// Reserved is how many tokens are charged in advance now, of all tenants.
func (b *Budgets) Reserved() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reserved
}

// account returns a tenant's account, the most recent now.
func (b *Budgets) account(each Budget, tenant uint64, now time.Time) *account {
	if e := b.tenants[tenant]; e != nil {
		b.recent.MoveToFront(e)
		return e.Value.(*account)
	}
	if len(b.tenants) >= b.most {
		last := b.recent.Back()
		delete(b.tenants, b.recent.Remove(last).(*account).key)
	}
	a := &account{key: tenant, requests: float64(each.Requests), tokens: float64(each.Tokens), at: now}
	b.tenants[tenant] = b.recent.PushFront(a)
	return a
}

// refill adds what the time since the last look is worth.
func (a *account) refill(each Budget, now time.Time) {
	minutes := max(0, now.Sub(a.at).Minutes())
	if now.After(a.at) {
		a.at = now
	}
	a.requests = min(float64(each.Requests), a.requests+minutes*float64(each.Requests))
	a.tokens = bounded(a.tokens+minutes*float64(each.Tokens), each)
}

// bounded returns tokens that a tenant may have of a budget.
func bounded(tokens float64, each Budget) float64 {
	return max(-longestDebt*float64(each.Tokens), min(float64(each.Tokens), tokens))
}

// until is how long it takes until there is so much more.
func until(more float64, perMinute int64) time.Duration {
	if more <= 0 || perMinute <= 0 {
		return 0
	}
	return time.Duration(more / float64(perMinute) * float64(time.Minute))
}
