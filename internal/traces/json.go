package traces

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// hexFields are the bytes fields that OTLP's JSON form writes in hexadecimal,
// while protobuf's own writes all bytes in base64. OTLP specification, "JSON
// Protobuf Encoding": "traceId and spanId byte arrays are represented as
// case-insensitive hex-encoded strings".
var hexFields = map[string]bool{"traceId": true, "spanId": true, "parentSpanId": true}

// Line returns spans as one line of OTLP JSON, with its newline.
func Line(spans *trace.ResourceSpans) ([]byte, error) {
	// The same specification: "Values of enum fields MUST be encoded as integer values."
	b, err := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(spans)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	for _, scope := range list(doc, "scopeSpans") {
		for _, span := range list(scope, "spans") {
			hexIDs(span)
			for _, link := range list(span, "links") {
				hexIDs(link)
			}
		}
	}
	b, err = json.Marshal(doc)
	return append(b, '\n'), err
}

// list returns the objects of an array field.
func list(object map[string]any, field string) []map[string]any {
	items, _ := object[field].([]any)
	var objects []map[string]any
	for _, item := range items {
		if o, ok := item.(map[string]any); ok {
			objects = append(objects, o)
		}
	}
	return objects
}

func hexIDs(object map[string]any) {
	for field := range hexFields {
		text, ok := object[field].(string)
		if !ok {
			continue
		}
		if raw, err := base64.StdEncoding.DecodeString(text); err == nil {
			object[field] = hex.EncodeToString(raw)
		}
	}
}
