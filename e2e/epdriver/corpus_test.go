package epdriver

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
)

func TestRequestsAreJSONOfTheSizeAskedFor(t *testing.T) {
	for _, size := range []int{512, 2048, 65536} {
		for _, c := range []*Corpus{NewCorpus("m", size, 8, 4), NewColdCorpus("m", size)} {
			_, b := c.next(rand.New(rand.NewPCG(1, 1)))
			if !json.Valid(b) {
				t.Errorf("size %d: no JSON: %.200s", size, b)
			}
			if len(b) < size*7/10 || len(b) > size*11/10 {
				t.Errorf("asked for %d bytes, got %d", size, len(b))
			}
		}
	}
}
