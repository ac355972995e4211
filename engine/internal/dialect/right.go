package dialect

import (
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
		if !r.Stream {
			return &righted{object: withoutNulls}
		}
		if r.API == apis.Chat { // events of completions have no such fields
			return &righted{object: chunk}
		}
	}
	return nil
}

// Unasked has a stream that Right puts right lose the account at its end, which the client has not
// asked for. Of others nothing changes.
func Unasked(form backend.Reform) backend.Reform {
	if r, ok := form.(*righted); ok {
		r.unasked = true
	}
	return form
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
		backend.Within(c, "logprobs", withRefusal)
	}
	v["choices"] = backend.Encode(choices)
	backend.Within(v, "usage", func(u map[string]json.RawMessage) { maps.DeleteFunc(u, isNull) })
	maps.DeleteFunc(v, isNull)
	return backend.Encode(v)
}

// withRefusal adds to the logprobs of a chat what they must have.
func withRefusal(l map[string]json.RawMessage) {
	if _, ok := l["refusal"]; !ok && l["content"] != nil {
		l["refusal"] = json.RawMessage("null")
	}
}

func isNull(_ string, value json.RawMessage) bool { return string(value) == "null" }
