package stream

import "github.com/cespare/xxhash/v2"

// gistPart is how much of a long body's beginning, middle and end its gist is made of.
const gistPart = 2 << 10

// gist names a body that has no prefixes: by all of a short one, by parts and the length of a
// long one, as it is made of each request's.
func gist(body []byte) uint64 {
	if len(body) <= 3*gistPart {
		return xxhash.Sum64(body)
	}
	mid := (len(body) - gistPart) / 2
	n := xxhash.Sum64(body[:gistPart])
	for _, part := range [...][]byte{body[mid : mid+gistPart], body[len(body)-gistPart:]} {
		n = n*0x9e3779b97f4a7c15 + xxhash.Sum64(part)
	}
	return n*0x9e3779b97f4a7c15 + uint64(len(body))
}
