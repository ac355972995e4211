package stream

import (
	"fmt"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

// locate finds where parts of a prompt of so many tokens are cached, and returns
// the session's name for people.
func (x *Exchange) locate(tokens int, blind bool, now time.Time) string {
	if x.api == openai.Embeddings {
		return "" // these leave nothing behind that a later one could use
	}
	if !blind {
		x.link(tokens)
	}
	x.table.Policy.Prefixes.Find(x.chain, now, &x.found)
	name := x.recall(tokens, now)
	if !blind && len(x.model.WithBlocks) > 0 {
		x.hear()
	}
	if name == "" && len(x.chain) > 0 {
		name = fmt.Sprintf("prefix:%016x", uint64(x.first))
	}
	return name
}

// link makes the keys of the prompt's beginnings. Tools come first, as they do in
// the templates.
func (x *Exchange) link(tokens int) {
	r := &x.request
	m := prefix.NewMaker(x.model.Seed, x.chain)
	if r.Tools != nil {
		m.Add(r.Tools)
	}
	for i := range r.Messages {
		m.Add(r.Messages[i].Raw)
		if i <= 1 {
			x.first = m.Key() // a system message alone would name many
		}
	}
	if len(r.Prompts) == 1 {
		m.Add(r.Prompts[0].Text)
		x.first = m.Key()
	}
	x.chain = m.Links(tokens)
	if len(r.Prompts) == 1 && len(x.chain) > 0 {
		x.first = x.chain[0].Key
	}
}

// recall looks up the session that the client named by header or cookie, and
// returns its name. A client without either is to get a cookie.
func (x *Exchange) recall(tokens int, now time.Time) string {
	if x.head.Session != "" {
		x.named = session.Named(x.model.Seed, x.head.Session)
		// Such a client says that it goes on, though it may have edited its history:
		// half of it may be as it was.
		x.goOnAt(x.named, 0.5, tokens, now)
		return printable(x.head.Session)
	}
	cookies := x.table.Policy.Cookies
	id, renew, ok := cookies.Read(x.head.Cookie, now)
	switch {
	case ok && renew:
		x.cookie = id
	case !ok && cookies != nil:
		x.cookie = cookies.New()
	}
	if cookies != nil {
		x.named = session.Key(max(id, x.cookie)) ^ x.model.Seed
	}
	if !ok {
		return ""
	}
	// A client library keeps one cookie for all its conversations: it counts only
	// where there is nothing else to tell them apart.
	x.goOnAt(x.named, 0, tokens, now)
	return fmt.Sprintf("cookie:%016x", id)
}

// goOnAt takes in where a session was last: all of it if the request cannot be
// read, else a share where that is more than what was found of its beginning.
func (x *Exchange) goOnAt(k session.Key, share float64, tokens int, now time.Time) {
	p, ok := x.table.Policy.Prefixes.Get(k, now)
	if !ok {
		return
	}
	if len(x.chain) > 0 {
		p.Tokens = uint32(share * float64(min(int(p.Tokens), tokens)))
	}
	if p.Tokens > 0 {
		x.found.Add(p)
	}
}

// remember records that the prompt is worked on at e.
func (x *Exchange) remember(e *pick.Endpoint, now time.Time) {
	at := x.table.Policy.Prefixes
	at.Use(x.chain, e.KV, now)
	if x.named != 0 {
		at.Name(x.named, e.KV, uint32(x.decision.PromptTokens), now)
	}
}

// answered records what is cached behind the prompt now that its answer is whole.
func (x *Exchange) answered(u pick.Usage, now time.Time) {
	at, all := x.table.Policy.Prefixes, uint32(max(0, u.Prompt+u.Completion))
	if n := len(x.chain); n > 0 {
		at.Answered(x.chain[n-1].Key, x.served.KV, all, uint32(max(0, u.Completion)), now)
	}
	if x.named != 0 {
		at.Name(x.named, x.served.KV, all, now)
	}
}
