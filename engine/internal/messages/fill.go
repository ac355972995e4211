package messages

import (
	"bytes"
	"encoding/json"
	"strings"

	"millrace.dev/millrace/engine/internal/backend"
)

// null is the value of a field of which nobody knows more.
var null = json.RawMessage("null")

// Fields that the API promises, and what they are where a backend leaves them out.
var (
	ofMessage = fields{"container": null, "stop_details": null, "stop_reason": null, "stop_sequence": null}
	ofUsage   = fields{
		"cache_creation": null, "cache_creation_input_tokens": null, "cache_read_input_tokens": null, "inference_geo": null,
		"output_tokens_details": null, "server_tool_use": null, "service_tier": null,
	}
	ofLastUsage = fields{
		"cache_creation_input_tokens": null, "cache_read_input_tokens": null, "input_tokens": null,
		"output_tokens_details": null, "server_tool_use": null,
	}
	ofBlock = map[string]fields{
		isText: {"citations": null}, isUse: {"caller": json.RawMessage(`{"type":"direct"}`)}, isReasoning: {"signature": json.RawMessage(`""`)},
	}
)

// growing is the type of the events that nearly all are, and that lack nothing.
const growing = "content_block_delta"

// grows reports whether an object is such an event. What a tool is called with may look like
// one.
func grows(object []byte) bool {
	return bytes.Contains(object, []byte(growing)) && backend.TypeOf(object) == growing
}

// Fill puts right an answer, or an event of a stream, that a backend has made: it adds what the
// API promises, and gives the message an id of its own.
func Fill(object []byte) []byte {
	var v fields
	if grows(object) || json.Unmarshal(object, &v) != nil || v == nil {
		return object
	}
	switch kindOf(v) {
	case "message":
		fillMessage(v)
	case "message_start":
		backend.Within(v, "message", fillMessage)
	case "content_block_start":
		backend.Within(v, "content_block", fillBlock)
	case "message_delta":
		backend.Within(v, "delta", func(d fields) { backend.AddMissing(d, ofMessage) })
		backend.Within(v, "usage", func(u fields) { backend.AddMissing(u, ofLastUsage) })
	default:
		return object
	}
	return backend.Encode(v)
}

func kindOf(v fields) (kind string) {
	_ = json.Unmarshal(v["type"], &kind) // no text: none of ours
	return kind
}

// idPrefix begins the ids of messages: servers that have messages over chat completions leave
// these their own.
const idPrefix = "msg_"

func fillMessage(m fields) {
	backend.AddMissing(m, ofMessage)
	var id string
	if json.Unmarshal(m["id"], &id) == nil && !strings.HasPrefix(id, idPrefix) {
		m["id"] = backend.Encode(idPrefix + strings.TrimPrefix(id, "chatcmpl-"))
	}
	backend.Within(m, "usage", func(u fields) { backend.AddMissing(u, ofUsage) })
	var blocks []fields
	if json.Unmarshal(m["content"], &blocks) != nil {
		return
	}
	for _, b := range blocks {
		if b != nil {
			fillBlock(b)
		}
	}
	m["content"] = backend.Encode(blocks)
}

func fillBlock(b fields) { backend.AddMissing(b, ofBlock[kindOf(b)]) }
