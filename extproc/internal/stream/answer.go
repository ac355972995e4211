package stream

import (
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
)

func (x *Exchange) responseHeaders(ev *Event, out []Reply) []Reply {
	reply := Reply{Kind: ResponseHeaders, Explanation: x.why}
	x.why = nil
	if x.model == nil || x.good || x.served != nil || ev.Answer.Status == 0 {
		return append(out, reply)
	}
	a := &ev.Answer
	x.good = a.Status >= 200 && a.Status < 300
	x.served = x.core.picker.Judge(x.model, x.choice.List, a.Answer, x.sent, ev.At)
	x.held.Begun()
	if x.served != nil {
		x.held.Move(x.served.Live)
	}
	if first := x.choice.List[0].Endpoint; x.good && x.served != nil && x.served.KV != first.KV {
		x.remember(x.served, ev.At)
	}
	x.report(a, ev.At)
	x.flow.count(a.Usage)
	x.noteResponse(a.Response, ev.At)
	if x.cookie != 0 && a.Status < 500 {
		reply.Cookie = x.table.Policy.Cookies.SetCookie(x.cookie, ev.At)
		x.cookie = 0
	}
	return append(out, reply)
}

// report takes in what the engine says of its load and of this request.
func (x *Exchange) report(a *AnswerHead, now time.Time) {
	if x.served == nil {
		return
	}
	if load, ok := parseLoad(a.Load); ok {
		x.served.ReportFromAnswer(load, now)
	}
	usage, ok := parseUsage(a.Usage)
	if !ok || !x.good || x.taught {
		return
	}
	x.taught = true
	usage.Shape = x.shape
	x.core.picker.Learn(x.model, x.served, x.predicted(), usage, x.sent, now)
	x.answered(usage, now)
}

// predicted is what was expected of who answered.
func (x *Exchange) predicted() *pick.Candidate {
	for i := range x.choice.List {
		if x.choice.List[i].Live == x.served.Live {
			return &x.choice.List[i]
		}
	}
	return &x.choice.List[0]
}

// parseUsage reads "prompt=12,cached=0,completion=5,prefill_ms=3.2,decode_ms=40.1".
func parseUsage(s string) (u pick.Usage, ok bool) {
	pairs(s, func(name string, v float64) {
		switch name {
		case wire.UsagePrompt:
			u.Prompt, ok = tokens(v), true
		case wire.UsageCached:
			u.Cached = tokens(v)
		case wire.UsageCompletion:
			u.Completion = tokens(v)
		case wire.UsagePrefill:
			u.PrefillMs = v
		case wire.UsageDecode:
			u.DecodeMs = v
		}
	})
	u.Cached = min(u.Cached, u.Prompt)
	return u, ok
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

// pairs calls f for each name=number of a list; others are passed over.
func pairs(s string, f func(name string, v float64)) {
	for s != "" {
		var pair string
		pair, s, _ = strings.Cut(s, ",")
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		v, err := strconv.ParseFloat(value, 64)
		if err == nil && v >= 0 && v <= 1e15 { // no NaN either
			f(name, v)
		}
	}
}

// tokens bounds a count from outside.
func tokens(v float64) int { return int(min(v, 1<<31)) }
