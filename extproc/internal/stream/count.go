package stream

import (
	"math"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/apis"
)

// counted is how long a request is.
type counted struct {
	// prompt is the tokens of the prompt, at least 1; exact is whether the model's
	// tokenizer has counted them all, doubt why not: "" too where there is nothing to count.
	prompt int
	exact  bool
	doubt  string
	// stream is whether the answer comes as it is made.
	stream bool
	// output is the tokens that all answers together are expected to have.
	output int
	// most is how many tokens each answer can have at most.
	most int
	// reserved is how many tokens all answers together are taken to have at most, in
	// advance, where tenants pay for tokens.
	reserved int
	// before is the match of the response that the request continues, whose tokens are
	// a part of the prompt; the zero Match: it continues none that is known.
	before prefix.Match
	// shape is what the answer's length is learned by.
	shape pick.Shape
}

// upload is the most tokens that a body which is not JSON is taken for: a sound or
// a picture has fewer than a text of its size.
const upload = 2048

// count counts the tokens of a request that has a model. It is the second stage.
func count(in *input, u *understood, r *openai.Request) counted {
	n := counted{shape: shapeOf(in, u, r), stream: !u.blind && r.Stream}
	s, how := &n.shape, in.api.Row().Counted
	switch c := u.model.Counter(); {
	case u.blind || how == apis.Size:
		n.prompt = u.model.Guessed(s)
	case how == apis.Nothing:
	case c != nil:
		n.prompt, n.doubt = c.Count(r)
		n.exact = n.doubt == pick.Certain
	default:
		n.doubt = "tokenizer"
		s.Guess = r.Estimate()
		n.prompt = u.model.Guessed(s)
	}
	if !u.blind && r.Continues() != nil {
		n.before, _ = in.table.Policy.Prefixes.Get(responseKey(u.model, r.Continues()), in.now)
		n.prompt += int(n.before.Tokens)
	}
	n.prompt = max(1, n.prompt)
	s.Prompt = n.prompt
	n.most = mostOf(u, s, n.exact)
	n.output = outputOf(in, u, r, s, n.most)
	n.reserved = reservedOf(in, s, n.output, n.most)
	return n
}

// shapeOf returns the shape of a request, but for its prompt's tokens.
func shapeOf(in *input, u *understood, r *openai.Request) pick.Shape {
	s := pick.Shape{API: in.api, Blind: u.blind, Limit: -1, Choices: 1}
	if !u.blind {
		s.Tools, s.Stream = r.Tools != nil, r.Stream
		s.Limit, s.Choices = r.MaxTokens, max(1, r.Choices)*max(1, len(r.Prompts))
	}
	if u.blind || in.api.Row().Counted == apis.Size {
		s.Guess = int(max(in.head.Length, int64(u.size), 0) / 4)
		if !apis.JSON.Accepts(in.head.ContentType) {
			s.Guess = min(s.Guess, upload)
		}
	}
	return s
}

// mostOf returns how many tokens one answer to a request of a shape can have: what its
// limit allows, and what the context has room for.
func mostOf(u *understood, s *pick.Shape, exact bool) int {
	most := math.MaxInt32
	if s.Limit >= 0 {
		most = s.Limit
	}
	if c := u.model.Context; c > 0 && exact {
		most = min(most, max(1, c-s.Prompt))
	} else if c > 0 {
		most = min(most, c)
	}
	return most
}

// outputOf returns the expected tokens of all answers to a request of a shape, each of
// which has at most so many.
func outputOf(in *input, u *understood, r *openai.Request, s *pick.Shape, most int) int {
	if !in.api.Row().Generates || in.head.Method != "POST" || in.api == apis.Other && apis.Stored(in.head.Path) {
		return 0
	}
	n := u.model.Output(s)
	if u.blind {
		return n
	}
	if r.IgnoreEOS && !r.Stops && most < math.MaxInt32 {
		n = most // nothing else ends it
	}
	return min(max(n, r.MinTokens), most) * s.Choices
}

// reservedOf returns how many tokens all answers to a request of a shape are taken to have at
// most, in advance: what it says, or the policy where it says nothing.
func reservedOf(in *input, s *pick.Shape, output, most int) int {
	p := in.table.Policy.Flow
	if output == 0 && most > 0 || p == nil {
		return output // nothing is generated
	}
	if s.Limit < 0 {
		most = min(most, max(p.AssumedMax, output/s.Choices))
	}
	return most * s.Choices
}
