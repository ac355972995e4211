package stream

import (
	"bytes"
	"strconv"

	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
)

// What an answer has needed is said by our engines in x-millrace-usage; by others in headers or
// trailers of their own; by gateways that read answers in metadata; and in the answer itself,
// which is read where the gateway sends it anyway.

// usageOf is what headers of others, metadata or a body say, in tokens.
type usageOf struct {
	prompt, cached, completion int
	ok                         bool // whether it is said what was generated
}

// foreign are the headers by which others say what an answer has needed: Text Generation
// Inference, Amazon Bedrock, and gateways that write x-usage-….
var foreign = map[string]func(*usageOf) *int{
	"x-prompt-tokens":                   func(s *usageOf) *int { return &s.prompt },
	"x-generated-tokens":                func(s *usageOf) *int { return &s.completion },
	"x-amzn-bedrock-input-token-count":  func(s *usageOf) *int { return &s.prompt },
	"x-amzn-bedrock-output-token-count": func(s *usageOf) *int { return &s.completion },
	"x-usage-prompt-tokens":             func(s *usageOf) *int { return &s.prompt },
	"x-usage-completion-tokens":         func(s *usageOf) *int { return &s.completion },
	"x-usage-prompt-text-tokens":        func(s *usageOf) *int { return &s.prompt },
	"x-usage-completion-text-tokens":    func(s *usageOf) *int { return &s.completion },
}

// header takes in a header if it is one of these.
func (s *usageOf) header(key, value []byte) {
	if len(key) < 2 || key[0] != 'x' {
		return
	}
	if of := foreign[string(key)]; of != nil {
		if v, err := trust.Number(string(value), 0, mostNumber); err == nil {
			*of(s) = tokens(v)
			s.ok = s.ok || of(s) == &s.completion
		}
	}
}

// usage returns what an answer has needed, by the first who says so. Nothing is said by who
// does not say what was generated.
func (h *AnswerHead) usage() (u pick.Usage, by flow.Source, ok bool) {
	if u, ok = parseUsage(h.Usage); ok {
		return u, flow.Usage, true
	}
	for _, s := range []struct {
		usageOf
		by flow.Source
	}{{h.foreign, flow.Usage}, {h.gateway, flow.Gateway}} {
		if s.ok {
			return pick.Usage{Prompt: s.prompt, Cached: min(s.cached, s.prompt), Completion: s.completion}, s.by, true
		}
	}
	return u, flow.Unanswered, false
}

// parseUsage reads "prompt=12,cached=0,completion=5,prefill_ms=3.2,decode_ms=40.1".
func parseUsage(s string) (u pick.Usage, ok bool) {
	pairs(s, func(name string, v float64) {
		switch name {
		case wire.UsagePrompt:
			u.Prompt, ok = tokens(v), true
		case wire.UsageCached:
			u.Cached = tokens(v)
		case wire.UsageCompletion:
			u.Completion = tokens(v)
		case wire.UsagePrefill:
			u.PrefillMs = v
		case wire.UsageDecode:
			u.DecodeMs = v
		}
	})
	u.Cached = min(u.Cached, u.Prompt)
	return u, ok
}

// tokenUsage reads a google.protobuf.Any of a TokenUsage, as Envoy's AI protocol manager
// writes it at the end of an answer that it has read. What is not one, or whose counts may not be
// whole, is passed over.
func (s *usageOf) tokenUsage(b []byte) {
	var u aiv3.TokenUsage
	if proto.Unmarshal((&reader{b: b}).field(2), &u) != nil || u.GetExtractionStatus() != aiv3.TokenUsage_COMPLETE {
		return
	}
	s.prompt, s.cached = number64(u.GetInputTokens()), number64(u.GetInputTokenDetails().GetCachedTokens())
	s.completion, s.ok = number64(u.GetOutputTokens()), u.GetOutputTokens() != nil
}

func number64(v *wrapperspb.UInt64Value) int { return tokens(float64(v.GetValue())) }

// tail reads what an answer says that it needed, in whatever pieces it comes: the last
// object "usage", be the answer one object or events. Anthropic's say the prompt in the first and
// what was generated in the last of several. Inside a text its quotes would be escaped; in
// something else of the client's that the engine repeats it can only make the request dearer.
type tail struct {
	found usageOf
	rest  []byte // of the last piece, as one may begin there
}

// longestUsage is how long an object of usage may be, in bytes.
const longestUsage = 1 << 10

var usageKey = []byte(`"usage"`)

func (t *tail) read(piece []byte) {
	b := piece
	if len(t.rest) > 0 {
		b = append(t.rest, piece...)
	}
	for {
		i := bytes.Index(b, usageKey)
		if i < 0 {
			break
		}
		if !t.object(b[i+len(usageKey):]) && len(b)-i < longestUsage {
			b = b[i:] // its end is still to come
			t.rest = append(t.rest[:0], b...)
			return
		}
		b = b[i+len(usageKey):]
	}
	b = b[max(0, len(b)-len(usageKey)+1):]
	t.rest = append(t.rest[:0], b...)
}

// object takes in what follows the key; false: it does not end here.
func (t *tail) object(b []byte) bool {
	b = bytes.TrimLeft(b, " \t\r\n:")
	switch {
	case len(b) == 0:
		return false
	case b[0] != '{':
		return true // null, as most events have it
	}
	got, depth := usageOf{}, 0
	for i := 0; i < min(len(b), longestUsage); i++ {
		switch c := b[i]; {
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				t.take(got)
				return true
			}
		case c == '"' && depth == 1:
			end := bytes.IndexByte(b[i+1:], '"')
			if end < 0 {
				return false
			}
			name := b[i+1 : i+1+end]
			i += end + 1
			switch string(name) {
			case "prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens":
				got.prompt += numberBehind(b[i+1:])
			case "completion_tokens", "output_tokens":
				got.completion, got.ok = numberBehind(b[i+1:]), true
			}
		}
	}
	return len(b) >= longestUsage
}

// take keeps the most that was said of each.
func (t *tail) take(s usageOf) {
	t.found.prompt, t.found.completion = max(t.found.prompt, s.prompt), max(t.found.completion, s.completion)
	t.found.ok = t.found.ok || s.ok
}

// numberBehind is the number behind a colon; 0: there is none.
func numberBehind(b []byte) int {
	b = bytes.TrimLeft(b, " \t\r\n:")
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	v, _ := strconv.ParseUint(string(b[:n]), 10, 63)
	return tokens(float64(v))
}
