package stream

import (
	"math"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/meter"
	"millrace.dev/millrace/extproc/internal/pick"
)

// What a request is charged, and when it is known: see package flow.

// owe charges a request in advance that is sent to an endpoint, and has its tokens found out where
// its engine will not say them. Those that nobody pays for are metered, too, so that others
// are not charged for them.
func (x *Exchange) owe(first *pick.Candidate, now time.Time) {
	p, n := x.table.Policy.Flow, &x.counted
	if p == nil || p.Budget.Tokens == 0 {
		return
	}
	s, by := &x.admission.spent, flow.Reserved
	switch {
	case n.output == 0 && n.most > 0:
		by = flow.Prompt
	case first.Ours():
		by = flow.Engine
	default:
		by = flow.Counters
	}
	s.number()
	if by == flow.Counters && !x.meter(first, now) {
		by = flow.Reserved
	}
	s.owe(n.prompt, by, now)
}

// meter has the tokens of a request found out by its engine's counters; false: they are not known.
func (x *Exchange) meter(first *pick.Candidate, now time.Time) bool {
	s, n := &x.admission.spent, &x.counted
	run := meter.Run[pick.Metered]{
		Who:  pick.Metered{Request: s.request, Model: x.understood.model, Shape: n.shape},
		From: now.Add(milliseconds(first.Wait + first.Load + first.Prefill)),
		Most: int(min(int64(n.most)*int64(n.shape.Choices), math.MaxInt32)), Reserved: n.reserved,
	}
	if s.request != 0 {
		run.Who.Payer = x.core
	}
	x.metering = first.Live.Meter(run, now)
	return x.metering.On()
}

// charge settles what the request is charged, or has it settled by who will know.
func (x *Exchange) charge(now time.Time) {
	a, s, n := &x.answer, &x.admission.spent, &x.counted
	if x.seen.answered && a.tail.found.ok && a.by == flow.Unanswered {
		t := &a.tail.found
		a.usage, a.by = pick.Usage{Prompt: t.prompt, Completion: t.completion}, flow.Body
		x.learnLength(a.usage, now)
	}
	switch {
	case x.decision.Choice == nil, a.begun && !a.good: // it was not sent, or is not answered
		x.metering.Known(-1, now)
		s.settle(0, flow.Unanswered, now)
	case a.by != flow.Unanswered:
		made := a.usage.Completion
		if n.most < math.MaxInt32 {
			made = min(made, n.most*n.shape.Choices)
		}
		x.metering.Known(made, now)
		x.priced(true)
		s.settle(a.usage.Prompt+made, a.by, now)
	case s.by == flow.Prompt:
		s.settle(n.prompt, flow.Prompt, now)
	default:
		if a.good {
			x.unsaid(now)
		}
		x.metering.Leave(now)
		s.leave(now)
	}
}

// priced notes at the endpoint that answered whether it is known what it has generated.
func (x *Exchange) priced(known bool) {
	if x.answer.served != nil && x.admission.spent.request != 0 {
		x.answer.served.Priced(known)
	}
}

// unsaid is priced for an answer that did not say it: what the request is charged by is as the first
// choice has it; of another one that answered, what that has counts.
func (x *Exchange) unsaid(now time.Time) {
	switch served := x.answer.served; {
	case served == nil:
	case served.Live == x.choice.List[0].Endpoint.Live:
		x.priced(x.admission.spent.by != flow.Reserved)
	default:
		x.priced(served.Ours() || served.Live.Metered(now))
	}
}

func milliseconds(ms float64) time.Duration {
	return time.Duration(min(max(0, ms), 1e12) * float64(time.Millisecond))
}

// Metered takes in what an engine's counters show of a request: see pick.Payer.
func (c *Core) Metered(request uint64, generated int, final bool, now time.Time) {
	c.flow.Report(request, generated, final, now)
}
