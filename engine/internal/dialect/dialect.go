// Package dialect is what the kinds of backends share to answer as the APIs have it: what
// none of them can be asked for, functions and their choice, responses and messages by way of
// chat completions, and what is put right of answers that a server has made itself.
//
// Called by the kinds, in Prepare. Its one rule: it knows the APIs and no product.
package dialect

import (
	"encoding/json"
	"fmt"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/messages"
	"millrace.dev/millrace/engine/internal/responses"
	"millrace.dev/millrace/internal/apis"
)

// OverChat makes a request for a response or a message one for chat completions, and the form
// of their answer that of the request's own. Where the request only counts tokens, the form is
// that of an object whose field counted has their number.
func OverChat(r backend.Request, counted string) (chat backend.Request, form backend.Reform, fault *backend.Error) {
	counts := r.API.Row().OnlyCounts()
	var f map[string]json.RawMessage
	if r.API == apis.Responses || r.API == apis.InputTokens {
		f, form, fault = asForm(responses.Chat(r.Fields))
	} else {
		f, form, fault = asForm(messages.Chat(r.Fields))
	}
	if fault != nil {
		return r, nil, fault
	}
	chat = r
	if chat.Stream = r.Stream && !counts; chat.Stream {
		f["stream_options"] = json.RawMessage(`{"include_usage":true}`)
	}
	if counts {
		form = count{r.API, counted}
	}
	chat.Fields, chat.Body, chat.Completion = f, backend.Encode(f), !counts
	return chat, form, nil
}

// asForm has the forms of all APIs be of one type.
func asForm[F backend.Reform](f map[string]json.RawMessage, form F, fault *backend.Error) (map[string]json.RawMessage, backend.Reform, *backend.Error) {
	return f, form, fault
}

// count is the answer of an operation that only counts.
type count struct {
	api  apis.API
	name string // the server's field
}

// Unary makes the client's answer of the server's, which is the same for all of them.
func (c count) Unary(answer []byte) (string, []byte, error) {
	var counted map[string]json.RawMessage
	var tokens *int64
	if json.Unmarshal(answer, &counted) != nil || json.Unmarshal(counted[c.name], &tokens) != nil || tokens == nil {
		return "", nil, fmt.Errorf("a count of tokens: %.80q", answer)
	}
	out := map[string]any{"input_tokens": *tokens}
	if c.api == apis.InputTokens {
		out["object"] = "response.input_tokens"
	}
	return backend.JSON, backend.Encode(out), nil
}

// Pass, Rest and Fail are for streams, of which there is none.
func (c count) Pass(p []byte) []byte      { return p }
func (c count) Rest() []byte              { return nil }
func (c count) Fail(backend.Error) []byte { return nil }
