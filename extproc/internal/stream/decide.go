package stream

import (
	"fmt"
	"slices"
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

// block is the piece of a text prompt that prefixes are remembered by, in bytes.
const block = 256

// probes bounds how many prefixes of a conversation are looked up.
const probes = 32

// decide chooses where the request goes. Without a decision and without an
// error Envoy's own policy chooses.
func (x *Exchange) decide(body []byte, whole bool, now time.Time) (*Decision, *openai.Error) {
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
	d.Session = x.locate(blind, now)
	most := policy.Candidates
	switch d.Priority {
	case critical:
		most = policy.Critical
	case sheddable:
		most = policy.Sheddable
	}
	d.Retries = most - 1
	err := x.core.picker.Pick(&pick.Query{
		Model: m, Prompt: d.PromptTokens, Output: d.OutputTokens, Places: x.places, Blind: blind, Most: most, Now: now,
	}, &x.choice)
	if err != nil {
		x.model = nil
		return nil, openai.NotReady(m.Name)
	}
	first := &x.choice.List[0]
	x.held = first.Reserve(d.PromptTokens - first.Cached + d.OutputTokens)
	x.sent = now
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

// locate finds where parts of the prompt are cached, and returns the session's
// name for people.
func (x *Exchange) locate(blind bool, now time.Time) string {
	if x.api == openai.Embeddings {
		return "" // these leave nothing behind that a later one could use
	}
	if !blind {
		x.link()
	}
	name := x.recall(now)
	for i := len(x.chain) - 1; i >= max(0, len(x.chain)-probes); i-- {
		if e, ok := x.table.Policy.Sessions.Get(x.chain[i], now); ok {
			x.add(&e, 1)
			break
		}
	}
	if name == "" && len(x.chain) > 0 {
		name = fmt.Sprintf("prefix:%016x", uint64(x.chain[min(1, len(x.chain)-1)]))
	}
	return name
}

// link computes the keys of the conversation's prefixes. Tools come first, as
// they do in the templates.
func (x *Exchange) link() {
	k := x.model.Seed
	if x.request.Tools != nil {
		k = session.Next(k, x.request.Tools)
	}
	for i := range x.request.Messages {
		k = session.Next(k, x.request.Messages[i].Raw)
		x.chain = append(x.chain, k)
	}
	if len(x.request.Prompts) != 1 {
		return
	}
	text := x.request.Prompts[0].Text
	for len(text) >= block || len(x.chain) == 0 && len(text) > 0 {
		n := min(block, len(text))
		k = session.Next(k, text[:n])
		x.chain = append(x.chain, k)
		text = text[n:]
	}
}

// recall looks up the session that the client named by header or cookie, and
// returns its name. A client without either is to get a cookie.
func (x *Exchange) recall(now time.Time) string {
	policy := x.table.Policy
	if x.head.Session != "" {
		x.named = session.Named(x.model.Seed, x.head.Session)
		if e, ok := policy.Sessions.Get(x.named, now); ok {
			// Half: such a client says that it goes on, but has edited its history.
			x.continues(&e, 0.5)
		}
		return printable(x.head.Session)
	}
	id, ok := policy.Cookies.Read(x.head.Cookie)
	if !ok {
		if policy.Cookies != nil {
			x.cookie = policy.Cookies.New()
			x.named = session.Key(x.cookie) ^ x.model.Seed
		}
		return ""
	}
	x.named = session.Key(id) ^ x.model.Seed
	if e, ok := policy.Sessions.Get(x.named, now); ok {
		// Nothing: a client library keeps one cookie for all its conversations.
		x.continues(&e, 0)
	}
	return fmt.Sprintf("cookie:%016x", id)
}

// continues takes in an entry found by the session's name: all of it if the
// request goes on where the entry ends or cannot be read, else a share.
func (x *Exchange) continues(e *session.Entry, share float32) {
	if len(x.chain) == 0 || slices.Contains(x.chain, e.Tail) {
		share = 1
	}
	if share > 0 {
		x.add(e, share)
	}
}

// add takes in where an entry's tokens are cached.
func (x *Exchange) add(e *session.Entry, share float32) {
	for _, p := range e.Places {
		if p.Cache != 0 {
			p.Tokens = uint32(float32(p.Tokens) * share)
			x.places = append(x.places, p)
		}
	}
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
