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
// release, and what it has spent settled; the zero admission has nothing.
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
	// request is the number by which it is reported what was generated, by whoever by is; 0: it
	// needn't be.
	request uint64
	by      flow.Source
}

// number gives the request a number where its tokens are to be paid for.
func (s *spending) number() {
	if s.budgets != nil && s.budget.Tokens > 0 {
		s.request = rand.Uint64() | 1
	}
}

// owe notes that a request with a number is charged in advance until it is settled. by is
// who will say what was generated.
func (s *spending) owe(prompt int, by flow.Source, now time.Time) {
	if s.by = by; s.request == 0 {
		return
	}
	s.budgets.Owe(s.request, flow.Debt{Budget: s.budget, Tenant: s.tenant, Prompt: prompt, Charged: s.tokens, By: by}, now)
}

// settle says what the request has needed in all, and who says so. Doing it again does nothing.
func (s *spending) settle(tokens int, by flow.Source, now time.Time) {
	switch {
	case s.budgets == nil:
	case s.request != 0:
		s.budgets.Settle(s.request, tokens, by, now)
	case tokens != s.tokens:
		s.budgets.Correct(s.budget, s.tenant, tokens-s.tokens, now)
	}
	*s = spending{}
}

// leave says that the request has ended, and is settled by who reports what it has needed. Doing it again does
// nothing.
func (s *spending) leave(now time.Time) {
	if s.request != 0 {
		s.budgets.End(s.request, now)
	}
	*s = spending{}
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
	if why.Reason == flow.Late && u.model.Awaits(in.now) {
		return flow.Pass{}, nobody(u.model, in.head.Only)
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
	if u.priority != wire.Sheddable || small == nil || u.blind || !whole || r.Continues() != nil {
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
	s := spending{budgets: b, budget: p.Budget, tenant: in.head.Tenant, tokens: n.prompt + n.reserved}
	left := b.Spend(s.budget, s.tenant, s.tokens, in.now)
	if left.Over == flow.OverNothing {
		return s, nil
	}
	c.OverBudget(left.Over)
	return spending{}, openai.OverLimit(left.Over.String(), left.Retry,
		openai.Limit{Of: "requests", Most: p.Budget.Requests, Remaining: left.Requests, Reset: left.RequestsReset},
		openai.Limit{Of: "tokens", Most: p.Budget.Tokens, Remaining: left.Tokens, Reset: left.TokensReset})
}

// release gives back what the request has of flow control; what it has spent is settled
// elsewhere. It comes before the request leaves its endpoint's load: see flow.Pass.
// Doing it again does nothing.
func (a *admission) release(now time.Time) {
	if a.ticket != nil {
		a.ticket.Drop(now)
	}
	a.pass.Release(now)
	*a = admission{spent: a.spent}
}
