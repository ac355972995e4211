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
		b, l, now := newBudgets(10, ignore), &ledger{each, map[uint64][2]float64{}, epoch}, epoch
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
			l.tenants[tenant] = [2]float64{left[0], min(3000, left[1]-float64(more))}
		}
	}
	if refused < 200 {
		t.Errorf("only %d requests were refused", refused)
	}
}

func TestBudgetSaysWhenToComeBack(t *testing.T) {
	each := Budget{Requests: 2, Tokens: 600}
	b := newBudgets(10, ignore)
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
	b := newBudgets(2, ignore)
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

// ignore takes no notice of what was charged.
func ignore(Source, int) {}

// TestDebts settles what was charged in advance, once, while it is remembered.
func TestDebts(t *testing.T) {
	each := Budget{Tokens: 1000}
	tests := []struct {
		name string
		by   Source
		then func(b *Budgets)
		left int64
		want Source // that it is charged by; 0: it is not settled
	}{
		{"nobody reports", Counters, func(*Budgets) {}, 600, 0},
		{"nobody reports, and soon never will", Counters, func(b *Budgets) { b.End(2, epoch.Add(owedFor+1)) }, 850, Reserved},
		{"nobody can", Reserved, func(*Budgets) {}, 600, Reserved},
		{"fewer were generated", Counters, func(b *Budgets) { b.Report(1, 90, true, epoch) }, 900, Counters},
		{"more were", Engine, func(b *Budgets) { b.Report(1, 890, true, epoch) }, 100, Engine},
		{"it is reported again", Counters, func(b *Budgets) { b.Report(1, 90, true, epoch); b.Report(1, 90, true, epoch) }, 900, Counters},
		{"of another request", Counters, func(b *Budgets) { b.Report(2, 90, true, epoch) }, 600, 0},
		{"so far fewer", Counters, func(b *Budgets) { b.Report(1, 90, false, epoch) }, 600, 0},
		{"so far more", Counters, func(b *Budgets) { b.Report(1, 490, false, epoch) }, 500, 0},
		{"so far more, and in the end still more", Counters, func(b *Budgets) { b.Report(1, 490, false, epoch); b.Report(1, 590, true, epoch) }, 400, Counters},
		{"it is settled", Counters, func(b *Budgets) { b.Settle(1, 50, Usage, epoch); b.Report(1, 90, true, epoch) }, 950, Usage},
		{"behind as many as are kept", Counters, func(b *Budgets) {
			for i := range uint64(mostOwed) {
				b.End(10+i, epoch)
			}
			b.Report(1, 90, true, epoch)
		}, 600, Reserved},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var by Source
			b := newBudgets(10, func(s Source, _ int) { by = s })
			b.Spend(each, 7, 400, epoch)
			b.Owe(1, Debt{Budget: each, Tenant: 7, Prompt: 10, Charged: 400, By: tt.by}, epoch)
			b.End(1, epoch)
			tt.then(b)
			if left := b.Spend(each, 7, 0, epoch); left.Tokens != tt.left {
				t.Errorf("%d tokens are left, want %d", left.Tokens, tt.left)
			}
			if by != tt.want {
				t.Errorf("charged by %v, want %v", by, tt.want)
			}
			if settled := tt.want != 0; settled != (b.Reserved() == 0) {
				t.Errorf("%d tokens are reserved", b.Reserved())
			}
		})
	}
}

// TestDebtsAreBounded begins and ends many requests of which nobody reports.
func TestDebtsAreBounded(t *testing.T) {
	b := newBudgets(10, ignore)
	for i := range uint64(5 * mostOwed) {
		b.Owe(1+i, Debt{Budget: Budget{Tokens: 9}, Tenant: 7, Charged: 1, By: Counters}, epoch)
		b.End(1+i, epoch)
	}
	if len(b.debts) > mostOwed || len(b.ended) > mostOwed || b.Reserved() > mostOwed {
		t.Errorf("%d debts, %d of them ended, at most %d are kept", len(b.debts), len(b.ended), mostOwed)
	}
}

// TestNobodyUsesMoreThanItsBudget has tenants that ask for as much as they can, for an hour, whatever
// they say of it before: what was generated for them is never more than their budget, what they had at the
// start, and one request's excess over what it said.
func TestNobodyUsesMoreThanItsBudget(t *testing.T) {
	each := Budget{Tokens: 300}
	const assumed, context = 100, 5000
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 11))
		b, now, number, used := newBudgets(10, ignore), epoch, uint64(0), 0
		for now.Sub(epoch) < time.Hour {
			now = now.Add(time.Duration(1+r.IntN(3000)) * time.Millisecond)
			limit := []int{1, 30, 400, context, 0}[r.IntN(5)] // 0: none is said
			made := 1 + r.IntN(max(1, limit))
			if limit == 0 {
				limit, made = assumed, r.IntN(context)
			}
			if b.Spend(each, 7, 10+limit, now).Over != OverNothing {
				continue
			}
			number++
			b.Owe(number, Debt{Budget: each, Tenant: 7, Prompt: 10, Charged: 10 + limit, By: Counters}, now)
			used += 10 + made
			b.End(number, now)
			b.Report(number, made, true, now)
			// Each beyond its turn is paid for before the next.
			if most := float64(each.Tokens)*(1+now.Sub(epoch).Minutes()) + context; float64(used) > most {
				t.Fatalf("seed %d: %d tokens used in %v, at most %.0f may be", seed, used, now.Sub(epoch), most)
			}
		}
		if float64(used) < 0.5*300*60 {
			t.Errorf("seed %d: only %d tokens were used in an hour", seed, used)
		}
	}
}

// TestReservedTokensComeBackSoon has a client come again soon where those that run may
// give back enough.
func TestReservedTokensComeBackSoon(t *testing.T) {
	each := Budget{Tokens: 600}
	b := newBudgets(10, ignore)
	b.Spend(each, 7, 600, epoch)
	b.Owe(1, Debt{Budget: each, Tenant: 7, Charged: 600, By: Counters}, epoch)
	if got := b.Spend(each, 7, 300, epoch); got.Over != OverTokens || got.Retry != time.Second {
		t.Errorf("Spend() = %+v, want to come again in a second", got)
	}
	b.Settle(1, 600, Usage, epoch)
	if got := b.Spend(each, 7, 300, epoch); got.Retry != 30*time.Second {
		t.Errorf("Spend() = %+v, want 30s: nothing came back", got)
	}
}
