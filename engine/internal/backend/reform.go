package backend

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Reform makes the answer that a client gets of the one that the backend gives, where
// a request was sent in another form than the client's. One is used for one answer, by
// one goroutine.
type Reform interface {
	// Unary takes a whole answer that is no error, and returns the client's and its
	// content type.
	Unary(answer []byte) (kind string, body []byte, err error)
	// Pass takes the next bytes of a stream and returns what is forwarded, good until
	// the next call.
	Pass(p []byte) []byte
	// Rest is what the client gets behind the last of them.
	Rest() []byte
	// Fail is what a stream ends with whose backend was lost; nil: the operation's own.
	Fail(Error) []byte
}

// Content types of answers.
const (
	JSON   = "application/json; charset=utf-8"
	Events = "text/event-stream"
)

// TypeOf returns the type that an object has by its own field; "": it has none.
func TypeOf(object []byte) string {
	var v struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(object, &v) != nil {
		return ""
	}
	return v.Type
}

// Within changes the object that is the value of a field, if it is one.
func Within(v map[string]json.RawMessage, name string, change func(map[string]json.RawMessage)) {
	var inner map[string]json.RawMessage
	if json.Unmarshal(v[name], &inner) == nil && inner != nil {
		change(inner)
		v[name] = Encode(inner)
	}
}

// AddMissing adds the fields of more that v has not.
func AddMissing(v, more map[string]json.RawMessage) {
	for name, value := range more {
		if _, ok := v[name]; !ok {
			v[name] = value
		}
	}
}

// NewID returns an id that nobody can guess: a prefix, and 26 random letters and digits.
func NewID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }

// Refuse is a request that a backend can't do as it is asked: the field is named.
func Refuse(param, format string, args ...any) *Error {
	return &Error{
		Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "unsupported_value", Param: param,
		Message: param + ": " + fmt.Sprintf(format, args...),
	}
}

// Given reports whether a request has a field that is not null.
func Given(fields map[string]json.RawMessage, name string) bool {
	raw, ok := fields[name]
	return ok && string(raw) != "null"
}

// Encode writes JSON as clients expect it: no character is escaped that need not be.
func Encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("backend: " + err.Error()) // our own types, and raw JSON that was valid
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Lines cuts a stream of events into their data.
type Lines struct {
	rest  []byte    // of a line that has not ended yet
	calls numbering // of chat completions
}

// Each calls do with the data of each event that has come whole.
func (l *Lines) Each(p []byte, do func(data string)) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return
		}
		if data, ok := strings.CutPrefix(strings.TrimSuffix(string(l.rest[:i]), "\r"), "data:"); ok {
			do(strings.TrimPrefix(data, " "))
		}
		l.rest = l.rest[i+1:]
	}
}

// Cut cuts a stream of events into whole ones, as they are.
type Cut struct {
	rest []byte // of an event that has not ended yet
}

// Each calls do with each event that has come whole: its lines without their ends, and its
// bytes, its end included. Both are good until do returns.
func (c *Cut) Each(p []byte, do func(lines [][]byte, event []byte)) {
	c.rest = append(c.rest, p...)
	for {
		lines, n := c.next()
		if n == 0 {
			return
		}
		do(lines, c.rest[:n])
		c.rest = c.rest[n:]
	}
}

// next returns the lines of the event that has come whole, and its size; 0: none has.
func (c *Cut) next() (lines [][]byte, size int) {
	for at := 0; ; {
		i := bytes.IndexByte(c.rest[at:], '\n')
		if i < 0 {
			return nil, 0
		}
		line := bytes.TrimRight(c.rest[at:at+i], "\r")
		if at += i + 1; len(line) == 0 {
			return lines, at
		}
		lines = append(lines, line)
	}
}

// Rest is what has come behind the last whole event.
func (c *Cut) Rest() []byte { return c.rest }

// Chain returns the form of an answer that has another form before; first may be nil.
func Chain(first, second Reform) Reform {
	if first == nil {
		return second
	}
	return &chain{Reform: second, first: first}
}

// chain is a form of a form, of whole answers.
type chain struct {
	Reform
	first Reform
}

// Unary makes the second form of what the first makes, a stream or not.
func (c *chain) Unary(answer []byte) (string, []byte, error) {
	kind, body, err := c.first.Unary(answer)
	if err != nil {
		return "", nil, err
	}
	if kind != Events {
		return c.Reform.Unary(body)
	}
	out := append([]byte(nil), c.Pass(body)...)
	return Events, append(out, c.Rest()...), nil
}
