// Package conversation is OpenAI's stored responses and its conversations, over a record.Store.
//
//   - A Turn is one request of the Responses API on its way: what it continues is put in front
//     of its input, and its answer is stored before the client sees its end, so that whoever
//     continues at once, anywhere, finds it.
//   - A response is one record: the object that the client got, its own input, and the id of the
//     response before it. Its history is the chain of those. So what is deleted is nowhere else,
//     and what continued it can't be continued any more.
//   - A conversation is one record with all of its items, which each turn adds to.
//
// What could not be stored is said: to a request with "store": true, or in a conversation, as an
// error; to one that leaves it to us, as "store": false in the answer.
//
// Called by api. Its one rule: nothing of a tenant's is in another tenant's answer, nor whether
// there is such a thing.
package conversation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/record"
)

// fields is a JSON object whose values were not decoded.
type fields = map[string]json.RawMessage

// Service is responses and conversations in a store.
type Service struct {
	store record.Store
	hint  string // of this node, in its ids
}

// New returns a service whose ids hint at this node, so that the store finds what they name.
func New(s record.Store, hint string) *Service { return &Service{store: s, hint: hint} }

// Prefixes of ids, which say what they name.
const (
	responsePrefix     = "resp_"
	conversationPrefix = "conv_"
)

// Bounds of what one request may cost.
const (
	// mostTurns is how many responses a history may have.
	mostTurns = 2000
	// mostHistory is how many bytes its items may have.
	mostHistory = 16 << 20
	// mostItems is how many items a conversation may have.
	mostItems = 20000
	// tries is how often a write is tried again that others were faster than.
	tries = 8
)

// stored is the record of a response.
type stored struct {
	Response     json.RawMessage   `json:"response"`
	Input        []json.RawMessage `json:"input"`
	Previous     string            `json:"previous,omitempty"`
	Conversation string            `json:"conversation,omitempty"`
	// Before is how many items of the conversation were its input.
	Before int `json:"before,omitempty"`
}

// talk is the record of a conversation.
type talk struct {
	Created  int64             `json:"created_at"`
	Metadata json.RawMessage   `json:"metadata"`
	Items    []json.RawMessage `json:"items"`
}

// object is a conversation as the API shows it.
func (t *talk) object(id string) []byte {
	return backend.Encode(map[string]any{"id": id, "object": "conversation", "created_at": t.Created, "metadata": t.Metadata})
}

func failed(status int, code, param, format string, args ...any) *backend.Error {
	kind := "invalid_request_error"
	if status >= http.StatusInternalServerError {
		kind = "server_error"
	}
	return &backend.Error{Status: status, Type: kind, Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
}

// missing is that there is no such thing, as the API says it.
func missing(what, id string) *backend.Error {
	return failed(http.StatusNotFound, "", "", "%s with id '%.200s' not found.", what, id)
}

// fault is an error of the store, about something with an id.
func fault(err error, what, id string) *backend.Error {
	switch {
	case errors.Is(err, record.ErrNotFound):
		return missing(what, id)
	case errors.Is(err, record.ErrTooLarge):
		return failed(http.StatusBadRequest, "record_too_large", "", "%s is larger than what may be stored: see records.maxRecordBytes", what)
	case errors.Is(err, record.ErrConflict):
		return failed(http.StatusConflict, "conflict", "", "%s '%s' is being changed by others: try again", what, id)
	}
	return failed(http.StatusServiceUnavailable, "store_unavailable", "", "the store of responses and conversations can't be reached: try again shortly")
}

// read reads a record of a kind into v.
func (s *Service) read(ctx context.Context, tenant, id, prefix string, v any) (record.Record, error) {
	if len(id) <= len(prefix) || id[:len(prefix)] != prefix {
		return record.Record{}, record.ErrNotFound
	}
	r, err := s.store.Get(ctx, record.Key{Tenant: tenant, ID: id})
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(r.Value, v); err != nil {
		return r, fmt.Errorf("%w: %w", record.ErrNotFound, err) // of another version of ours
	}
	return r, nil
}

// change changes a conversation, again where others were faster. do says what is wrong.
func (s *Service) change(ctx context.Context, tenant, id string, do func(*talk) *backend.Error) (*talk, *backend.Error) {
	var err error
	for range tries {
		var t talk
		var r record.Record
		if r, err = s.read(ctx, tenant, id, conversationPrefix, &t); err != nil {
			break
		}
		if wrong := do(&t); wrong != nil {
			return nil, wrong
		}
		if len(t.Items) > mostItems {
			return nil, failed(http.StatusBadRequest, "record_too_large", "", "a conversation may have %d items", mostItems)
		}
		r.Version, r.Value = r.Version+1, backend.Encode(t)
		if err = s.store.Put(ctx, r); err == nil {
			return &t, nil
		}
		if !errors.Is(err, record.ErrConflict) {
			break
		}
	}
	return nil, fault(err, "Conversation", id)
}

// history returns the items of a response and of all before it, the oldest first.
func (s *Service) history(ctx context.Context, tenant, id string) ([]json.RawMessage, *backend.Error) {
	var turns [][]json.RawMessage
	n, size := 0, 0
	for at := id; at != ""; {
		var one stored
		_, err := s.read(ctx, tenant, at, responsePrefix, &one)
		switch {
		case errors.Is(err, record.ErrNotFound):
			return nil, failed(http.StatusBadRequest, "previous_response_not_found", "previous_response_id", "Previous response with id '%.200s' not found.", at)
		case err != nil:
			return nil, fault(err, "Response", at)
		}
		var answer struct {
			Output []json.RawMessage `json:"output"`
		}
		_ = json.Unmarshal(one.Response, &answer) // it was made by us
		items := append(one.Input, answer.Output...)
		if one.Conversation != "" {
			before, wrong := s.itemsOf(ctx, tenant, one.Conversation, one.Before)
			if wrong != nil {
				return nil, wrong
			}
			items = append(before, items...)
		}
		turns = append(turns, items)
		for _, it := range items {
			n, size = n+1, size+len(it)
		}
		if len(turns) > mostTurns || size > mostHistory {
			return nil, failed(http.StatusBadRequest, "context_length_exceeded", "previous_response_id", "the conversation is too long: more than %d turns, or %d bytes", mostTurns, mostHistory)
		}
		at = one.Previous
	}
	all := make([]json.RawMessage, 0, n)
	for i := len(turns) - 1; i >= 0; i-- {
		all = append(all, turns[i]...)
	}
	return all, nil
}

// itemsOf returns the first items of a conversation; below 0: all.
func (s *Service) itemsOf(ctx context.Context, tenant, id string, first int) ([]json.RawMessage, *backend.Error) {
	var t talk
	if _, err := s.read(ctx, tenant, id, conversationPrefix, &t); err != nil {
		wrong := fault(err, "Conversation", id)
		if wrong.Param = "conversation"; wrong.Status == http.StatusNotFound {
			wrong.Code = "conversation_not_found"
		}
		return nil, wrong
	}
	if first < 0 || first > len(t.Items) {
		return t.Items, nil
	}
	return t.Items[:first], nil
}
