package stream

import (
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
)

// Priorities of requests.
const (
	critical  = "critical"
	standard  = "standard"
	sheddable = "sheddable"
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
	blind := x.api == openai.Other || !whole && body == nil || x.head.ContentEncoding != ""
	if !blind {
		if err := x.parse(body); err != nil && whole {
			return nil, err
		} else if err != nil {
			blind = true
		}
	}
	if blind {
		x.guess(body)
	}
	if x.model == nil && x.head.Only != nil {
		return nil, x.nobody("")
	}
	if x.model == nil {
		x.core.metrics.open.Inc()
		return nil, nil
	}
	return x.choose(blind, now)
}

// parse reads the body and finds its model.
func (x *Exchange) parse(body []byte) *openai.Error {
	if err := x.request.Parse(x.api, body); err != nil {
		return err
	}
	if len(x.request.Model) == 0 {
		return openai.NoModel()
	}
	if x.model = x.table.Model(x.request.Model); x.model == nil {
		return openai.ModelNotFound(string(x.request.Model))
	}
	return nil
}

// guess finds the model of a request that we do not understand: the one that
// it names, else the default.
func (x *Exchange) guess(body []byte) {
	x.model = x.table.Default
	if x.request.Parse(x.api, body) == nil {
		if m := x.table.Model(x.request.Model); m != nil {
			x.model = m
		}
	}
}

// choose picks the hosts and takes the first one's place.
func (x *Exchange) choose(blind bool, now time.Time) (*Decision, *openai.Error) {
	d, m, policy := &x.decision, x.model, x.table.Policy
	*d = Decision{Model: m.Name, API: x.api, Priority: x.priority(), Choice: &x.choice}
	d.PromptTokens, d.Exact = x.count(blind)
	d.OutputTokens = x.output()
	d.Session = x.locate(d.PromptTokens, blind, now)
	most := policy.Candidates
	switch d.Priority {
	case critical:
		most = policy.Critical
	case sheddable:
		most = policy.Sheddable
	}
	d.Retries = most - 1
	err := x.core.picker.Pick(&pick.Query{
		Model: m, Prompt: d.PromptTokens, Output: d.OutputTokens, Found: &x.found, Blind: blind, Only: x.head.Only, Most: most, Now: now,
	}, &x.choice)
	if err != nil {
		x.model = nil
		return nil, x.nobody(m.Name)
	}
	first := &x.choice.List[0]
	x.held = first.Reserve(d.PromptTokens-first.Cached+d.OutputTokens, now)
	x.sent = now
	if policy.Ours {
		d.Chain = x.chain
	}
	x.remember(first.Endpoint, now)
	return d, nil
}

// priority is the request's own, if it names one that exists.
func (x *Exchange) priority() string {
	switch p := x.head.Priority; p {
	case critical, standard, sheddable:
		return p
	default:
		return x.table.Policy.Priority
	}
}

// count returns the length of the prompt in tokens, at least 1.
func (x *Exchange) count(blind bool) (n int, exact bool) {
	if blind {
		return max(1, int(x.head.Length/4)), false
	}
	if c := x.model.Counter(); c != nil {
		n, exact = c.Count(&x.request)
	} else {
		n = x.request.Estimate()
	}
	return max(1, n), exact
}

// output returns the expected length of the answer in tokens.
func (x *Exchange) output() int {
	if x.api == openai.Embeddings {
		return 0
	}
	return x.model.Output(x.request.MaxTokens) * max(1, x.request.Choices)
}

// isJSON tells whether a content type is JSON; a client that says none is believed.
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
