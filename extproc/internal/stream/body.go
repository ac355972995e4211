package stream

import (
	"errors"
	"slices"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/extproc/internal/unpack"
)

// mostUnpacked bounds a body without its content encoding where the policy has no
// limit, in bytes.
const mostUnpacked = 256 << 20

// reads reports whether we are to understand the request's body.
func (x *Exchange) reads() bool {
	return x.api != openai.Other && (x.head.Mode == Buffered || x.head.Mode == Duplex)
}

// packed reports whether the body has a content encoding that was not undone.
func (x *Exchange) packed() bool {
	return !x.plain && unpack.Of(x.head.ContentEncoding) != unpack.Identity
}

// unpack returns the body without its content encoding, and lets it go on so: the
// engines' servers do not undo one.
func (x *Exchange) unpack(body []byte, whole bool) ([]byte, *openai.Error) {
	e := unpack.Of(x.head.ContentEncoding)
	if e == unpack.Identity || body == nil || x.api == openai.Other {
		return body, nil
	}
	limit := x.limit()
	if limit <= 0 {
		limit = mostUnpacked
	}
	bare, err := unpack.Append(x.bare[:0], e, body, limit)
	x.bare = bare
	switch {
	case err == nil && len(bare) > 0:
		x.forward, x.plain = bare, true
		x.core.metrics.unpacked.Inc()
		return bare, nil
	case errors.Is(err, unpack.ErrTooLarge):
		return nil, openai.TooLarge(limit)
	case whole:
		return nil, openai.BadEncoding(x.head.ContentEncoding)
	default:
		return body, nil // a part of it, which only who has the rest can read
	}
}

// outgoing returns what goes on in place of the body.
func (x *Exchange) outgoing(body []byte) []byte {
	if x.forward != nil {
		return x.forward
	}
	return body
}

// replace makes the reply that has the decision say so.
func (x *Exchange) replace(r *Reply) {
	if x.forward == nil {
		return
	}
	r.Length = len(x.forward)
	if x.plain {
		r.Remove = append(slices.Clip(r.Remove), "content-encoding")
	}
	if r.Kind == RequestBody {
		r.Replace, r.Chunk = true, x.forward
	}
}

// reroute sets the model if the policy says that another one is to serve requests
// for the one that the client named.
func (x *Exchange) reroute(now time.Time) {
	rewrite := x.table.Policy.Rewrites[string(x.request.Model)]
	if rewrite == nil {
		return
	}
	if x.model = x.continued(rewrite, now); x.model == nil {
		x.model = rewrite.Choose(x.table, x.conversation(now))
	}
	if x.model == nil || x.model.Name == rewrite.Model {
		return
	}
	x.asked = rewrite.Model
	x.renamed = x.request.WithModel(x.renamed[:0], x.model.Name)
	x.forward = x.renamed
	x.core.metrics.renamed.Inc()
}

// conversation names the conversation before its model is known: by the client's
// name for it, else by how it began, which stays the same from turn to turn, else
// by who asks.
func (x *Exchange) conversation(now time.Time) session.Key {
	if x.head.Session != "" {
		return session.Named(0, x.head.Session)
	}
	k := session.Key(0)
	for i := range x.request.Messages {
		m := &x.request.Messages[i]
		k = session.Next(k, m.Raw)
		if m.Role == "user" {
			break
		}
	}
	if k != 0 {
		return k
	}
	if len(x.request.User) > 0 {
		return session.Next(k, x.request.User)
	}
	if id, _, ok := x.table.Policy.Cookies.Read(x.head.Cookie, now); ok {
		return session.Key(id)
	}
	if len(x.request.Prompts) > 0 {
		text := x.request.Prompts[0].Text
		return session.Next(k, text[:min(len(text), opening)])
	}
	return k
}

// opening is how much of a text names the conversation, in bytes.
const opening = 512

// describe sets the shape of the request, of whose body so many bytes came.
func (x *Exchange) describe(blind bool, size int) {
	r := &x.request
	x.shape = pick.Shape{API: x.api, Blind: blind, Limit: -1, Choices: 1}
	if !blind {
		x.shape.Tools, x.shape.Stream = r.Tools != nil, r.Stream
		x.shape.Limit, x.shape.Choices = r.MaxTokens, max(1, r.Choices)
		return
	}
	x.shape.Guess = int(max(x.head.Length, int64(size), 0) / 4)
	if !isJSON(x.head.ContentType) {
		x.shape.Guess = min(x.shape.Guess, upload)
	}
}

// upload is the most tokens that a body which is not JSON is taken for: a sound or
// a picture has fewer than a text of its size.
const upload = 2048

// count returns the length of the prompt in tokens, at least 1.
func (x *Exchange) count(blind bool, now time.Time) (n int, exact bool) {
	s := &x.shape
	switch c := x.model.Counter(); {
	case blind:
		n = x.model.Guessed(s)
	case c != nil:
		n, exact = c.Count(&x.request)
	default:
		s.Guess = x.request.Estimate()
		n = x.model.Guessed(s)
	}
	n += x.goesOn(now)
	s.Prompt = max(1, n)
	return s.Prompt, exact
}

// output returns the expected length of the answer in tokens.
func (x *Exchange) output() int {
	if !x.api.Generates() || x.head.Method != "POST" {
		return 0
	}
	r, n := &x.request, x.model.Output(&x.shape)
	if x.shape.Blind {
		return n
	}
	if r.MaxTokens >= 0 && r.IgnoreEOS && !r.Stops {
		n = r.MaxTokens // nothing else ends it
	}
	n = max(n, r.MinTokens)
	if r.MaxTokens >= 0 {
		n = min(n, r.MaxTokens)
	}
	return n * x.shape.Choices
}
