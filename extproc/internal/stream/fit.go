package stream

import (
	"slices"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/config"
)

// slack is how many times the context a prompt must seem to have before it is refused
// where its tokens are estimated, or where what is asked for takes a longer one.
const slack = 4

// fits answers a request whose prompt has no room in its model's context, or that has a number
// which its engine does not hold, so that no engine works on it; nil: it has, or that is not known. n is nil before the tokens are
// counted: then it is refused if its messages alone are too many.
func fits(in *input, u *understood, r *openai.Request, n *counted) *openai.Error {
	row := in.api.Row()
	one := row.Counted == apis.Conversation || row.Counted == apis.Texts && row.Texts == nil
	if !u.blind && r.Beyond > 0 && (u.model.Context <= 0 || !one || len(r.Messages) == 0) {
		return openai.TooMany(openai.MaxEntries + r.Beyond)
	}
	if n == nil && !u.blind && r.Large.Field != nil && wraps(u.model) {
		return openai.OutOfRange(r.Large)
	}
	if u.blind || u.model.Context <= 0 || !one {
		return nil
	}
	room := u.model.Context
	if row.Generates {
		room-- // for an answer of one token
	}
	loose := r.Truncates || row.OnlyCounts() || n != nil && !n.exact
	if loose {
		room = slack * u.model.Context
	}
	tokens := len(r.Messages) // no template has a message without a token
	if tokens > 0 {
		tokens += r.Beyond
	}
	if n != nil {
		tokens = n.prompt
		if len(r.Prompts) > 1 && tokens > room {
			tokens = longest(u, r)
		}
	}
	switch {
	case tokens > room:
	case r.Beyond > 0:
		return openai.TooMany(openai.MaxEntries + r.Beyond)
	default:
		return nil
	}
	return openai.TooLong(row.Dialect, row.Input, tokens, u.model.Context)
}

// wraps is whether some endpoint of a model takes a number beyond 32 bits for another one:
// llama.cpp does.
func wraps(m *pick.Model) bool {
	return slices.ContainsFunc(m.Endpoints, func(e *pick.Endpoint) bool { return e.Engine.Kind == config.TypeLlamaCpp })
}

// longest is how many tokens the longest of several prompts has: each is a sequence of its
// own. A text has no more tokens than bytes, but for those that are put around it.
func longest(u *understood, r *openai.Request) int {
	most := 0
	one := openai.Request{API: r.API}
	for _, p := range r.Prompts {
		if len(p.Text)+p.IDs <= most {
			continue
		}
		one.Prompts = append(one.Prompts[:0], p)
		n := one.Estimate()
		if c := u.model.Counter(); c != nil {
			n, _ = c.Count(&one)
		}
		most = max(most, n)
	}
	return most
}
