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

// gone is what a deletion answers.
func gone(id, object string) []byte {
	return backend.Encode(map[string]any{"id": id, "object": object, "deleted": true})
}

// Response returns a stored response.
func (s *Service) Response(ctx context.Context, tenant, id string) ([]byte, *backend.Error) {
	var one stored
	if _, err := s.read(ctx, tenant, id, responsePrefix, &one); err != nil {
		return nil, fault(err, "Response", id)
	}
	return one.Response, nil
}

// InputItems returns what was the input of a response, with all that came before it.
func (s *Service) InputItems(ctx context.Context, tenant, id string, p Page) ([]byte, *backend.Error) {
	var one stored
	if _, err := s.read(ctx, tenant, id, responsePrefix, &one); err != nil {
		return nil, fault(err, "Response", id)
	}
	var items []json.RawMessage
	var wrong *backend.Error
	switch {
	case one.Previous != "":
		items, wrong = s.history(ctx, tenant, one.Previous)
	case one.Conversation != "":
		items, wrong = s.itemsOf(ctx, tenant, one.Conversation, one.Before)
	}
	if wrong != nil && wrong.Status >= http.StatusInternalServerError {
		return nil, wrong
	}
	return p.list(append(slices.Clip(items), one.Input...)) // without what was deleted
}

// DeleteResponse deletes a stored response.
func (s *Service) DeleteResponse(ctx context.Context, tenant, id string) ([]byte, *backend.Error) {
	if _, err := s.read(ctx, tenant, id, responsePrefix, &stored{}); err != nil {
		return nil, fault(err, "Response", id)
	}
	if err := s.store.Delete(ctx, record.Key{Tenant: tenant, ID: id}); err != nil {
		return nil, fault(err, "Response", id)
	}
	return gone(id, "response"), nil
}

// Cancel refuses to cancel a response: none of those that are stored runs any more.
func (s *Service) Cancel(ctx context.Context, tenant, id string) ([]byte, *backend.Error) {
	if _, err := s.read(ctx, tenant, id, responsePrefix, &stored{}); err != nil {
		return nil, fault(err, "Response", id)
	}
	return nil, failed(http.StatusBadRequest, "", "", "Cannot cancel a synchronous response.")
}

// Create makes a conversation of a request.
func (s *Service) Create(ctx context.Context, tenant string, f fields) ([]byte, *backend.Error) {
	t := talk{Created: time.Now().Unix(), Metadata: json.RawMessage("{}"), Items: []json.RawMessage{}}
	if wrong := t.read(f); wrong != nil {
		return nil, wrong
	}
	if backend.Given(f, "items") {
		items, wrong := itemsIn("items", f["items"])
		if wrong != nil {
			return nil, wrong
		}
		t.Items = items
	}
	id := record.NewID(conversationPrefix, s.hint)
	if err := s.store.Put(ctx, record.Record{Key: record.Key{Tenant: tenant, ID: id}, Version: 1, Value: backend.Encode(t)}); err != nil {
		return nil, fault(err, "Conversation", id)
	}
	return t.object(id), nil
}

// read reads the metadata of a request.
func (t *talk) read(f fields) *backend.Error {
	if !backend.Given(f, "metadata") {
		return nil
	}
	var m map[string]string
	if json.Unmarshal(f["metadata"], &m) != nil {
		return backend.Refuse("metadata", "must be an object of strings")
	}
	if len(m) > 16 {
		return backend.Refuse("metadata", "%d entries; must be at most 16", len(m))
	}
	for k, v := range m {
		if len(k) > 64 || len(v) > 512 {
			return backend.Refuse("metadata", "a name may have 64 bytes, and a value 512")
		}
	}
	t.Metadata = f["metadata"]
	return nil
}

// Conversation returns a conversation.
func (s *Service) Conversation(ctx context.Context, tenant, id string) ([]byte, *backend.Error) {
	var t talk
	if _, err := s.read(ctx, tenant, id, conversationPrefix, &t); err != nil {
		return nil, fault(err, "Conversation", id)
	}
	return t.object(id), nil
}

// Update gives a conversation other metadata.
func (s *Service) Update(ctx context.Context, tenant, id string, f fields) ([]byte, *backend.Error) {
	t, wrong := s.change(ctx, tenant, id, func(t *talk) *backend.Error { return t.read(f) })
	if wrong != nil {
		return nil, wrong
	}
	return t.object(id), nil
}

// DeleteConversation deletes a conversation. Responses that were made in it stay.
func (s *Service) DeleteConversation(ctx context.Context, tenant, id string) ([]byte, *backend.Error) {
	if _, err := s.read(ctx, tenant, id, conversationPrefix, &talk{}); err != nil {
		return nil, fault(err, "Conversation", id)
	}
	if err := s.store.Delete(ctx, record.Key{Tenant: tenant, ID: id}); err != nil {
		return nil, fault(err, "Conversation", id)
	}
	return gone(id, "conversation.deleted"), nil
}

// Items returns items of a conversation.
func (s *Service) Items(ctx context.Context, tenant, id string, p Page) ([]byte, *backend.Error) {
	var t talk
	if _, err := s.read(ctx, tenant, id, conversationPrefix, &t); err != nil {
		return nil, fault(err, "Conversation", id)
	}
	return p.list(t.Items)
}

// Add adds items to a conversation, and returns them.
func (s *Service) Add(ctx context.Context, tenant, id string, f fields) ([]byte, *backend.Error) {
	items, wrong := itemsIn("items", f["items"])
	if wrong != nil {
		return nil, wrong
	}
	if _, wrong := s.change(ctx, tenant, id, func(t *talk) *backend.Error {
		t.Items = append(t.Items, items...)
		return nil
	}); wrong != nil {
		return nil, wrong
	}
	return Page{Limit: max(1, len(items)), Ascending: true}.list(items)
}

// Item returns one item of a conversation.
func (s *Service) Item(ctx context.Context, tenant, id, item string) ([]byte, *backend.Error) {
	var t talk
	if _, err := s.read(ctx, tenant, id, conversationPrefix, &t); err != nil {
		return nil, fault(err, "Conversation", id)
	}
	for _, it := range t.Items {
		if idOf(it) == item {
			return it, nil
		}
	}
	return nil, missing("Item", item)
}

// DeleteItem takes an item out of a conversation, and returns that.
func (s *Service) DeleteItem(ctx context.Context, tenant, id, item string) ([]byte, *backend.Error) {
	t, wrong := s.change(ctx, tenant, id, func(t *talk) *backend.Error {
		n := len(t.Items)
		if t.Items = slices.DeleteFunc(t.Items, func(it json.RawMessage) bool { return idOf(it) == item }); len(t.Items) == n {
			return missing("Item", item)
		}
		return nil
	})
	if wrong != nil {
		return nil, wrong
	}
	return t.object(id), nil
}
