package conversation

import (
	"bytes"
	"encoding/json"

	"millrace.dev/millrace/engine/internal/backend"
)

// Form returns the form of the answer, which inner has made of the backend's; nil: it is the
// backend's.
func (t *Turn) Form(inner backend.Reform) backend.Reform { return &form{turn: t, inner: inner} }

// form is the answer of a turn.
type form struct {
	turn  *Turn
	inner backend.Reform
	cut   backend.Cut
	out   []byte
}

// Unary shows and stores a whole answer.
func (f *form) Unary(answer []byte) (string, []byte, error) {
	kind, body := backend.JSON, answer
	if f.inner != nil {
		var err error
		if kind, body, err = f.inner.Unary(answer); err != nil {
			return kind, body, err
		}
	}
	if kind == backend.Events {
		f.out = f.out[:0]
		f.pass(body)
		return kind, append(bytes.Clone(f.out), f.cut.Rest()...), nil
	}
	var r fields
	if err := json.Unmarshal(body, &r); err != nil {
		return "", nil, err
	}
	f.turn.show(r)
	f.turn.save(r)
	return kind, backend.Encode(r), nil
}

// Pass shows the next events, and stores the response before the last one.
func (f *form) Pass(p []byte) []byte {
	if f.inner != nil {
		p = f.inner.Pass(p)
	}
	f.out = f.out[:0]
	f.pass(p)
	return f.out
}

// Rest ends the stream.
func (f *form) Rest() []byte {
	f.out = f.out[:0]
	if f.inner != nil {
		f.pass(f.inner.Rest())
	}
	return append(f.out, f.cut.Rest()...)
}

// Fail ends a stream whose backend was lost: such a response is not stored.
func (f *form) Fail(e backend.Error) []byte {
	if f.inner == nil {
		return nil
	}
	last := f.inner.Fail(e)
	if last == nil {
		return nil
	}
	f.out = f.out[:0]
	f.pass(last)
	return f.out
}

func (f *form) pass(p []byte) {
	f.cut.Each(p, func(lines [][]byte, event []byte) { f.out = append(f.out, f.turn.event(lines, event)...) })
}

// event is one event, with the response in it as it is shown.
func (t *Turn) event(lines [][]byte, event []byte) []byte {
	data := dataOf(lines)
	if data == nil || !bytes.Contains(data, []byte(`"response":`)) {
		return event
	}
	var v, r fields
	if json.Unmarshal(data, &v) != nil || json.Unmarshal(v["response"], &r) != nil || r == nil {
		return event
	}
	kind := backend.TypeOf(data)
	t.show(r)
	if kind == "response.completed" || kind == "response.incomplete" {
		t.save(r)
	}
	if t.failed != nil {
		kind = "response.failed"
		r["status"], r["completed_at"] = backend.Encode("failed"), json.RawMessage("null")
		r["error"] = backend.Encode(map[string]string{"code": "server_error", "message": t.failed.Message})
		v["type"] = backend.Encode(kind)
	}
	v["response"] = backend.Encode(r)
	return backend.Event(nil, kind, backend.Encode(v))
}

// dataOf returns the data of an event's lines; nil: it has none, or in several.
func dataOf(lines [][]byte) (data []byte) {
	for _, line := range lines {
		value, ok := bytes.CutPrefix(line, []byte("data:"))
		if ok && data != nil {
			return nil
		}
		if ok {
			data = bytes.TrimSpace(value)
		}
	}
	return data
}
