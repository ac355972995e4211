package backend

import "bytes"

// Where the id of a response is looked for, and how long it may be, in bytes.
const (
	idWithin  = 4 << 10
	longestID = 128
)

var idStart = []byte(`"id":"resp_`)

// ResponseID returns the id of the response whose answer or stream begins so; ""
// if it has none. Inside a text its quotes would be escaped.
func ResponseID(first []byte) string {
	first = first[:min(len(first), idWithin)]
	i := bytes.Index(first, idStart)
	if i < 0 {
		return ""
	}
	id := first[i+len(`"id":"`):]
	end := bytes.IndexByte(id[:min(len(id), longestID+1)], '"')
	if end < 0 {
		return ""
	}
	for _, c := range id[:end] {
		if c <= ' ' || c > '~' || c == '\\' || c == ',' {
			return "" // it is to go into a header
		}
	}
	return string(id[:end])
}
