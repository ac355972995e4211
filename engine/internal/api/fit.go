package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// slack is how many times the context a prompt must seem to have before it is refused
// where nobody has counted its tokens.
const slack = 4

// fits refuses a prompt that has no room in the context, before the backend works on it.
func (c *call) fits(context int64) *apiError {
	one := c.op.Counted == apis.Conversation || c.op.Counted == apis.Texts && c.op.Texts == nil
	if context <= 0 || !one || c.op.Input == "" {
		return nil
	}
	room, loose := context, slack*context
	if c.op.Generates {
		room-- // for an answer of one token
	}
	if c.req.truncates || c.op.OnlyCounts() {
		room = loose
	}
	tokens := int64(0)
	if n, exact := counted(c.r); exact && c.req.answers <= 1 { // of several prompts it is the sum
		tokens = n
	}
	least, estimate := sizeOf(c.req.fields[c.op.Input])
	switch {
	case tokens > room:
	case least > room:
		tokens = least
	case estimate > loose:
		tokens = estimate
	default:
		return nil
	}
	e := badRequest(c.op.Input, "the prompt is too long: it has %d tokens, and this model's maximum context length is %d tokens", tokens, context)
	if c.op.Dialect == apis.Anthropic {
		e.Message = fmt.Sprintf("prompt is too long: %d tokens > %d maximum", tokens, context)
	}
	code := "context_length_exceeded"
	e.Code = &code
	return e
}

// counted returns extproc's exact count of the prompt; false: there is none.
func counted(r *http.Request) (int64, bool) {
	n, err := strconv.ParseInt(r.Header.Get(wire.PromptTokensHeader), 10, 32)
	return n, err == nil && n > 0
}

// sizeOf returns how many tokens a prompt or a conversation has at least, and about how
// many its texts have: of several prompts, the longest. What is not text does not count.
func sizeOf(input json.RawMessage) (least, estimate int64) {
	var list []json.RawMessage
	if len(input) == 0 || input[0] != '[' || json.Unmarshal(input, &list) != nil {
		return 0, textSize(input) / bytesPerToken
	}
	var sum, longest int64
	for _, one := range list {
		switch one[0] {
		case '{': // a message: no template has one without a token
			least++
			sum += messageSize(one)
		case '[': // a prompt of ids
			var ids []json.RawMessage
			if json.Unmarshal(one, &ids) == nil {
				longest = max(longest, int64(len(ids)))
			}
		case '"':
			estimate = max(estimate, textSize(one)/bytesPerToken)
		default: // an id of the only prompt
			least++
		}
	}
	return max(least, longest), max(estimate, sum/bytesPerToken)
}

// messageSize is how many bytes of text a message has: its content, or the texts in it.
func messageSize(raw json.RawMessage) (n int64) {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return 0
	}
	for _, name := range []string{"content", "text", "output", "arguments"} {
		v := m[name]
		var parts []json.RawMessage
		if len(v) == 0 || v[0] != '[' || json.Unmarshal(v, &parts) != nil {
			n += textSize(v)
			continue
		}
		for _, p := range parts {
			if p[0] == '{' {
				n += messageSize(p)
			} else {
				n += textSize(p)
			}
		}
	}
	return n
}

// textSize is how many bytes a text has, about; 0: it is none.
func textSize(raw json.RawMessage) int64 {
	if len(raw) < 2 || raw[0] != '"' {
		return 0
	}
	return int64(len(raw) - 2)
}
