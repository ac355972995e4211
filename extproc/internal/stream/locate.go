package stream

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/apis"
)

// located is where prefixes of a prompt are cached, and the keys by which its
// conversation is known.
type located struct {
	// session names the conversation, for people; empty: nothing does.
	session string
	// chain is the prefixes of the prompt, the shortest first; empty: they are not known.
	chain []prefix.Link
	// named is the key of the client's name for the session; 0: it has none.
	named session.Key
	// cookie is the session that the client is to get a cookie of; 0: none.
	cookie uint64
}

// locate finds the caches that have prefixes of the prompt, and puts them into found.
// It is the third stage. The chain is made in memory, which it overwrites.
func locate(in *input, u *understood, n *counted, r *openai.Request, memory []prefix.Link, found *prefix.Found) located {
	index := in.table.Policy.Prefixes
	if in.api.Row().Routed == apis.ByLoad {
		index.Find(nil, in.now, found)
		return located{chain: memory[:0]}
	}
	l := located{chain: memory[:0]}
	// A prompt that continues a response does not begin with what is in the body.
	known := !u.blind && r.Continues() == nil
	opening := session.Key(0)
	if known {
		l.chain, opening = chainOf(u.model.Seed, r, n.prompt, memory)
	}
	index.Find(l.chain, in.now, found)
	l.recall(in, u.model, n.prompt, found)
	if known && len(u.model.WithBlocks) > 0 {
		report(u.model, r, found)
	}
	if l.session == "" && len(l.chain) > 0 {
		l.session = fmt.Sprintf("prefix:%016x", uint64(opening))
	}
	if n.before.Cache != 0 {
		found.Add(n.before)
		if in.head.Session == "" {
			l.session = printable(string(r.Continues()))
		}
	}
	return l
}

// appendMessage adds a message, by what is rendered of it.
func appendMessage(m *prefix.Maker, msg *openai.Message) {
	m.Mix(msg.Role)
	m.Part(msg.Rest)
	if msg.OneText() {
		m.Part(msg.Content)
	}
	m.End()
}

// chainOf makes the prefixes of a prompt of so many tokens, in memory, and the key of
// its opening, which stays the same from turn to turn. Tools come first, as they do in
// the templates.
func chainOf(seed session.Key, r *openai.Request, tokens int, memory []prefix.Link) (chain []prefix.Link, opening session.Key) {
	if r.Apart != 0 {
		seed = session.Numbered(seed, r.Apart)
	}
	m := prefix.NewMaker(seed, memory)
	if r.Tools != nil {
		m.Add(r.ToolsAlike)
	}
	for i := range r.Messages {
		appendMessage(&m, &r.Messages[i])
		if i <= 1 {
			opening = m.Key() // a system message alone would name many
		}
	}
	var places [mostOrdered]int
	order := ordered(r.Prompts, places[:0])
	for i := range r.Prompts {
		at := i
		if len(order) > 0 {
			at = order[i]
		}
		if i > 0 {
			m.Mix("next")
		}
		if p := &r.Prompts[at]; p.Text != nil {
			m.Add(p.Text)
		} else {
			m.Mix("ids")
			m.Add(p.Numbers())
		}
		opening = m.Key()
	}
	chain = m.Links(tokens)
	if len(r.Prompts) > 0 && len(chain) > 0 {
		opening = chain[0].Key
	}
	return chain, opening
}

// mostOrdered is how many prompts of a request are put into order.
const mostOrdered = 32

// ordered appends the places of a request's prompts to dst, the longest first: each is a sequence of
// its own to the engine, so that the order in which they came means nothing, and what is
// found of the longest counts most. Nothing is appended where more than mostOrdered stay in
// their order.
func ordered(prompts []openai.Prompt, dst []int) []int {
	if len(prompts) > mostOrdered {
		return dst
	}
	for i := range prompts {
		dst = append(dst, i)
	}
	slices.SortFunc(dst, func(a, b int) int {
		p, q := &prompts[a], &prompts[b]
		return cmp.Or(cmp.Compare(q.IDs+len(q.Text), p.IDs+len(p.Text)), bytes.Compare(p.Text, q.Text), bytes.Compare(p.List, q.List))
	})
	return dst
}

// editedShare is how much of a session may be as it was if its client, which says that
// it continues it, has edited its history.
const editedShare = 0.5

// recall finds where the session was last that the client named by header or cookie.
// A client without either is to get a cookie.
func (l *located) recall(in *input, m *pick.Model, tokens int, found *prefix.Found) {
	if in.head.Session != "" {
		l.named = session.Named(m.Seed, in.head.Session)
		l.session = printable(in.head.Session)
		l.add(in, editedShare, tokens, found)
		return
	}
	cookies := in.table.Policy.Cookies
	id, renew, ok := cookies.Read(in.head.Cookie, in.now)
	switch {
	case ok && renew:
		l.cookie = id
	case !ok && cookies != nil:
		l.cookie = cookies.New()
	}
	if cookies != nil {
		l.named = session.Numbered(m.Seed, max(id, l.cookie))
	}
	if ok {
		// A client library keeps one cookie for all its conversations: it counts only
		// where nothing else distinguishes them.
		l.session = fmt.Sprintf("cookie:%016x", id)
		l.add(in, 0, tokens, found)
	}
}

// add adds where the named session was last: all of it if the prompt's prefixes are not
// known, else a share where that is more than what was found of them.
func (l *located) add(in *input, share float64, tokens int, found *prefix.Found) {
	m, ok := in.table.Policy.Prefixes.Get(l.named, in.now)
	if !ok {
		return
	}
	if len(l.chain) > 0 {
		m.Tokens = uint32(share * float64(min(int(m.Tokens), tokens)))
	}
	if m.Tokens > 0 {
		found.Add(m)
	}
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
