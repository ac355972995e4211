package stream

import (
	"cmp"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
)

// answer is what came of a request that was sent.
type answer struct {
	explanation []byte         // for a client that asked why; nil: it didn't, or has it
	begun       bool           // whether its headers came
	at          time.Time      // when they did
	good        bool           // whether the status is 2xx
	served      *pick.Endpoint // who answered; nil: not known
	usage       pick.Usage     // what the engine says that it needed
	by          flow.Source    // who has said usage; Unanswered: nobody yet
	learned     bool           // whether usage was learned from
	tail        tail           // of a body that is shown
	identified  bool           // whether the id of the response was looked for
	status      int            // that the client got; 0: none yet
	attempts    int            // that Envoy made; 0: not said
	observed    Observed       // what the access log gets
	first       time.Duration  // until the first token; 0: not known
}

func (x *Exchange) responseHeaders(head *AnswerHead, now time.Time) Reply {
	a := &x.answer
	reply := Reply{Kind: ResponseHeaders}
	room := roomy(head.Headers, head.HeaderBytes)
	if room {
		reply.Explanation = a.explanation
	}
	if x.table != nil && x.table.Policy.Conformance {
		reply.Served = cmp.Or(head.Served, "fail: missing destination endpoint served metadata")
	}
	a.explanation = nil
	a.begun, a.at = true, now
	x.freeRoom()
	if head.Status != 0 {
		a.status, a.attempts = head.Status, head.Attempts
	}
	if x.decision.Choice == nil || a.good || a.served != nil || head.Status == 0 {
		return reply
	}
	a.good = head.Status >= 200 && head.Status < 300
	x.judge(head, now)
	x.reservation.Begun()
	if a.served != nil {
		x.reservation.Move(a.served.Live)
		x.metering.Move(a.served.Live, now)
	}
	if first := x.choice.List[0].Endpoint; a.good && a.served != nil && a.served.KV != first.KV {
		record(x.table.Policy, &x.located, x.counted.prompt, a.served, now)
	}
	if a.good && a.served != nil && a.served.Ours() && x.counted.stream && !x.understood.blind {
		a.first = now.Sub(x.arrived) // our engines send headers with the first token
	}
	reply.Observed = x.observed(head, x.learn(head, now))
	if x.located.cookie != 0 && head.Status < 500 && room {
		reply.Cookie = x.table.Policy.Cookies.SetCookie(x.located.cookie, now)
		x.located.cookie = 0
	}
	return reply
}

// judge finds out who answered, and whether the engines or the request is to blame where
// nobody could.
func (x *Exchange) judge(head *AnswerHead, now time.Time) {
	head.Key = x.key()
	served, blamed := x.core.picker.Judge(x.understood.model, x.choice.List, head.Answer, x.decision.Hedge, x.sent, now)
	x.answer.served = served
	switch {
	case blamed:
		x.core.hurts.add(head.Key, head.Unanswered >= deadly, now)
	case served != nil:
		x.core.hurts.answer(head.Key)
	case head.Status >= 500:
		x.core.hurts.again(head.Key, now)
	}
	if blamed && x.core.log != nil {
		x.core.log.Warn("a request can't be answered by any engine that it was sent to: no engine is blamed for it", "unanswered", head.Unanswered,
			"model", x.understood.model.Name, "operation", x.api.String(), "priority", x.understood.priority, "prompt_tokens", x.counted.prompt,
			"attempts", max(1, head.Attempts), "endpoint", x.choice.List[0].Address, "session", x.located.session)
	}
}

// key names what is asked; 0: nothing does.
func (x *Exchange) key() uint64 {
	if n := len(x.located.chain); n > 0 {
		return uint64(x.located.chain[n-1].Key)
	}
	return x.content
}

// observed returns what of head is new for the access log. by is who says in it what was
// needed; Unanswered: nobody.
func (x *Exchange) observed(head *AnswerHead, by flow.Source) *Observed {
	a := &x.answer
	known := by != flow.Unanswered
	if !known && (a.first == 0 || head.Status == 0) {
		return nil
	}
	a.observed = Observed{Prompt: -1, Cached: -1, Output: -1, First: -1}
	if known {
		a.observed.Prompt, a.observed.Cached, a.observed.Output = a.usage.Prompt, a.usage.Cached, a.usage.Completion
		if x.admission.spent.request != 0 {
			a.observed.Charged = by
		}
	}
	if head.Status != 0 && a.first > 0 {
		a.observed.First = a.first
	}
	return &a.observed
}

// ended counts the request, at the end of the exchange.
func (x *Exchange) ended(now time.Time) {
	if x.understood.model == nil {
		return
	}
	a := &x.answer
	r := pick.Ended{
		Model: x.understood.model, Priority: x.understood.priority, Outcome: pick.OutcomeOf(a.status),
		Endpoint: a.served, Whole: now.Sub(x.arrived), First: a.first,
	}
	if x.phase == over {
		r.Outcome = pick.Shed
	}
	if a.good && a.served != nil && !a.learned && !a.served.Ours() {
		if c := predicted(x.choice.List, a.served); c.Endpoint.Live == a.served.Live {
			r.Expected = c.Cached // engines that say nothing of single answers
		}
	}
	x.core.picker.End(&r)
	x.core.decided.put(x, &r, now)
	if x.core.flow != nil && !x.head.Probe {
		x.core.flow.Ended(&flow.Ended{
			Tenant: x.head.Tenant, Name: x.head.TenantName, Outcome: r.Outcome.String(),
			Tokens: a.usage.Prompt + a.usage.Completion, Took: r.Whole, Now: now,
		})
	}
}

// responseBody looks for the response's id at the beginning of an answer's body, and for what
// it says that it needed.
func (x *Exchange) responseBody(body []byte, now time.Time) {
	if x.admission.spent.request != 0 {
		x.answer.tail.read(body)
	}
	if x.answer.identified || x.api != apis.Responses || len(body) == 0 {
		return
	}
	x.answer.identified = true
	x.identify(string(responseID(body)), now)
}

// identify takes in the id of the response.
func (x *Exchange) identify(id string, now time.Time) {
	a := &x.answer
	if id == "" || len(id) > longestID || a.served == nil || !a.good || x.api != apis.Responses {
		return
	}
	a.identified = true
	recordResponse(x.table.Policy, x.understood.model, id, x.counted.prompt+x.counted.output, a.served, now)
}

// learn takes in what the engine says of its load, of this request and of its response,
// in headers or trailers. It returns who says what this request needed; Unanswered: nobody.
func (x *Exchange) learn(head *AnswerHead, now time.Time) flow.Source {
	a := &x.answer
	usage, by, ok := head.usage()
	first := a.by == flow.Unanswered
	if ok {
		a.usage, a.by = usage, by
	}
	if a.served == nil {
		return by
	}
	if load, ok := parseLoad(head.Load); ok {
		a.served.ReportFromAnswer(load, now)
	}
	x.identify(head.Response, now)
	switch {
	case !ok || !a.good || a.learned:
		return by
	case head.Usage == "":
		if first {
			x.learnLength(usage, now)
		}
		return by
	}
	a.learned = true
	usage.Shape = x.counted.shape
	x.core.picker.Learn(x.understood.model, a.served, predicted(x.choice.List, a.served), usage, x.sent, now)
	recordAnswer(x.table.Policy, &x.located, &usage, a.served, now)
	return by
}

// learnLength learns how long an answer was, whose engine says of its work what its metrics show.
func (x *Exchange) learnLength(usage pick.Usage, now time.Time) {
	if x.answer.served == nil || !x.answer.good {
		return
	}
	usage.Shape = x.counted.shape
	x.understood.model.LearnLength(usage)
	recordAnswer(x.table.Policy, &x.located, &usage, x.answer.served, now)
}

// predicted is what was predicted of who answered.
func predicted(list []pick.Candidate, served *pick.Endpoint) *pick.Candidate {
	for i := range list {
		if list[i].Live == served.Live {
			return &list[i]
		}
	}
	return &list[0]
}

// parseLoad reads an ORCA load report in its text form. JSON and binary ones
// are left to Envoy: our engines send text.
func parseLoad(s string) (r pick.Report, ok bool) {
	s, ok = strings.CutPrefix(s, wire.LoadText)
	if !ok {
		return r, false
	}
	ok = false
	pairs(s, func(name string, v float64) {
		switch name {
		case wire.LoadRunning, wire.LoadWaiting:
			r.Requests += int64(tokens(v))
			ok = true
			if name == wire.LoadWaiting {
				r.Waiting = int64(tokens(v))
			}
		case wire.LoadKV:
			r.KV = min(v, 1)
		}
	})
	return r, ok
}

// mostNumber is the largest number that is believed.
const mostNumber = 1e15

// pairs calls f for each name=number of a list; others are passed over.
func pairs(s string, f func(name string, v float64)) {
	for s != "" {
		var pair string
		pair, s, _ = strings.Cut(s, ",")
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if v, err := trust.Number(value, 0, mostNumber); err == nil {
			f(name, v)
		}
	}
}

// tokens bounds a count from outside.
func tokens(v float64) int { return int(min(v, 1<<31)) }
