package stream

import (
	"math/rand/v2"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// Between count and locate a request is admitted: flow control gives it a pass, makes it
// wait, sends it to a smaller model, or refuses it.

// admission is what a request has of flow control. All of it must be given back, see
// settle; the zero admission has nothing.
type admission struct {
	pass   flow.Pass
	ticket *flow.Ticket // nil: the request does not wait
	spent  spending
}

// spending is what a request has spent of its tenant's budget.
type spending struct {
	budgets *flow.Budgets // nil: it has spent nothing
	budget  flow.Budget
	tenant  uint64
	tokens  int
	// request is the number by which the engine reports what was generated; 0: it needn't.
	request uint64
}

// number gives the request a number where its tokens are to be paid for; 0: they are not.
func (s *spending) number() uint64 {
	if s.budgets != nil && s.budget.Tokens > 0 {
		s.request = rand.Uint64() | 1
	}
	return s.request
}

// admit asks flow control for a pass. A request that is admitted neither with a ticket
// nor with an error is sent; u and n are then those of the model that serves it, which
// may be a smaller one. What was admitted must be given back even if there is an error.
func admit(c *flow.Controller, in *input, u *understood, n *counted, r *openai.Request, mem *bodies) (a admission, err *openai.Error) {
	p := in.table.Policy.Flow
	if p == nil || in.head.Method != "POST" || in.api.Row().Counted == apis.Nothing {
		return a, nil // what no model works on costs nothing
	}
	if in.head.Probe {
		c.Probed()
	}
	if a.spent, err = spend(c, p, in, n); err != nil {
		return a, err
	}
	ask := askOf(in, u, n)
	q := c.Queue(u.model.Name)
	if ask.Priority == flow.Sheddable && q.Full(p) {
		if pass, ok := degrade(c, in, u, n, r, mem); ok {
			a.pass = pass
			return a, nil
		}
	}
	answer := q.Enter(&ask, u.model)
	a.pass, a.ticket = answer.Pass, answer.Ticket
	if answer.Refusal.Reason == flow.None {
		return a, nil
	}
	a.pass, err = refused(c, in, u, n, r, mem, answer.Refusal)
	return a, err
}

// refused has a smaller model serve a request that its own model's queue has refused,
// or answers it.
func refused(c *flow.Controller, in *input, u *understood, n *counted, r *openai.Request, mem *bodies, why flow.Refusal) (flow.Pass, *openai.Error) {
	if pass, ok := degrade(c, in, u, n, r, mem); ok {
		return pass, nil
	}
	return flow.Pass{}, openai.Overloaded(u.model.Name, u.priority, why.Retry)
}

// askOf is the request as flow control knows it.
func askOf(in *input, u *understood, n *counted) flow.Ask {
	return flow.Ask{
		Policy: in.table.Policy.Flow, Priority: flow.PriorityOf(u.priority), Tenant: in.head.Tenant,
		Tokens: n.prompt + n.output, Now: in.now, Patience: in.head.Patience,
	}
}

// degrade has the smaller model of the policy serve the request, if it is sheddable and
// that model has room: u and n are then those of the smaller model.
func degrade(c *flow.Controller, in *input, u *understood, n *counted, r *openai.Request, mem *bodies) (flow.Pass, bool) {
	p := in.table.Policy.Flow
	if p == nil {
		return flow.Pass{}, false // the policy has changed while it waited
	}
	small := in.table.Models[p.Degrade[u.model.Name]]
	whole := in.head.Mode == Buffered || in.head.Mode == Duplex
	if u.priority != wire.Sheddable || small == nil || u.blind || !whole || r.Previous != nil {
		return flow.Pass{}, false
	}
	if small.Context > 0 && n.prompt >= small.Context {
		return flow.Pass{}, false
	}
	ask := askOf(in, u, n)
	pass, ok := c.Queue(small.Name).Try(&ask, small)
	if !ok {
		return flow.Pass{}, false
	}
	if u.asked == "" {
		u.asked = u.model.Name
	}
	u.model, u.name = small, small.Name
	u.rename(r, mem)
	*n = count(in, u, r)
	c.Degraded()
	return pass, true
}

// spend takes the request from its tenant's budget.
func spend(c *flow.Controller, p *flow.Policy, in *input, n *counted) (spending, *openai.Error) {
	b := c.Budgets(p)
	if b == nil || in.head.Probe {
		return spending{}, nil
	}
	s := spending{budgets: b, budget: p.Budget, tenant: in.head.Tenant, tokens: n.prompt + n.output}
	left := b.Spend(s.budget, s.tenant, s.tokens, in.now)
	if left.Over == flow.OverNothing {
		return s, nil
	}
	c.OverBudget(left.Over)
	return spending{}, openai.OverLimit(left.Over.String(), left.Retry,
		openai.Limit{Of: "requests", Most: p.Budget.Requests, Remaining: left.Requests, Reset: left.RequestsReset},
		openai.Limit{Of: "tokens", Most: p.Budget.Tokens, Remaining: left.Tokens, Reset: left.TokensReset})
}

// settle gives back what the request has of flow control, now that it has needed so
// many tokens. It comes before the request leaves its endpoint's load: see flow.Pass.
// Doing it again does nothing.
func (a *admission) settle(used int, now time.Time) {
	if a.ticket != nil {
		a.ticket.Drop(now)
	}
	a.pass.Release(now)
	if s := &a.spent; s.budgets != nil && used != s.tokens {
		s.budgets.Correct(s.budget, s.tenant, used-s.tokens, now)
	}
	*a = admission{}
}
