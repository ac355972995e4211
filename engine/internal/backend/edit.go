package backend

import (
	"bytes"
	"encoding/json"
)

// Append adds a field, written as `"name":value`, to the end of a JSON object with a
// field or more. It may change what lies behind body.
func Append(body []byte, field string) []byte {
	body = bytes.TrimRight(body, " \t\r\n")
	body = append(body[:len(body)-1], ',')
	return append(append(body, field...), '}')
}

// Set returns the JSON object with another value for a field, wherever it has that
// field; as it is if it lacks it.
func Set(body []byte, name string, value []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return body
	}
	var out []byte
	copied := 0
	for dec.More() {
		key, err := dec.Token()
		var was json.RawMessage
		if err != nil || dec.Decode(&was) != nil {
			return body
		}
		if key == name {
			end := int(dec.InputOffset())
			out = append(append(out, body[copied:end-len(was)]...), value...)
			copied = end
		}
	}
	return append(out, body[copied:]...)
}

// askUsage has a stream end with an account.
const askUsage = `"stream_options":{"include_usage":true}`

// AskUsage has the stream that is asked for end with an account, and reports whether
// the client has not asked for that.
func AskUsage(r Request) ([]byte, bool) {
	raw, set := r.Fields["stream_options"]
	if !set {
		return Append(r.Body, askUsage), true
	}
	options := map[string]json.RawMessage{}
	if json.Unmarshal(raw, &options) != nil || string(options["include_usage"]) == "true" {
		return r.Body, false // what is no object is the backend's to refuse
	}
	if options == nil {
		options = map[string]json.RawMessage{}
	}
	options["include_usage"] = json.RawMessage("true")
	value, err := json.Marshal(options)
	if err != nil {
		return r.Body, false
	}
	return Set(r.Body, "stream_options", value), true
}

// Filter forwards a stream of events without those that hold nothing but an account.
type Filter struct {
	rest []byte // of an event that has not ended yet
}

// Pass returns what of the next bytes of the stream is forwarded; good until the next
// call.
func (f *Filter) Pass(p []byte) []byte {
	f.rest = append(f.rest, p...)
	end := bytes.LastIndex(f.rest, eventEnd)
	if end < 0 {
		return nil
	}
	end += len(eventEnd)
	out := make([]byte, 0, end)
	for event := range bytes.SplitAfterSeq(f.rest[:end], eventEnd) {
		if !onlyUsage(event) {
			out = append(out, event...)
		}
	}
	f.rest = append(f.rest[:0], f.rest[end:]...)
	return out
}

// Rest returns what has come behind the last whole event.
func (f *Filter) Rest() []byte { return f.rest }

var eventEnd = []byte("\n\n")

// onlyUsage reports whether an event holds an account and no choice.
func onlyUsage(event []byte) bool {
	data, ok := bytes.CutPrefix(bytes.TrimSpace(event), []byte("data:"))
	return ok && OnlyUsage(data)
}

// OnlyUsage is whether an event's object holds an account and no choice.
func OnlyUsage(object []byte) bool {
	if !bytes.Contains(object, usageKey) {
		return false
	}
	var v struct {
		Choices []json.RawMessage `json:"choices"`
		Usage   map[string]any    `json:"usage"`
	}
	return json.Unmarshal(object, &v) == nil && v.Choices != nil && len(v.Choices) == 0 && v.Usage != nil
}

// Rename returns the JSON object with other names for some of its fields; those whose new
// name is "" are left out.
func Rename(body []byte, names map[string]string) []byte {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return body
	}
	out := append(make([]byte, 0, len(body)+Room), '{')
	for dec.More() {
		key, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			return body
		}
		name, _ := key.(string)
		if to, ok := names[name]; ok && to == "" {
			continue
		} else if ok {
			name = to
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return body
		}
		out = append(append(append(out, quoted...), ':'), value...)
	}
	return append(out, '}')
}
