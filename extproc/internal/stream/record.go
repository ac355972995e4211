package stream

import (
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

// record remembers that a prompt of so many tokens is worked on at an endpoint, whose
// cache has it then. It is the fifth stage.
func record(p *pick.Policy, l *located, tokens int, e *pick.Endpoint, now time.Time) {
	place(p, prefix.Placement{Chain: l.chain, Name: l.named, Tokens: uint32(tokens)}, e, now)
}

// recordAnswer remembers what is cached behind a prompt now that its answer is whole.
func recordAnswer(p *pick.Policy, l *located, u *pick.Usage, e *pick.Endpoint, now time.Time) {
	place(p, prefix.Placement{
		Chain: l.chain, Name: l.named, Tokens: uint32(max(0, u.Prompt+u.Completion)), Answered: true, Fresh: uint32(max(0, u.Completion)),
	}, e, now)
}

// recordResponse remembers who made the response with an id, and how many tokens a
// request has that continues it.
func recordResponse(p *pick.Policy, m *pick.Model, id string, tokens int, e *pick.Endpoint, now time.Time) {
	place(p, prefix.Placement{Name: responseKey(m, []byte(id)), Tokens: uint32(tokens)}, e, now)
}

// place remembers what is cached at an endpoint, and has other extprocs remember it.
func place(p *pick.Policy, what prefix.Placement, e *pick.Endpoint, now time.Time) {
	p.Prefixes.Record(what, e.KV, now)
	if p.Peers != nil {
		p.Peers.Place(e.Address, what)
	}
}

// responseKey names the session of a response by its id.
func responseKey(m *pick.Model, id []byte) session.Key { return session.Named(m.Seed, string(id)) }
