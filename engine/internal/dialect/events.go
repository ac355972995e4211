package dialect

import (
	"bytes"

	"millrace.dev/millrace/engine/internal/backend"
)

// righted is an answer whose objects are put right one by one.
type righted struct {
	object  func([]byte) []byte
	unasked bool // whether events that hold nothing but an account are left out
	cut     backend.Cut
	out     []byte
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
	r.out = r.out[:0]
	r.cut.Each(p, r.event)
	return r.out
}

// event adds an event, with the name that its object has then.
func (r *righted) event(lines [][]byte, as []byte) {
	if n := len(lines); n > 0 {
		object, ok := bytes.CutPrefix(lines[n-1], asData)
		object = bytes.TrimSpace(object)
		named := n == 2 && bytes.HasPrefix(lines[0], asName)
		if ok && (n == 1 || named) && len(object) > 0 && object[0] == '{' {
			if r.unasked && backend.OnlyUsage(object) {
				return
			}
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
func (r *righted) Rest() []byte { return r.cut.Rest() }

// Fail leaves it to the operation.
func (r *righted) Fail(backend.Error) []byte { return nil }
