package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Whole puts the events of a stream together to one unary answer, of one choice.
type Whole struct {
	line    []byte // that has not ended yet
	message map[string][]byte
	text    []byte // of a completion that is no chat; nil: a chat
	finish  json.RawMessage
	account []byte // the event that holds the usage
	done    bool
	err     error
}

// errCut is returned for a stream that ended before its end.
var errCut = errors.New("the stream ended early")

// Write takes the next bytes of the stream. It never fails; JSON returns what was
// wrong.
func (w *Whole) Write(p []byte) (int, error) {
	n := len(p)
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

// event is one event, as far as it matters to the answer.
type event struct {
	Choices []struct {
		Finish json.RawMessage            `json:"finish_reason"`
		Text   json.RawMessage            `json:"text"`
		Delta  map[string]json.RawMessage `json:"delta"`
	} `json:"choices"`
	Usage json.RawMessage `json:"usage"`
	Error json.RawMessage `json:"error"`
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
	}
	for _, c := range e.Choices {
		for name, v := range c.Delta {
			w.grow(name, v)
		}
		if c.Text != nil {
			w.text = appendString(w.text, c.Text)
		}
		if string(c.Finish) != "null" {
			w.finish = c.Finish
		}
	}
}

// grow adds to a field of the message. Who speaks is said once or not at all.
func (w *Whole) grow(name string, v json.RawMessage) {
	if name == "role" {
		return
	}
	if w.message == nil {
		w.message = make(map[string][]byte)
	}
	w.message[name] = appendString(w.message[name], v)
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
	choice := map[string]any{"index": 0, "finish_reason": w.finish}
	if w.text != nil {
		choice["text"], choice["logprobs"] = json.RawMessage(w.text), nil
	} else {
		message := map[string]any{"role": "assistant", "content": ""}
		for name, v := range w.message {
			message[name] = json.RawMessage(v)
		}
		choice["message"], answer["object"] = message, "chat.completion"
	}
	answer["choices"] = []any{choice}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(answer)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
