package resume

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"millrace.dev/millrace/internal/apis"
)

// Way is how a kind of backend is asked for the rest of an answer.
type Way struct {
	// Form is that of its stream.
	Form Form
	// Marks are the fields by which the last message of a conversation is continued, for a
	// message whose reasoning alone was begun, or its content; nil: a last message of the
	// assistant's is continued anyway.
	Marks func(reasoning bool) map[string]json.RawMessage
	// Prefilled reports whether the client's own last message is what the answer continues.
	Prefilled func(request map[string]json.RawMessage) bool
	// Reasons is whether reasoning can be continued, and Mixed whether a prompt may be of
	// tokens with a text behind them.
	Reasons, Mixed bool
}

// Request is what the lost stream was asked with, in the backend's form.
type Request struct {
	way    Way
	fields fields
}

// guides are the fields of which each, unless it has a value that says nothing, binds an
// answer to a form, or has it carry what can't be had twice.
var guides = map[string][]string{
	"response_format": {`{"type":"text"}`}, "tool_choice": {`"auto"`, `"none"`, `{"type":"auto"}`, `{"type":"none"}`}, "json_schema": {"{}"}, "grammar": {`""`}, "structured_outputs": {"{}"},
	"guided_json": nil, "guided_regex": nil, "guided_choice": nil, "guided_grammar": nil, "output_config": {"{}"}, "output_format": {"{}"},
	"logprobs": {"false", "0"}, "top_logprobs": {"0"}, "n_probs": {"0"}, "prompt_logprobs": {"0"}, "return_token_ids": {"false"}, "return_tokens": {"false"},
	"echo": {"false"}, "suffix": {`""`}, "verbose": {"false"}, "use_beam_search": {"false"},
}

// Guided reports whether a request is for an answer that is not continued.
func Guided(request map[string]json.RawMessage) bool {
	for name, harmless := range guides {
		if raw, ok := request[name]; ok && string(raw) != "null" && !slices.Contains(harmless, compact(raw)) {
			return true
		}
	}
	return false
}

// compact is a value without blanks.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}

// Read reads the body of the request whose stream was lost.
func Read(way Way, body []byte) (*Request, error) {
	r := &Request{way: way}
	if err := json.Unmarshal(body, &r.fields); err != nil || r.fields == nil {
		return nil, ErrForm
	}
	if Guided(r.fields) {
		return nil, ErrGuided
	}
	return r, nil
}

// limits are the fields that bound an answer.
var limits = apis.Limits[:]

// With returns the request as far as its prompt goes, with the part behind it: whose tokens
// are counted. An empty part is none.
func (r *Request) With(p Part) (map[string]json.RawMessage, error) {
	f := maps.Clone(r.fields)
	for _, name := range []string{"n_cmpl", "best_of"} {
		delete(f, name)
	}
	if _, ok := f["n"]; ok {
		f["n"] = json.RawMessage("1")
	}
	switch {
	case p.Empty():
		return f, nil
	case p.Reasoning != "" && !r.way.Reasons:
		return nil, ErrForm
	case r.way.Form == Text:
		return f, r.prompt(f, p)
	}
	return f, r.conversation(f, p)
}

// Follow returns the request for the rest behind a part that was counted; nil: the limit
// leaves nothing to generate.
func (r *Request) Follow(p Part, c Counts) ([]byte, error) {
	f, err := r.With(p)
	if err != nil {
		return nil, err
	}
	for _, name := range limits {
		var limit int64
		if json.Unmarshal(f[name], &limit) != nil || limit <= 0 {
			continue // not said, or no bound
		}
		if limit <= int64(c.Delivered) {
			return nil, nil
		}
		f[name] = fmt.Append(nil, limit-int64(c.Delivered))
	}
	var least int64
	if json.Unmarshal(f["min_tokens"], &least) == nil && least > 0 {
		f["min_tokens"] = fmt.Append(nil, max(0, least-int64(c.Delivered)))
	}
	f["stream"] = json.RawMessage("true")
	if r.way.Form != Message {
		f["stream_options"] = json.RawMessage(`{"include_usage":true}`)
	}
	return encode(f), nil
}

// prompt adds the part to the prompt of a completion.
func (r *Request) prompt(f fields, p Part) error {
	var text string
	var list []json.RawMessage
	switch raw := f["prompt"]; {
	case json.Unmarshal(raw, &text) == nil:
		f["prompt"] = encode(text + p.Content)
	case json.Unmarshal(raw, &list) != nil || len(list) == 0:
		return ErrPrompt
	case len(list) == 1 && json.Unmarshal(list[0], &text) == nil:
		f["prompt"] = encode(text + p.Content)
	case r.way.Mixed && list[0][0] != '[' && list[0][0] != '"':
		f["prompt"] = encode(append(list[:len(list):len(list)], encode(p.Content)))
	default:
		return ErrPrompt
	}
	return nil
}

// conversation makes the part the last message, or the end of the client's own.
func (r *Request) conversation(f fields, p Part) error {
	var messages []fields
	if json.Unmarshal(f["messages"], &messages) != nil || len(messages) == 0 {
		return ErrPrompt
	}
	last := messages[len(messages)-1]
	if string(last["role"]) == `"assistant"` && r.way.Prefilled(f) {
		if err := r.extend(last, p); err != nil {
			return err
		}
	} else {
		messages = append(messages, r.message(p))
	}
	f["messages"] = encode(messages)
	if r.way.Marks != nil {
		maps.Copy(f, r.way.Marks(p.Content == ""))
	}
	return nil
}

// message is the part as a message of the assistant's.
func (r *Request) message(p Part) fields {
	m := fields{"role": json.RawMessage(`"assistant"`)}
	if r.way.Form == Chat {
		m["content"] = encode(p.Content)
		if p.Reasoning != "" {
			m["reasoning_content"] = encode(p.Reasoning)
		}
		return m
	}
	var blocks []fields
	if p.Reasoning != "" {
		blocks = append(blocks, fields{"type": json.RawMessage(`"thinking"`), "thinking": encode(p.Reasoning), "signature": json.RawMessage(`""`)})
	}
	if p.Content != "" {
		blocks = append(blocks, block(p.Content))
	}
	m["content"] = encode(blocks)
	return m
}

func block(text string) fields {
	return fields{"type": json.RawMessage(`"text"`), "text": encode(text)}
}

// extend adds the part to the client's own beginning of the answer.
func (r *Request) extend(m fields, p Part) error {
	var text string
	var blocks []fields
	switch raw := m["content"]; {
	case p.Reasoning != "" || len(m["tool_calls"]) > 0:
		return ErrPrompt // nobody knows where the template has put it
	case len(raw) == 0 || json.Unmarshal(raw, &text) == nil:
		m["content"] = encode(text + p.Content)
		return nil
	case json.Unmarshal(raw, &blocks) != nil || len(blocks) == 0:
		return ErrPrompt
	}
	last := blocks[len(blocks)-1]
	if string(last["type"]) == `"text"` && json.Unmarshal(last["text"], &text) == nil {
		last["text"] = encode(text + p.Content)
	} else {
		blocks = append(blocks, block(p.Content))
	}
	m["content"] = encode(blocks)
	return nil
}

// encode writes JSON without escapes that it need not have.
func encode(v any) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("resume: " + err.Error()) // our own types, and raw JSON that was valid
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
