package stream

import (
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/wire"
)

// choose chooses the endpoints that are to get a request, the best first, and puts them
// into c: at most so many. It is the fourth stage. The query that they were chosen by is
// returned.
func choose(p *pick.Picker, in *input, u *understood, n *counted, most int, found *prefix.Found, c *pick.Choice) (pick.Query, *openai.Error) {
	q := pick.Query{
		Model: u.model, Prompt: n.prompt, Output: n.output, Found: found, Blind: u.blind, Only: in.head.Only,
		Most: most, Now: in.now, Goal: in.head.Goal,
	}
	if err := p.Pick(&q, c); err != nil {
		return q, nobody(u.model, in.head.Only)
	}
	pin(c.List, n.before)
	return q, nil
}

// mostCandidates is how many endpoints a request of a priority may name.
func mostCandidates(p *pick.Policy, priority string) int {
	switch priority {
	case wire.Critical:
		return p.Critical
	case wire.Sheddable:
		return p.Sheddable
	default:
		return p.Candidates
	}
}

// retries is how often a request that may be tried so many times is tried again. Where the
// model may be unloaded, each endpoint is asked once: with nobody left to ask, Envoy would
// answer in words of its own, and why the model can't be loaded is in the last endpoint's.
// Whether it is unloaded right now may not be reported yet.
func retries(most int, m *pick.Model, list []pick.Candidate) int {
	loaded := false
	for i := range list {
		loaded = loaded || !list[i].Asleep()
	}
	if m.Rests || !loaded {
		return min(most, len(list)) - 1
	}
	return most - 1
}

// pin puts whoever has the response that the request continues first in the list:
// others may not know it.
func pin(list []pick.Candidate, before prefix.Match) {
	if before.Cache == 0 {
		return
	}
	for i := range list {
		if list[i].KV.ID() == before.Cache {
			first := list[i]
			copy(list[1:], list[:i])
			list[0] = first
			return
		}
	}
}

// nobody answers a request for a model, none of whose endpoints may be named; nil: it is not
// known which.
func nobody(m *pick.Model, only pick.Subset) *openai.Error {
	if m == nil {
		m = &pick.Model{}
	}
	err := openai.NotReady(m.Name, m.Why())
	if only != nil {
		err.Code = "no_replica_in_subset"
		err.Message = "none of the endpoints that the gateway allows for this request is ready (" + wire.SubsetNamespace + "): try again shortly"
	}
	return err
}
