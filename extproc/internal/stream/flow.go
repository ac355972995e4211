package stream

import (
	"bytes"
	"hash/maphash"
	"strconv"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/internal/wire"
)

// tickEvery is how often one that waits looks whether there is room: that may be so
// though nobody has left, for example when an endpoint has come.
const tickEvery = 100 * time.Millisecond

// held is what an exchange keeps of flow control.
type held struct {
	pass   flow.Pass
	ticket *flow.Ticket // nil: it does not wait
	// What its wait holds up: the reply of a kind, and then a Duplex body, and behind
	// that what with says: the body's end, or trailers.
	kind, with Kind
	body       []byte
	blind      bool
	// What it has spent of its tenant's budget, in tokens; below 0: nothing.
	spent int
	used  int // tokens as the engine counted them; 0: not known
}

// admit asks for a place. With neither an error nor a ticket the request goes on.
func (x *Exchange) admit(blind bool, now time.Time) *openai.Error {
	p := x.table.Policy.Flow
	x.flow.spent = -1
	if p == nil || x.head.Method != "POST" {
		return nil // what only looks costs nothing
	}
	if err := x.spend(p, now); err != nil {
		return err
	}
	x.flow.blind = blind
	ask := x.ask(now)
	q := x.core.flow.Queue(x.model.Name)
	if ask.Priority == flow.Sheddable && q.Full(p) && x.degrade(now) {
		return nil
	}
	a := q.Enter(&ask, x.model)
	x.flow.pass, x.flow.ticket = a.Pass, a.Ticket
	if a.Refusal.Reason != flow.None && !x.degrade(now) {
		return openai.Overloaded(x.model.Name, x.decision.Priority, a.Refusal.Retry)
	}
	return nil
}

// ask is the request as flow control sees it.
func (x *Exchange) ask(now time.Time) flow.Ask {
	return flow.Ask{
		Policy: x.table.Policy.Flow, Priority: flow.PriorityOf(x.decision.Priority), Tenant: x.head.Tenant,
		Tokens: x.decision.PromptTokens + x.decision.OutputTokens, Now: now, Patience: x.head.Patience,
	}
}

// degrade takes a place at the smaller model of the policy, if it is a sheddable
// request and that model has room.
func (x *Exchange) degrade(now time.Time) bool {
	p, d := x.table.Policy.Flow, &x.decision
	small := x.table.Models[p.Degrade[x.model.Name]]
	seen := x.head.Mode == Buffered || x.head.Mode == Duplex
	if d.Priority != wire.Sheddable || small == nil || x.flow.blind || !seen || x.request.Previous != nil {
		return false
	}
	ask := x.ask(now)
	pass, ok := x.core.flow.Queue(small.Name).Try(&ask, small)
	if !ok {
		return false
	}
	if x.asked == "" {
		x.asked = x.model.Name
	}
	x.model, x.flow.pass = small, pass
	x.renamed = x.request.WithModel(x.renamed[:0], small.Name)
	x.forward = x.renamed
	x.core.metrics.renamed.Inc()
	x.core.flow.Degraded()
	d.Model, d.Asked = small.Name, x.asked
	d.PromptTokens, d.Exact = x.count(false, now)
	d.OutputTokens = x.output()
	return true
}

// spend takes the request from its tenant's budget.
func (x *Exchange) spend(p *flow.Policy, now time.Time) *openai.Error {
	b := x.core.flow.Budgets(p)
	if b == nil {
		return nil
	}
	tokens := x.decision.PromptTokens + x.decision.OutputTokens
	left := b.Spend(p.Budget, x.head.Tenant, tokens, now)
	if left.Over == flow.OverNothing {
		x.flow.spent = tokens
		return nil
	}
	x.core.flow.OverBudget(left.Over)
	return openai.OverLimit(left.Over.String(), left.Retry,
		openai.Limit{Of: "requests", Most: p.Budget.Requests, Remaining: left.Requests, Reset: left.RequestsReset},
		openai.Limit{Of: "tokens", Most: p.Budget.Tokens, Remaining: left.Tokens, Reset: left.TokensReset})
}

// count takes in how many tokens the engine says that it needed.
func (f *held) count(usage string) {
	if f.spent < 0 || usage == "" {
		return
	}
	if u, ok := parseUsage(usage); ok {
		f.used = u.Prompt + u.Completion
	}
}

// settle gives back what the exchange holds of flow control. It comes before it
// leaves its endpoint's load: see flow.Pass.
func (x *Exchange) settle(now time.Time) {
	if x.flow.ticket != nil {
		x.flow.ticket.Drop(now)
		x.flow.ticket = nil
	}
	x.flow.pass.Release(now)
	if x.flow.spent < 0 || x.table == nil || x.table.Policy.Flow == nil {
		return
	}
	more := -x.flow.spent // of an answer that there was none of
	switch {
	case x.good && x.flow.used > 0:
		more = x.flow.used - x.flow.spent
	case x.good:
		more = 0
	}
	p := x.table.Policy.Flow
	if b := x.core.flow.Budgets(p); b != nil && more != 0 {
		b.Correct(p.Budget, x.head.Tenant, more, now)
	}
	x.flow.spent = -1
}

// suspend makes the exchange wait: the reply of the kind comes later. Envoy is told,
// if it may be that it would not wait so long.
func (x *Exchange) suspend(k Kind, now time.Time, out []Reply) []Reply {
	x.phase, x.flow.kind = suspended, k
	x.laps.stop()
	p := x.table.Policy.Flow
	if p.GatewayTimeout <= flow.EveryGateway || x.flow.ticket.Until().Sub(now) <= 0 {
		return out
	}
	return append(out, Reply{Kind: Extend, Wait: p.GatewayTimeout})
}

// Waits is the ticket of an exchange that waits; nil: it doesn't.
func (x *Exchange) Waits() *flow.Ticket { return x.flow.ticket }

// Tick looks whether the exchange, which waits, may go on.
func (x *Exchange) Tick(now time.Time) {
	if t := x.current(); t.Policy.Flow != nil && t.Models[x.model.Name] != nil {
		x.table, x.model = t, t.Models[x.model.Name] // the fleet may be another by now
	}
	x.flow.ticket.Tick(x.table.Policy.Flow, x.model, now)
}

// Resume goes on after the wait.
func (x *Exchange) Resume(o flow.Outcome, now time.Time, out []Reply) []Reply {
	f := &x.flow
	f.ticket, f.pass = nil, o.Pass
	x.phase = decided
	if m := x.current().Models[x.model.Name]; m != nil {
		x.table, x.model = x.current(), m
	}
	if o.Refusal.Reason != flow.None && !x.degrade(now) {
		return x.fail(openai.Overloaded(x.model.Name, x.decision.Priority, o.Refusal.Retry), out)
	}
	d, err := x.place(f.blind, now)
	out = x.conclusion(f.kind, d, err, out)
	return x.passOn(f.body, f.with, out)
}

// hurry goes on without waiting any longer: nobody waits for the answer.
func (x *Exchange) hurry(now time.Time, out []Reply) []Reply {
	x.flow.ticket.Drop(now)
	return x.Resume(flow.Outcome{}, now, out)
}

// passOn sends on what a Duplex decision held up: the body, and its end or trailers.
func (x *Exchange) passOn(body []byte, with Kind, out []Reply) []Reply {
	if x.phase == suspended {
		x.flow.body, x.flow.with = body, with
		return out
	}
	if with == RequestHeaders || x.phase == over {
		return out // nothing
	}
	out = echo(RequestBody, x.outgoing(body), with == RequestBody, out)
	if with == RequestTrailers {
		out = append(out, Reply{Kind: RequestTrailers})
	}
	return out
}

// flowHeader takes in a header that matters to flow control; false: it doesn't.
func (in *inbound) flowHeader(p *flow.Policy, key, value []byte) bool {
	head := &in.Request
	switch name := string(key); { // does not escape
	case name == wire.TimeoutHeader || name == wire.EnvoyTimeoutHeader:
		if ms, err := strconv.ParseInt(string(value), 10, 32); err == nil && ms > 0 {
			wait := time.Duration(ms) * time.Millisecond
			if head.Patience == 0 || wait < head.Patience {
				head.Patience = wait
			}
		}
	case p.TenantHeader != "" && name == p.TenantHeader,
		p.TenantHeader == "" && (name == "authorization" || name == "x-api-key"):
		head.Tenant = maphash.Bytes(in.exchange.core.seed, value[bytes.LastIndexByte(value, ' ')+1:]) | 1
	default:
		return false
	}
	return true
}
