package conversation

import (
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
