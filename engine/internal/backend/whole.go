package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Whole puts the events of a stream together to one unary answer.
type Whole struct {
	// N is how many choices there are of one prompt; 0: one.
	N int

	line     []byte // that has not ended yet
	choices  []*choice
	account  []byte // the last event that holds a usage
	accounts []map[string]json.RawMessage
	size     int // bytes that have come
	done     bool
	err      error
}

// mostWhole bounds a stream that is put together to one answer, in bytes: an event takes some
// 300 bytes, of which few are text.
const mostWhole = 64 << 20

// choice is one of the answer, as far as it has come.
type choice struct {
	message  map[string][]byte
	text     []byte // of a completion that is no chat; nil: a chat
	calls    []*toolCall
	numbers  numbering // of calls
	logprobs []json.RawMessage
	probed   bool // whether there are logprobs, none included
	finish   json.RawMessage
}

// toolCall is the call of a function.
type toolCall struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

// mostChoices bounds what a stream may say of its choices.
const mostChoices = 4096

// errCut is returned for a stream that ended before its end.
var errCut = errors.New("the stream ended early")

// Write takes the next bytes of the stream. It never fails; JSON returns what was
// wrong.
func (w *Whole) Write(p []byte) (int, error) {
	n := len(p)
	if w.size += n; w.size > mostWhole && w.err == nil {
		w.err = fmt.Errorf("an answer of more than %d bytes", mostWhole)
		w.line, w.choices, w.accounts = nil, nil, nil
	}
	if w.err != nil {
		return n, nil
	}
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			w.line = append(w.line, p...)
			return n, nil
		}
		line := p[:i]
		if len(w.line) > 0 {
			w.line = append(w.line, line...)
			line = w.line
		}
		w.take(line)
		w.line, p = w.line[:0], p[i+1:]
	}
}

// event is one event, as far as it matters to the answer. What is null is not there.
type event struct {
	Choices []struct {
		Index    int                        `json:"index"`
		Finish   *json.RawMessage           `json:"finish_reason"`
		Text     *json.RawMessage           `json:"text"`
		Delta    map[string]json.RawMessage `json:"delta"`
		Logprobs *struct {
			Content []json.RawMessage `json:"content"`
		} `json:"logprobs"`
	} `json:"choices"`
	Usage *json.RawMessage `json:"usage"`
	Error *json.RawMessage `json:"error"`
}

func (w *Whole) take(line []byte) {
	data, ok := bytes.CutPrefix(line, []byte("data: "))
	if !ok || w.err != nil {
		return // empty, or a comment
	}
	if w.done = string(data) == "[DONE]"; w.done {
		return
	}
	var e event
	switch err := json.Unmarshal(data, &e); {
	case err != nil:
		w.err = fmt.Errorf("an event of the stream: %w", err)
	case e.Error != nil:
		w.err = &StreamError{Body: bytes.Clone(data)}
	case e.Usage != nil:
		w.account = bytes.Clone(data)
		var u map[string]json.RawMessage
		if json.Unmarshal(*e.Usage, &u) == nil {
			w.accounts = append(w.accounts, u)
		}
	}
	for _, c := range e.Choices {
		if c.Index < 0 || c.Index >= mostChoices {
			w.err = fmt.Errorf("an event of the stream: choice %d", c.Index)
			return
		}
		for len(w.choices) <= c.Index {
			w.choices = append(w.choices, &choice{})
		}
		to := w.choices[c.Index]
		for name, v := range c.Delta {
			to.grow(name, v)
		}
		if c.Text != nil {
			to.text = appendString(to.text, *c.Text)
		}
		if c.Logprobs != nil {
			to.logprobs, to.probed = append(to.logprobs, c.Logprobs.Content...), true
		}
		if c.Finish != nil {
			to.finish = *c.Finish
		}
	}
}

// grow adds to a field of the message. Who speaks is said once or not at all.
func (c *choice) grow(name string, v json.RawMessage) {
	if string(v) == "null" {
		return
	}
	switch name {
	case "role":
		return
	case "tool_calls":
		c.call(v)
		return
	}
	if c.message == nil {
		c.message = make(map[string][]byte)
	}
	c.message[name] = appendString(c.message[name], v)
}

// call adds to the calls of functions.
func (c *choice) call(v json.RawMessage) {
	var parts []struct {
		Index *int `json:"index"`
		toolCall
	}
	if json.Unmarshal(v, &parts) != nil {
		return
	}
	for _, p := range parts {
		at := c.numbers.of(p.Index, p.ID, p.Function.Name)
		if at < 0 || at >= mostChoices {
			continue
		}
		for len(c.calls) <= at {
			c.calls = append(c.calls, &toolCall{Type: "function"})
		}
		to := c.calls[at]
		to.ID += p.ID
		to.Function.Name += p.Function.Name
		to.Function.Arguments += p.Function.Arguments
	}
}

// appendString joins two strings in their JSON form; null is an empty one.
func appendString(s, more []byte) []byte {
	if len(s) == 0 {
		s = append(s, `""`...)
	}
	if len(more) < 2 || more[0] != '"' {
		return s
	}
	return append(s[:len(s)-1], more[1:]...)
}

// StreamError is the server's own error in the middle of a stream.
type StreamError struct{ Body []byte }

// FirstError returns the error with which a stream begins, given its first bytes; nil:
// it begins with something else.
func FirstError(first []byte) *StreamError {
	data, ok := bytes.CutPrefix(first, []byte("data: "))
	if !ok {
		return nil
	}
	data, _, _ = bytes.Cut(data, []byte("\n"))
	var e event
	if !bytes.HasPrefix(data, []byte(`{"error"`)) || json.Unmarshal(data, &e) != nil || e.Error == nil {
		return nil
	}
	return &StreamError{Body: bytes.Clone(data)}
}

// Error returns the server's message.
func (e *StreamError) Error() string { return Message(e.Status(), e.Body) }

// Status is the status that the server would have answered.
func (e *StreamError) Status() int {
	var v struct {
		Error struct {
			Code int `json:"code"`
		} `json:"error"`
	}
	if err := json.Unmarshal(e.Body, &v); err != nil || v.Error.Code < 400 || v.Error.Code > 599 {
		return 500
	}
	return v.Error.Code
}

// JSON returns the unary answer once the stream has ended.
func (w *Whole) JSON() ([]byte, error) {
	if w.err != nil {
		return nil, w.err
	}
	if !w.done || w.account == nil {
		return nil, errCut
	}
	var kept map[string]json.RawMessage
	if err := json.Unmarshal(w.account, &kept); err != nil {
		return nil, err
	}
	answer := make(map[string]any, len(kept))
	for name, v := range kept {
		answer[name] = v
	}
	if len(w.accounts) > 1 {
		answer["usage"] = SumUsage(w.accounts, w.N)
	}
	if len(w.choices) == 0 {
		w.choices = []*choice{{}}
	}
	all := make([]any, len(w.choices))
	for i, c := range w.choices {
		out := map[string]any{"index": i, "finish_reason": c.finish, "logprobs": nil}
		if c.probed {
			out["logprobs"] = map[string]any{"content": c.logprobs, "refusal": nil}
		}
		if c.text != nil {
			out["text"] = json.RawMessage(c.text)
		} else {
			message := map[string]any{"role": "assistant", "content": "", "refusal": nil}
			for name, v := range c.message {
				message[name] = json.RawMessage(v)
			}
			if len(c.calls) > 0 {
				message["tool_calls"] = c.calls
			}
			out["message"], answer["object"] = message, "chat.completion"
		}
		all[i] = out
	}
	answer["choices"] = all
	return Encode(answer), nil
}

// SumUsage is the account of several choices, n of each prompt, in OpenAI's form: a
// prompt counts once.
func SumUsage(accounts []map[string]json.RawMessage, n int) any {
	var prompt, completion, cached uint64
	for _, a := range accounts {
		var u usage
		_ = json.Unmarshal(Encode(a), &u) // what is no number counts nothing
		prompt, completion, cached = prompt+u.Prompt, completion+u.Completion, cached+u.Details.Cached
	}
	each := uint64(max(1, n))
	prompt, cached = prompt/each, cached/each
	return map[string]any{
		"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
		"prompt_tokens_details": map[string]any{"cached_tokens": cached},
	}
}
