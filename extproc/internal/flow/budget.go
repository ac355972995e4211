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

// Budgets is what tenants have used of theirs. The one that has asked for nothing
// for longest is forgotten when there are too many; it has its whole budget again.
type Budgets struct {
	// Constant after newBudgets.
	most int

	// mu guards the fields below.
	mu      sync.Mutex
	tenants map[uint64]*list.Element // of *account
	recent  list.List                // of *account, the last that asked first
	owed    map[uint64]Debt          // by number of the request
	numbers []owing                  // of owed, the oldest first
}

// Debt is a request that was charged by estimate: its answer was cut, and what it has needed
// is still to be reported.
type Debt struct {
	Budget Budget
	Tenant uint64
	// Prompt is its prompt, Charged what was taken for all of it, in tokens.
	Prompt, Charged int
}

// owing is when a request with a number began to be owed.
type owing struct {
	request uint64
	at      time.Time
}

// What is kept of debts: so many, so long. Engines report within a second or two.
const (
	mostOwed = 4096
	owedFor  = 15 * time.Second
)

// account is what one tenant has left.
type account struct {
	key              uint64
	requests, tokens float64 // below 0: it has used more than was expected
	at               time.Time
}

func newBudgets(most int) *Budgets {
	return &Budgets{most: max(1, most), tenants: map[uint64]*list.Element{}, owed: map[uint64]Debt{}}
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
	e := b.tenants[tenant]
	if e == nil {
		return
	}
	a := e.Value.(*account)
	a.refill(each, now)
	// What is owed is bounded: an hour of silence must be worth something.
	a.tokens = max(-float64(each.Tokens), min(float64(each.Tokens), a.tokens-float64(more)))
}

// Owe notes a debt until Report says what the request has needed. One of which nobody
// reports, or not soon, stays charged by estimate.
func (b *Budgets) Owe(request uint64, d Debt, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := 0
	for old < len(b.numbers) && (len(b.numbers)-old >= mostOwed || now.Sub(b.numbers[old].at) > owedFor) {
		delete(b.owed, b.numbers[old].request)
		old++
	}
	b.numbers = append(b.numbers[:0], b.numbers[old:]...)
	b.owed[request] = d
	b.numbers = append(b.numbers, owing{request, now})
}

// Report says how many tokens were generated of a request, and reports whether that was
// owed. Doing it again does nothing.
func (b *Budgets) Report(request uint64, generated int, now time.Time) bool {
	b.mu.Lock()
	d, ok := b.owed[request]
	delete(b.owed, request)
	b.mu.Unlock()
	if ok {
		b.Correct(d.Budget, d.Tenant, d.Prompt+generated-d.Charged, now)
	}
	return ok
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
	a.tokens = max(-float64(each.Tokens), min(float64(each.Tokens), a.tokens+minutes*float64(each.Tokens)))
}

// until is how long it takes until there is so much more.
func until(more float64, perMinute int64) time.Duration {
	if more <= 0 || perMinute <= 0 {
		return 0
	}
	return time.Duration(more / float64(perMinute) * float64(time.Minute))
}
