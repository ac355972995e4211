package flow

import (
	"math/rand/v2"
	"testing"
	"time"
)

// ledger is the naive twin of a Budgets with room for all: it adds up every event.
type ledger struct {
	each    Budget
	tenants map[uint64][2]float64 // requests and tokens left
	last    time.Time
}

// pass refills all tenants.
func (l *ledger) pass(now time.Time) {
	minutes := now.Sub(l.last).Minutes()
	l.last = now
	for k, left := range l.tenants {
		l.tenants[k] = [2]float64{
			min(float64(l.each.Requests), left[0]+minutes*float64(l.each.Requests)),
			min(float64(l.each.Tokens), left[1]+minutes*float64(l.each.Tokens)),
		}
	}
}

func (l *ledger) spend(tenant uint64, tokens int) bool {
	left, ok := l.tenants[tenant]
	if !ok {
		left = [2]float64{float64(l.each.Requests), float64(l.each.Tokens)}
		l.tenants[tenant] = left
	}
	if left[0] < 1-1e-6 || left[1] < min(float64(tokens), float64(l.each.Tokens))-1e-6 {
		return false
	}
	l.tenants[tenant] = [2]float64{left[0] - 1, left[1] - float64(tokens)}
	return true
}

func TestBudgetsAgainstTheirTwin(t *testing.T) {
	refused := 0
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 3))
		each := Budget{Requests: 20, Tokens: 3000}
		b, l, now := newBudgets(10), &ledger{each, map[uint64][2]float64{}, epoch}, epoch
		for range 500 {
			now = now.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
			l.pass(now)
			tenant, tokens := r.Uint64N(4), r.IntN(400)
			got := b.Spend(each, tenant, tokens, now)
			if want := l.spend(tenant, tokens); (got.Over == OverNothing) != want {
				t.Fatalf("seed %d: Spend(%d, %d) = %+v, the twin has %v", seed, tenant, tokens, got, l.tenants[tenant])
			} else if !want {
				refused++
				continue
			}
			more := r.IntN(200) - 100
			b.Correct(each, tenant, more, now)
			left := l.tenants[tenant]
			l.tenants[tenant] = [2]float64{left[0], max(-3000, min(3000, left[1]-float64(more)))}
		}
	}
	if refused < 200 {
		t.Errorf("only %d requests were refused", refused)
	}
}

func TestBudgetSaysWhenToComeBack(t *testing.T) {
	each := Budget{Requests: 2, Tokens: 600}
	b := newBudgets(10)
	b.Spend(each, 1, 600, epoch)
	got := b.Spend(each, 1, 60, epoch)
	want := Left{Requests: 1, RequestsReset: 30 * time.Second, TokensReset: time.Minute, Over: OverTokens, Retry: 6 * time.Second}
	if got != want {
		t.Errorf("Spend() = %+v, want %+v", got, want)
	}
	if got := b.Spend(each, 1, 60, epoch.Add(got.Retry)); got.Over != OverNothing {
		t.Errorf("after the wait that it named: %+v", got)
	}
	if got := b.Spend(each, 1, 1, epoch.Add(7*time.Second)); got.Over != OverRequests {
		t.Errorf("a third request: %+v, want too many requests", got)
	}
	if got := b.Spend(each, 2, 5000, epoch); got.Over != OverNothing {
		t.Errorf("a request larger than the whole budget, which is untouched: %+v", got)
	}
}

func TestBudgetsForgetWhoIsAwayForLongest(t *testing.T) {
	each := Budget{Requests: 1}
	b := newBudgets(2)
	for tenant := range uint64(1000) {
		b.Spend(each, tenant, 1, epoch)
		b.Spend(each, 1, 1, epoch)
	}
	if n := len(b.tenants); n != 2 || b.recent.Len() != 2 {
		t.Errorf("%d tenants are remembered, want 2", n)
	}
	if got := b.Spend(each, 1, 1, epoch); got.Over != OverRequests {
		t.Errorf("who asks all the time was forgotten: %+v", got)
	}
	b.Correct(each, 12345, 1, epoch) // nobody: does nothing
}

// TestDebts corrects what was charged by estimate, once, while it is remembered.
func TestDebts(t *testing.T) {
	each := Budget{Tokens: 1000}
	d := Debt{Budget: each, Tenant: 7, Prompt: 10, Charged: 400}
	tests := []struct {
		name string
		then func(b *Budgets)
		left int64
	}{
		{"nobody reports", func(*Budgets) {}, 600},
		{"fewer were generated", func(b *Budgets) { b.Report(1, 90, epoch) }, 900},
		{"more were", func(b *Budgets) { b.Report(1, 890, epoch) }, 100},
		{"it is reported again", func(b *Budgets) { b.Report(1, 90, epoch); b.Report(1, 90, epoch) }, 900},
		{"of another request", func(b *Budgets) { b.Report(2, 90, epoch) }, 600},
		{"behind as many as are kept", func(b *Budgets) {
			for i := range uint64(mostOwed) {
				b.Owe(10+i, d, epoch)
			}
			b.Report(1, 90, epoch)
		}, 600},
		{"the last of as many as are kept", func(b *Budgets) {
			for i := range uint64(mostOwed) {
				b.Owe(10+i, d, epoch)
			}
			b.Report(10, 90, epoch)
		}, 900},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBudgets(10)
			b.Spend(each, 7, 400, epoch)
			b.Owe(1, d, epoch)
			tt.then(b)
			if left := b.Spend(each, 7, 0, epoch); left.Tokens != tt.left {
				t.Errorf("%d tokens are left, want %d", left.Tokens, tt.left)
			}
		})
	}
	b := newBudgets(10)
	for range 3 {
		for i := range uint64(2 * mostOwed) {
			b.Owe(1+i, d, epoch)
		}
	}
	if len(b.owed) > mostOwed || len(b.numbers) > mostOwed {
		t.Errorf("%d debts and %d numbers, at most %d are kept", len(b.owed), len(b.numbers), mostOwed)
	}
	b.Owe(1, d, epoch.Add(owedFor+time.Second))
	if len(b.owed) != 1 {
		t.Errorf("%d debts, want the only one that is not old", len(b.owed))
	}
}
