package responses

import (
	"bytes"
	"encoding/json"
	"strings"

	"millrace.dev/millrace/engine/internal/backend"
)

// Filler puts right the answer of a server that has responses itself.
type Filler struct {
	promised fields // of a response, where the server leaves it out
}

// NewFiller returns one for the answer to a request.
func NewFiller(request fields) *Filler {
	f := &Filler{}
	_ = json.Unmarshal(backend.Encode(newForm(request).answer), &f.promised) // it was made a moment ago
	return f
}

// growing ends the types of the events that nearly all are, and that hold no response.
const growing = ".delta"

// grows reports whether an object is such an event. A text may end like their types.
func grows(object []byte) bool {
	return bytes.Contains(object, []byte(growing+`"`)) && strings.HasSuffix(backend.TypeOf(object), growing)
}

// Fill adds what the API promises to a response, or to that of an event, and calls the last
// event by what became of it: servers are known to call all of them completed.
func (f *Filler) Fill(object []byte) []byte {
	var v fields
	if grows(object) || json.Unmarshal(object, &v) != nil || v == nil {
		return object
	}
	if string(v["object"]) == `"response"` {
		backend.AddMissing(v, f.promised)
		return backend.Encode(v)
	}
	var r fields
	if json.Unmarshal(v["response"], &r) != nil || r == nil {
		return object
	}
	backend.AddMissing(r, f.promised)
	var kind, status string
	_, _ = json.Unmarshal(v["type"], &kind), json.Unmarshal(r["status"], &status) // no texts: none of these
	if kind == "response."+completed && (status == isIncomplete || status == failed) {
		v["type"] = backend.Encode("response." + status)
	}
	v["response"] = backend.Encode(r)
	return backend.Encode(v)
}
