package stream

import (
	"testing"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

func TestAdmit(t *testing.T) {
	// One endpoint with one slot, and a queue for one request; "n" is the smaller model.
	busy := func(t *pick.Table) {
		oneSlot(t)
		t.Policy.Flow.Queue = 1
		t.Policy.Flow.Degrade = map[string]string{"m": "n"}
		e := *t.Default.Endpoints[0]
		e.Live, e.Slots = new(pick.Live), 1
		t.Models["n"] = &pick.Model{Name: "n", Endpoints: []*pick.Endpoint{&e}, Learned: new(pick.Learned)}
	}
	tests := []struct {
		name     string
		edit     func(*flow.Policy)
		head     func(*RequestHead)
		priority string
		before   int  // requests that were admitted before
		blind    bool // whether the body was not decoded
		// What is expected.
		model  string
		ticket bool
		err    string
	}{
		{name: "there is room", model: "m"},
		{name: "it waits", before: 1, model: "m", ticket: true},
		{name: "too many wait", before: 2, model: "m", err: "overloaded"},
		{name: "what only reads costs nothing", head: func(h *RequestHead) { h.Method = "GET" }, before: 2, model: "m"},
		{name: "a smaller model serves it", priority: wire.Sheddable, before: 2, model: "n"},
		{name: "a body that was not decoded can't be renamed", priority: wire.Sheddable, before: 2, blind: true, model: "m", err: "overloaded"},
		{name: "nor can one that has gone on", priority: wire.Sheddable, before: 2, head: by(Streamed), model: "m", err: "overloaded"},
		{name: "its tenant has used up its budget", edit: func(p *flow.Policy) { p.Budget.Requests = 1 }, before: 1, model: "m", err: "rate_limit_exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1, busy)
			if tt.edit != nil {
				tt.edit(f.table.Policy.Flow)
			}
			ask := func(priority string, blind bool, head func(*RequestHead)) (admission, *understood, *counted, *openai.Error) {
				in := f.inputOf(hello, head)
				u, n := &understood{model: f.model, priority: priority, blind: blind}, &counted{prompt: 100, output: 10}
				var r openai.Request
				if err := r.Parse(in.api, in.body); err != nil {
					t.Fatal(err)
				}
				a, err := admit(f.core.flow, in, u, n, &r, new(bodies))
				return a, u, n, err
			}
			var before []admission
			for range tt.before {
				a, _, _, _ := ask(wire.Standard, false, func(*RequestHead) {})
				before = append(before, a)
			}
			head := tt.head
			if head == nil {
				head = func(*RequestHead) {}
			}
			a, u, n, err := ask(tt.priority, tt.blind, head)
			if got := ""; err != nil || tt.err != "" {
				if err != nil {
					got = err.Code
				}
				if got != tt.err {
					t.Fatalf("error = %v, want %q", err, tt.err)
				}
			}
			if u.model.Name != tt.model || (a.ticket != nil) != tt.ticket {
				t.Errorf("model %q, ticket %v", u.model.Name, a.ticket)
			}
			if renamed := tt.model != "m"; renamed && (u.asked != "m" || u.forward.body == nil || n.shape.API != apis.Chat) {
				t.Errorf("degraded to %+v, %+v", u, n)
			}
			giveBack(&a)
			for i := range before {
				giveBack(&before[i])
			}
			if a, _, _, err := ask(wire.Critical, false, func(*RequestHead) {}); tt.edit == nil && (err != nil || a.ticket != nil) {
				t.Errorf("all was given back, and there is no room: %v", err)
			}
		})
	}
}

func giveBack(a *admission) {
	a.release(epoch)
	a.spent.settle(0, flow.Unanswered, epoch)
}

func TestSettleCorrectsTheBudget(t *testing.T) {
	tests := []struct {
		name string
		used int
		left int64
	}{
		{"no answer: all of it comes back", 0, 1000},
		{"as expected", 600, 400},
		{"fewer than expected", 150, 850},
		{"more than expected", 900, 100},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1, oneSlot)
			p := f.table.Policy.Flow
			p.Budget = flow.Budget{Tokens: 1000}
			in := f.inputOf(hello, func(h *RequestHead) { h.Tenant = 7 })
			a, err := admit(f.core.flow, in, &understood{model: f.model}, &counted{prompt: 590, output: 10, reserved: 10}, new(openai.Request), new(bodies))
			if err != nil {
				t.Fatal(err)
			}
			a.release(epoch)
			a.spent.settle(tt.used, flow.Usage, epoch)
			a.spent.settle(tt.used, flow.Usage, epoch) // does nothing
			if left := f.core.flow.Budgets(p).Spend(p.Budget, 7, 0, epoch); left.Tokens != tt.left {
				t.Errorf("%d tokens are left, want %d", left.Tokens, tt.left)
			}
		})
	}
}
