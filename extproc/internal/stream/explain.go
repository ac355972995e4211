package stream

import (
	"encoding/json"
	"fmt"
	"math"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
)

// mostExplained is how many endpoints an explanation names, so that it fits in a
// header: some 200 bytes each.
const mostExplained = 16

// explanation is the header x-millrace-decision, as JSON in one line. Times are
// milliseconds, as they were predicted.
type explanation struct {
	Reason       string `json:"reason"`
	Session      string `json:"session,omitempty"`
	Model        string `json:"model"`
	Priority     string `json:"priority"`
	PromptTokens int    `json:"prompt_tokens"`
	Exact        bool   `json:"exact"`
	// Doubt is why the prompt's tokens are an estimate: one of pick.Doubts.
	Doubt          string `json:"doubt,omitempty"`
	ExpectedTokens int    `json:"expected_output_tokens"`
	// ChargedBy is by what the tenant's budget of tokens will be charged, one of flow's sources, if the engine's
	// answer does not say it; Reserved is what it is charged until then.
	ChargedBy string `json:"charged_by,omitempty"`
	Reserved  int    `json:"reserved_tokens,omitempty"`
	// QueuedMs is how long it has waited in extproc, QueuedFor whether for its model's "load", or
	// for "room" at an engine.
	QueuedMs  int64  `json:"queued_ms,omitempty"`
	QueuedFor string `json:"queued_for,omitempty"`
	// Shared is how many tokens of the prompt several conversations begin with.
	Shared int `json:"shared_tokens,omitempty"`
	// Named is the endpoints that Envoy got, in its order.
	Named []string `json:"named"`
	// Candidates are the cheapest first, then those that may not be named; Others is
	// how many more there are.
	Candidates []considered `json:"candidates"`
	Others     int          `json:"others,omitempty"`
}

// considered is an endpoint with the terms of its cost, which is finish + fill + delay
// - shared. See pick.Terms.
type considered struct {
	Address string  `json:"address"`
	Replica string  `json:"replica,omitempty"`
	Cost    float64 `json:"cost"`
	Finish  float64 `json:"finish"`
	Cached  int     `json:"expected_cached_tokens"`
	// CachedToo is the same, by the name that it had first: there are readers of it.
	CachedToo int `json:"cached_tokens"`
	// Company is how many requests are worked on there at a time, this one included.
	Company float64 `json:"company"`
	Out     string  `json:"out,omitempty"`

	terms pick.Terms // written by their names
}

// MarshalJSON returns the endpoint as a JSON object.
func (c considered) MarshalJSON() ([]byte, error) {
	type fields considered
	b, err := json.Marshal(fields(c))
	if err != nil {
		return nil, err
	}
	b = b[:len(b)-1]
	for _, t := range c.terms.All() {
		ms, err := json.Marshal(tenth(t.Ms))
		if err != nil {
			return nil, err
		}
		b = append(fmt.Appendf(b, ",%q:", t.Name), ms...)
	}
	return append(b, '}'), nil
}

// explain explains a decision to a client that asked, before the request is reserved.
func (d *Decision) explain(q *pick.Query) []byte {
	e := explanation{
		Reason: d.Choice.Reason.String(), Session: d.Session, Model: d.Model, Priority: d.Priority,
		PromptTokens: d.PromptTokens, Exact: d.Exact, Doubt: d.Doubt, ExpectedTokens: d.OutputTokens, Shared: q.Found.Shared,
	}
	if d.Charged != flow.Unanswered {
		e.ChargedBy, e.Reserved = d.Charged.String(), d.Reserved
	}
	if q := d.Queued; !q.Since.IsZero() {
		e.QueuedMs, e.QueuedFor = q.Took.Milliseconds(), q.For()
	}
	for i := range d.Choice.List {
		e.Named = append(e.Named, d.Choice.List[i].Address)
	}
	all := pick.Explain(q)
	if len(all) > mostExplained {
		e.Others = len(all) - mostExplained
		all = all[:mostExplained]
	}
	for i := range all {
		c := &all[i]
		e.Candidates = append(e.Candidates, considered{
			Address: c.Address, Replica: c.Replica, Cost: tenth(c.Cost()), Finish: tenth(c.Finish()),
			Cached: c.Cached, CachedToo: c.Cached, Company: tenth(c.Company), Out: c.Out, terms: c.Terms,
		})
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil // a number that JSON has no form for
	}
	return b
}

// tenth rounds, so that a person can read it.
func tenth(ms float64) float64 { return math.Round(ms*10) / 10 }
