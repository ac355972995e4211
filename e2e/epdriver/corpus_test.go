package epdriver

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
)

func TestRequestsAreJSONOfTheSizeAskedFor(t *testing.T) {
	for _, size := range []int{512, 2048, 65536} {
		b := NewCorpus("m", size, 8, 4).Request(3, rand.New(rand.NewPCG(1, 1)))
		if !json.Valid(b) {
			t.Errorf("size %d: no JSON: %.200s", size, b)
		}
		if len(b) < size*8/10 || len(b) > size*11/10 {
			t.Errorf("asked for %d bytes, got %d", size, len(b))
		}
	}
}
