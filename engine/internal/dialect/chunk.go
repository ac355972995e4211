package dialect

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
)

// chunkNulls are what an event of chat completions may have null, wherever it is.
var chunkNulls = [][]byte{[]byte(`"finish_reason":null`), []byte(`"logprobs":null`), []byte(`"content":null`), []byte(`"refusal":null`)}

// chunk is withoutNulls for an event of a stream: most are forwarded as they are.
func chunk(object []byte) []byte {
	n := bytes.Count(object, []byte("null"))
	for _, may := range chunkNulls {
		n -= bytes.Count(object, may)
	}
	if n == 0 && !bytes.Contains(object, []byte(`"logprobs":{`)) {
		return object
	}
	var v map[string]json.RawMessage
	var choices []map[string]json.RawMessage
	if json.Unmarshal(object, &v) != nil || json.Unmarshal(v["choices"], &choices) != nil {
		return object
	}
	for _, c := range choices {
		backend.Within(c, "delta", func(d map[string]json.RawMessage) {
			maps.DeleteFunc(d, func(name string, value json.RawMessage) bool {
				return isNull(name, value) && !slices.Contains(mayBeNull, name)
			})
			withoutNullsOfCalls(d)
		})
		backend.Within(c, "logprobs", withRefusal)
	}
	v["choices"] = backend.Encode(choices)
	backend.Within(v, "usage", func(u map[string]json.RawMessage) { maps.DeleteFunc(u, isNull) })
	maps.DeleteFunc(v, isNull)
	return backend.Encode(v)
}

// withoutNullsOfCalls leaves out of calls that grow what does not come with this part: the id,
// the type, and the function's name come once.
func withoutNullsOfCalls(delta map[string]json.RawMessage) {
	var calls []map[string]json.RawMessage
	if json.Unmarshal(delta["tool_calls"], &calls) != nil {
		return
	}
	for _, call := range calls {
		backend.Within(call, "function", func(f map[string]json.RawMessage) { maps.DeleteFunc(f, isNull) })
		maps.DeleteFunc(call, isNull)
	}
	if calls != nil {
		delta["tool_calls"] = backend.Encode(calls)
	}
}
