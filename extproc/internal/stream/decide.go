package stream

import (
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/wire"
)

// decide chooses where the request goes. Without a decision and without an
// error Envoy's own policy chooses.
func (x *Exchange) decide(body []byte, whole bool, now time.Time) (*Decision, *openai.Error) {
	if x.table == nil && x.head.Only != nil {
		return nil, x.nobody("")
	}
	if x.table == nil {
		x.core.metrics.open.Inc()
		return nil, nil
	}
	x.laps.begin(x.core.metrics, &x.turn)
	body, err := x.unpack(body, whole)
	if err != nil {
		return nil, err
	}
	blind := x.api == openai.Other || !whole && body == nil || x.packed()
	if !blind {
		if err := x.parse(body, now); err != nil && whole {
			return nil, err
		} else if err != nil {
			blind = true
		}
	}
	if blind {
		x.guess(body, now)
	}
	if x.model == nil && x.head.Only != nil {
		return nil, x.nobody("")
	}
	if x.model == nil {
		x.core.metrics.open.Inc()
		return nil, nil
	}
	x.describe(blind, len(body))
	x.laps.end(lapRead)
	return x.choose(blind, now)
}

// parse reads the body and finds its model.
func (x *Exchange) parse(body []byte, now time.Time) *openai.Error {
	if err := x.request.Parse(x.api, body); err != nil {
		return err
	}
	if len(x.request.Model) == 0 {
		return openai.NoModel()
	}
	if x.reroute(now); x.model != nil {
		return nil
	}
	if x.model = x.table.Model(x.request.Model); x.model == nil {
		return openai.ModelNotFound(string(x.request.Model))
	}
	return nil
}

// guess finds the model of a request that we do not understand: the one that
// it names, else the default.
func (x *Exchange) guess(body []byte, now time.Time) {
	x.model = nil
	if len(body) > 0 && x.request.Parse(x.api, body) == nil {
		if x.reroute(now); x.model == nil {
			x.model = x.table.Model(x.request.Model)
		}
	} else if len(body) > 0 && len(x.request.Model) > 0 {
		// Envoy has cut it off behind the model's name. It can't be changed: the rest of
		// it goes on without us.
		x.model = x.table.Model(x.request.Model)
	} else if body == nil && x.api != openai.Other && len(x.table.Policy.Rewrites) > 0 {
		x.core.metrics.unseen.Inc()
	}
	if x.model == nil {
		x.model = x.table.Default
	}
}

// choose finds a host, or a place in the queue, for the request.
func (x *Exchange) choose(blind bool, now time.Time) (*Decision, *openai.Error) {
	d := &x.decision
	*d = Decision{Model: x.model.Name, Asked: x.asked, API: x.api, Priority: x.priority(), Choice: &x.choice}
	d.PromptTokens, d.Exact = x.count(blind, now)
	d.OutputTokens = x.output()
	x.laps.end(lapCount)
	if err := x.admit(blind, now); err != nil || x.flow.ticket != nil {
		return nil, err
	}
	return x.place(blind, now)
}

// place picks the hosts of a request that may go on, and takes the first one's place.
func (x *Exchange) place(blind bool, now time.Time) (*Decision, *openai.Error) {
	d, m, policy := &x.decision, x.model, x.table.Policy
	if x.api != openai.CountTokens { // it leaves nothing in the engine's cache
		// The beginning of what goes on from a response is not in the body.
		d.Session = x.goOnFrom(x.locate(d.PromptTokens, blind || x.request.Previous != nil, now))
	}
	x.laps.end(lapLocate)
	most := policy.Candidates
	switch d.Priority {
	case wire.Critical:
		most = policy.Critical
	case wire.Sheddable:
		most = policy.Sheddable
	}
	d.Retries = most - 1
	q := pick.Query{
		Model: m, Prompt: d.PromptTokens, Output: d.OutputTokens, Found: &x.found, Blind: blind, Only: x.head.Only, Most: most, Now: now,
	}
	if err := x.core.picker.Pick(&q, &x.choice); err != nil {
		x.model = nil
		return nil, x.nobody(m.Name)
	}
	x.pin()
	if x.head.Debug && policy.Explain {
		x.why = d.explain(&q)
	}
	first := &x.choice.List[0]
	x.held = first.Reserve(&q)
	x.flow.pass.Reserved()
	x.sent = now
	x.laps.end(lapChoose)
	if policy.Ours {
		d.Chain = x.chain
	}
	x.remember(first.Endpoint, now)
	x.laps.end(lapRecord)
	return d, nil
}

// priority is the request's own, if it names one that exists.
func (x *Exchange) priority() string {
	switch p := x.head.Priority; p {
	case wire.Critical, wire.Standard, wire.Sheddable:
		return p
	default:
		return x.table.Policy.Priority
	}
}

// isJSON reports whether a content type is JSON; a client that says none is believed.
func isJSON(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	kind = strings.TrimSpace(kind)
	return kind == "" || strings.EqualFold(kind, "application/json") ||
		len(kind) > 5 && strings.EqualFold(kind[len(kind)-5:], "+json")
}

// printable bounds a client's name for a log.
func printable(s string) string {
	s = s[:min(len(s), 64)]
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return fmt.Sprintf("header:%016x", uint64(session.Named(0, s)))
		}
	}
	return s
}
