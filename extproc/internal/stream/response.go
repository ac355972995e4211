package stream

import "bytes"

// A request of Responses may continue an earlier response, by its id: the
// conversation before is not in the body, and it is where the response was made,
// often nowhere else. So an id is the name of a session, which begins with the
// answer that has it. Our engines report the id in a header or trailer; of others we
// learn it only where Envoy shows us the answer's body.

const (
	// longestID bounds the id of a response, in bytes.
	longestID = 128
	// idWithin is in how much of an answer the id is looked for, in bytes.
	idWithin = 4 << 10
)

var (
	idKey    = []byte(`"id":`)
	idPrefix = []byte(`"resp_`)
)

// responseID returns the first id of a response in the beginning of an answer, one
// JSON object or events. Inside a text its quotes would be escaped.
func responseID(b []byte) []byte {
	b = b[:min(len(b), idWithin)]
	for {
		_, rest, ok := bytes.Cut(b, idKey)
		if !ok {
			return nil
		}
		b = rest
		value := bytes.TrimLeft(rest, " ")
		if !bytes.HasPrefix(value, idPrefix) {
			continue
		}
		id, _, ok := bytes.Cut(value[1:min(len(value), longestID+2)], []byte(`"`))
		if ok && named(id) {
			return id
		}
	}
}

// named reports whether all of an id is as ids are.
func named(id []byte) bool {
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
