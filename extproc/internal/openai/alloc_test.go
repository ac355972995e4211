//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package openai

import "testing"

func TestParseAllocatesNothing(t *testing.T) {
	var r Request
	body := chatBody(2048)
	_ = r.Parse(Chat, body)
	if n := testing.AllocsPerRun(100, func() { _ = r.Parse(Chat, body) }); n > 0 {
		t.Errorf("Parse allocates %v times", n)
	}
}
