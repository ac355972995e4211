//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package openai

import (
	"testing"

	"millrace.dev/millrace/internal/apis"
)

func TestParseAllocatesNothing(t *testing.T) {
	var r Request
	body := chatBody(2048)
	_ = r.Parse(apis.Chat, body)
	if n := testing.AllocsPerRun(100, func() { _ = r.Parse(apis.Chat, body) }); n > 0 {
		t.Errorf("Parse allocates %v times", n)
	}
}

func TestParseOfPartsAllocatesNothing(t *testing.T) {
	var r Request
	body := []byte(`{"model":"m","stop":["x","y"],"system":[{"type":"text","text":"a"}],"messages":[{"role":"user","content":[{"type":"text","text":"x"},` +
		`{"type":"tool_result","content":[{"type":"text","text":"y"}]},{"type":"image","source":{"type":"base64","data":"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf"}}]}]}`)
	if err := r.Parse(apis.Messages, body); err != nil || len(r.Media) != 1 {
		t.Fatal(err, r.Media)
	}
	if n := testing.AllocsPerRun(100, func() { _ = r.Parse(apis.Messages, body) }); n > 0 {
		t.Errorf("Parse allocates %v times", n)
	}
}
