package apis

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
)

// MostNumber bounds the numbers of a body where llama.cpp reads it: it holds them in 32 bits,
// and what does not fit becomes another number there, of which its errors then speak.
const MostNumber = math.MaxInt32

// wide are the fields whose number may be any of 64 bits.
var wide = []string{"seed"}

// Holds reports whether llama.cpp holds the number of a body's field, which is JSON, as it is.
func Holds(field string, number []byte) bool {
	var n float64
	if json.Unmarshal(number, &n) != nil {
		return false
	}
	n = math.Abs(n)
	return n <= MostNumber || n <= math.MaxInt64 && slices.Contains(wide, field)
}

// mark is U+FEFF in UTF-8.
var mark = []byte("\ufeff")

// Unmarked returns a body of JSON without the mark that its text is UTF-8, which some clients
// set before it, and engines pass over.
func Unmarked(body []byte) []byte { return bytes.TrimPrefix(body, mark) }
