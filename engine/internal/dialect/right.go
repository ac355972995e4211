package dialect

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/messages"
	"millrace.dev/millrace/engine/internal/responses"
	"millrace.dev/millrace/internal/apis"
)

// Right puts right the answer of a server that has the request's operation itself; nil: there
// is nothing that servers are known to have otherwise.
func Right(r backend.Request) backend.Reform {
	switch r.API {
	case apis.Messages:
		return &righted{object: messages.Fill}
	case apis.Responses:
		return &righted{object: responses.NewFiller(r.Fields).Fill}
	case apis.Chat, apis.Completions:
		if !r.Stream { // whose events have no such fields
			return &righted{object: withoutNulls}
		}
	}
	return nil
}

// mayBeNull are the fields of a message that the API has be null; it leaves out the others.
var mayBeNull = []string{"content", "refusal"}

// withoutNulls leaves out of the answer of chat completions, or of completions, what a server
// has null that the API leaves out: clients take it for a value of the field's type.
func withoutNulls(object []byte) []byte {
	var v map[string]json.RawMessage
	var choices []map[string]json.RawMessage
	if json.Unmarshal(object, &v) != nil || json.Unmarshal(v["choices"], &choices) != nil {
		return object
	}
	for _, c := range choices {
		backend.Within(c, "message", func(m map[string]json.RawMessage) {
			maps.DeleteFunc(m, func(name string, value json.RawMessage) bool {
				return isNull(name, value) && !slices.Contains(mayBeNull, name)
			})
			if len(m["tool_calls"]) > len("[]") && string(m["content"]) == `""` {
				m["content"] = json.RawMessage("null")
			}
		})
		backend.Within(c, "logprobs", func(l map[string]json.RawMessage) {
			if _, ok := l["refusal"]; !ok && l["content"] != nil { // those of a chat
				l["refusal"] = json.RawMessage("null")
			}
		})
	}
	v["choices"] = backend.Encode(choices)
	backend.Within(v, "usage", func(u map[string]json.RawMessage) { maps.DeleteFunc(u, isNull) })
	maps.DeleteFunc(v, isNull)
	return backend.Encode(v)
}

func isNull(_ string, value json.RawMessage) bool { return string(value) == "null" }

// righted is an answer whose objects are put right one by one.
type righted struct {
	object func([]byte) []byte
	rest   []byte // of an event that has not ended yet
	out    []byte
}

// Unary puts a whole answer right.
func (r *righted) Unary(answer []byte) (string, []byte, error) {
	return backend.JSON, r.object(answer), nil
}

var (
	asName = []byte("event:")
	asData = []byte("data:")
)

// Pass puts the events of a stream right.
func (r *righted) Pass(p []byte) []byte {
	r.rest, r.out = append(r.rest, p...), r.out[:0]
	for {
		lines, n := r.next()
		if n == 0 {
			return r.out
		}
		r.event(lines, r.rest[:n])
		r.rest = r.rest[n:]
	}
}

// next returns the lines of the event that has come whole, and its size; 0: none has.
func (r *righted) next() (lines [][]byte, size int) {
	for at := 0; ; {
		i := bytes.IndexByte(r.rest[at:], '\n')
		if i < 0 {
			return nil, 0
		}
		line := bytes.TrimRight(r.rest[at:at+i], "\r")
		if at += i + 1; len(line) == 0 {
			return lines, at
		}
		lines = append(lines, line)
	}
}

// event adds an event, with the name that its object has then.
func (r *righted) event(lines [][]byte, as []byte) {
	if n := len(lines); n > 0 {
		object, ok := bytes.CutPrefix(lines[n-1], asData)
		object = bytes.TrimSpace(object)
		named := n == 2 && bytes.HasPrefix(lines[0], asName)
		if ok && (n == 1 || named) && len(object) > 0 && object[0] == '{' {
			made := r.object(object)
			kind := ""
			if named {
				kind = backend.TypeOf(made)
			}
			switch {
			case bytes.Equal(made, object):
			case kind != "":
				r.out = backend.Event(r.out, kind, made)
				return
			default:
				r.out = append(append(append(r.out, "data: "...), made...), "\n\n"...)
				return
			}
		}
	}
	r.out = append(r.out, as...)
}

// Rest is what has come behind the last event.
func (r *righted) Rest() []byte { return r.rest }

// Fail leaves it to the operation.
func (r *righted) Fail(backend.Error) []byte { return nil }
