package stream

import (
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

// record remembers that a prompt of so many tokens is worked on at an endpoint, whose
// cache has it then. It is the fifth stage.
func record(index *prefix.Index, l *located, tokens int, e *pick.Endpoint, now time.Time) {
	index.Use(l.chain, e.KV, now)
	if l.named != 0 {
		index.Name(l.named, e.KV, uint32(tokens), now)
	}
}

// recordAnswer remembers what is cached behind a prompt now that its answer is whole.
func recordAnswer(index *prefix.Index, l *located, u *pick.Usage, e *pick.Endpoint, now time.Time) {
	all := uint32(max(0, u.Prompt+u.Completion))
	if n := len(l.chain); n > 0 {
		index.Answered(l.chain[n-1].Key, e.KV, all, uint32(max(0, u.Completion)), now)
	}
	if l.named != 0 {
		index.Name(l.named, e.KV, all, now)
	}
}

// recordResponse remembers who made the response with an id, and how many tokens a
// request has that continues it.
func recordResponse(index *prefix.Index, m *pick.Model, id string, tokens int, e *pick.Endpoint, now time.Time) {
	index.Name(responseKey(m, []byte(id)), e.KV, uint32(tokens), now)
}

// responseKey names the session of a response by its id.
func responseKey(m *pick.Model, id []byte) session.Key { return session.Named(m.Seed, string(id)) }
