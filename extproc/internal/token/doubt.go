package token

import (
	"errors"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Doubt is why a count is an estimate.
type Doubt string

// Doubts.
const (
	// Certain is no doubt: the count is exact.
	Certain Doubt = ""
	// ByTemplate is a chat template with what is not rendered here, or that costs too much.
	ByTemplate Doubt = "template"
	// ByRefusal is a conversation that the template or the backend refuses.
	ByRefusal Doubt = "refused"
	// ByTools is tools or calls of them, whose fields backends rewrite.
	ByTools Doubt = "tools"
	// ByFields is fields of the request that backends follow in ways of their own.
	ByFields Doubt = "fields"
	// ByEngine is what kinds of engines, or their versions, render each in a way of their own:
	// which one it will be is not known.
	ByEngine Doubt = "engine"
	// ByHarmony is a conversation for gpt-oss, which vLLM renders without the template.
	ByHarmony Doubt = "harmony"
	// ByMedia is content that is not text.
	ByMedia Doubt = "media"
	// ByClock is a template that prints the date, or the time, of which the engine has one of its
	// own: it may be another one, with another number of tokens.
	ByClock Doubt = "clock"
	// ByWords is words so long that their tokens are not merged to the end.
	ByWords Doubt = "words"
)

// doubtOf is why a conversation with an error is estimated.
func doubtOf(err error) Doubt {
	switch {
	case errors.Is(err, errMedia):
		return ByMedia
	case errors.Is(err, errHeavy), errors.Is(err, jinja.ErrUnsupported), errors.Is(err, jinja.ErrLimit):
		return ByTemplate
	}
	return ByRefusal
}

// doubts notes a reason to call the count an estimate; the first is kept.
func (p *plan) doubts(d Doubt) {
	if p.doubt == Certain {
		p.doubt = d
	}
}
