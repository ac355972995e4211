package conversation

import (
	"encoding/json"
	"fmt"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/record"
)

// prefixes of the ids of items, by type; of others it is "item_".
var prefixes = map[string]string{
	"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_",
}

// itemsIn returns the items of a field: a text is the user's message. Each gets an id, a type,
// and content in parts, as the API shows them later. Whether they can be read by a model is the
// request's to find out.
func itemsIn(name string, raw json.RawMessage) ([]json.RawMessage, *backend.Error) {
	var text string
	if json.Unmarshal(raw, &text) == nil && len(raw) > 0 && raw[0] == '"' {
		raw = backend.Encode([]any{map[string]string{"role": "user", "content": text}})
	}
	var list []fields
	if len(raw) == 0 || json.Unmarshal(raw, &list) != nil {
		return nil, backend.Refuse(name, "must be a string or a list of items")
	}
	items := make([]json.RawMessage, len(list))
	for i, it := range list {
		at := fmt.Sprintf("%s[%d]", name, i)
		var kind, id string
		if it == nil || backend.Given(it, "type") && json.Unmarshal(it["type"], &kind) != nil || backend.Given(it, "id") && json.Unmarshal(it["id"], &id) != nil {
			return nil, backend.Refuse(at, "must be an object whose type and id are strings")
		}
		if kind == "" {
			kind = "message"
			it["type"] = backend.Encode(kind)
		}
		if id == "" {
			prefix := prefixes[kind]
			if prefix == "" {
				prefix = "item_"
			}
			it["id"] = backend.Encode(record.NewID(prefix, ""))
		}
		if kind == "message" {
			inParts(it)
		}
		if !backend.Given(it, "status") && kind != "reasoning" && kind != "item_reference" {
			it["status"] = backend.Encode("completed")
		}
		items[i] = backend.Encode(it)
	}
	return items, nil
}

// inParts gives a message whose content is a text a list of one part.
func inParts(it fields) {
	var text, role string
	if len(it["content"]) == 0 || it["content"][0] != '"' || json.Unmarshal(it["content"], &text) != nil {
		return
	}
	_ = json.Unmarshal(it["role"], &role) // what is none is the request's to refuse
	part := map[string]any{"type": "input_text", "text": text}
	if role == "assistant" {
		part = map[string]any{"type": "output_text", "text": text, "annotations": []string{}}
	}
	it["content"] = backend.Encode([]any{part})
}

// idOf returns the id of an item.
func idOf(item json.RawMessage) string {
	var v struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(item, &v) // it was made by us
	return v.ID
}

// Page is which items of a list are asked for.
type Page struct {
	// Limit is how many at most, 1 to 100; 0: 20.
	Limit int
	// Ascending is whether the oldest come first.
	Ascending bool
	// After is the id of the item before the first; empty: from the beginning.
	After string
}

// list is a page of items, as the API has it.
func (p Page) list(items []json.RawMessage) ([]byte, *backend.Error) {
	ordered := make([]json.RawMessage, len(items))
	for i, it := range items {
		if p.Ascending {
			ordered[i] = it
		} else {
			ordered[len(items)-1-i] = it
		}
	}
	if p.After != "" {
		at := -1
		for i, it := range ordered {
			if idOf(it) == p.After {
				at = i
			}
		}
		if at < 0 {
			return nil, backend.Refuse("after", "%.200q is none of the items", p.After)
		}
		ordered = ordered[at+1:]
	}
	limit := p.Limit
	if limit == 0 {
		limit = 20
	}
	shown := ordered[:min(limit, len(ordered))]
	v := map[string]any{"object": "list", "data": shown, "has_more": len(shown) < len(ordered), "first_id": nil, "last_id": nil}
	if len(shown) > 0 {
		v["first_id"], v["last_id"] = idOf(shown[0]), idOf(shown[len(shown)-1])
	}
	return backend.Encode(v), nil
}
