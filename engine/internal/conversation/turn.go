package conversation

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/record"
)

// Turn is one request of the Responses API, and its answer.
type Turn struct {
	service *Service
	ctx     context.Context // of the request, which lasts as long as the Turn
	tenant  string

	id           string
	previous     string
	conversation string
	before       int  // items of the conversation that were its input
	store        bool // whether the response is stored
	must         bool // whether the client has asked for that
	input        []json.RawMessage

	failed *backend.Error // why the answer was not stored, though it must be
	lines  lines
}

// Begin takes a request, and returns the fields of one that continues nothing. The Turn is nil
// where nothing of it is to be stored or shown; counts is whether it only counts tokens.
func (s *Service) Begin(ctx context.Context, tenant string, f fields, counts bool) (fields, *Turn, *backend.Error) {
	t := &Turn{service: s, ctx: ctx, tenant: tenant, id: record.NewID(responsePrefix, s.hint), store: string(f["store"]) != "false"}
	t.must = string(f["store"]) == "true"
	if wrong := t.names(f); wrong != nil {
		return nil, nil, wrong
	}
	var before []json.RawMessage
	var wrong *backend.Error
	switch {
	case t.previous != "":
		before, wrong = s.history(ctx, tenant, t.previous)
	case t.conversation != "":
		before, wrong = s.itemsOf(ctx, tenant, t.conversation, -1)
		t.before, t.must = len(before), true
	}
	if wrong != nil {
		return nil, nil, wrong
	}
	if t.input, wrong = itemsIn("input", f["input"]); wrong != nil {
		return nil, nil, wrong
	}
	out := make(fields, len(f))
	for name, value := range f {
		if name != "previous_response_id" && name != "conversation" && name != "store" {
			out[name] = value
		}
	}
	if !counts {
		out["store"] = json.RawMessage("false") // by whoever is behind us
	}
	if len(before) > 0 {
		out["input"] = backend.Encode(append(slices.Clip(before), t.input...))
	}
	if counts || !t.store && t.previous == "" && t.conversation == "" {
		return out, nil, nil
	}
	return out, t, nil
}

// names reads what the request continues.
func (t *Turn) names(f fields) *backend.Error {
	if backend.Given(f, "previous_response_id") && json.Unmarshal(f["previous_response_id"], &t.previous) != nil {
		return backend.Refuse("previous_response_id", "must be a string")
	}
	if !backend.Given(f, "conversation") {
		return nil
	}
	var named struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(f["conversation"], &t.conversation) != nil && (json.Unmarshal(f["conversation"], &named) != nil || named.ID == "") {
		return backend.Refuse("conversation", "must be the id of one, or an object with that")
	}
	if named.ID != "" {
		t.conversation = named.ID
	}
	if t.previous != "" {
		return backend.Refuse("previous_response_id", "can't be given together with conversation: the conversation is what came before")
	}
	return nil
}

// ID is the id of the response.
func (t *Turn) ID() string { return t.id }

// Failed is why the answer was not stored although it must have been; nil: it was.
func (t *Turn) Failed() *backend.Error { return t.failed }

// show makes the response what the client is to see.
func (t *Turn) show(r fields) {
	r["id"], r["store"] = backend.Encode(t.id), backend.Encode(t.store)
	r["previous_response_id"] = json.RawMessage("null")
	if t.previous != "" {
		r["previous_response_id"] = backend.Encode(t.previous)
	}
	if t.conversation != "" {
		r["conversation"] = backend.Encode(map[string]string{"id": t.conversation})
	}
}

// storeFor bounds how long an answer waits for the store.
const storeFor = 5 * time.Second

// save stores a response that has ended, as it is shown, and adds it to its conversation.
func (t *Turn) save(r fields) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), storeFor)
	defer cancel()
	if t.store {
		value := backend.Encode(stored{Response: backend.Encode(r), Input: t.input, Previous: t.previous, Conversation: t.conversation, Before: t.before})
		err := t.service.store.Put(ctx, record.Record{Key: record.Key{Tenant: t.tenant, ID: t.id}, Version: 1, Value: value})
		switch {
		case err != nil && t.must:
			t.failed = unstored(fault(err, "Response", t.id))
			return
		case err != nil:
			t.store = false
			r["store"] = json.RawMessage("false")
		}
	}
	if t.conversation == "" {
		return
	}
	var output []json.RawMessage
	_ = json.Unmarshal(r["output"], &output) // it was made by us
	if _, wrong := t.service.change(ctx, t.tenant, t.conversation, func(c *talk) *backend.Error {
		c.Items = append(append(c.Items, t.input...), output...)
		return nil
	}); wrong != nil {
		t.failed = unstored(wrong)
	}
}

// unstored is an error behind an answer that was made: another engine would have to make it
// again.
func unstored(why *backend.Error) *backend.Error {
	return failed(http.StatusInternalServerError, "store_failed", "", "the answer was made, but not stored: %s", why.Message)
}

// Form returns the form of the answer, which inner has made of the backend's; nil: it is the
// backend's.
func (t *Turn) Form(inner backend.Reform) backend.Reform { return &form{turn: t, inner: inner} }

// form is the answer of a turn.
type form struct {
	turn  *Turn
	inner backend.Reform
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
		return kind, append(bytes.Clone(f.out), f.turn.lines.rest...), nil
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
	f.out = append(f.out, f.turn.lines.rest...)
	f.turn.lines.rest = nil
	return f.out
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
	f.turn.lines.each(p, func(event []byte) { f.out = append(f.out, f.turn.event(event)...) })
}

// event is one event, with the response in it as it is shown.
func (t *Turn) event(event []byte) []byte {
	data := dataOf(event)
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

// lines cuts a stream into events.
type lines struct{ rest []byte }

// each calls do with each event that has come whole, its end included.
func (l *lines) each(p []byte, do func(event []byte)) {
	l.rest = append(l.rest, p...)
	for {
		i, n := bytes.Index(l.rest, []byte("\n\n")), 2
		if j := bytes.Index(l.rest, []byte("\r\n\r\n")); j >= 0 && (i < 0 || j < i) {
			i, n = j, 4
		}
		if i < 0 {
			return
		}
		do(l.rest[:i+n])
		l.rest = l.rest[i+n:]
	}
}

// dataOf returns the data of an event; nil: it has none, or in several lines.
func dataOf(event []byte) (data []byte) {
	for line := range bytes.Lines(event) {
		value, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data:"))
		if ok && data != nil {
			return nil
		}
		if ok {
			data = bytes.TrimSpace(value)
		}
	}
	return data
}
