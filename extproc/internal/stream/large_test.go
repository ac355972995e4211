package stream

import (
	"strings"
	"testing"

	"millrace.dev/millrace/internal/config"
)

// TestNumbersThatWouldBeOthers refuses a number beyond 32 bits where llama.cpp may get it, and
// says the number that was sent; others refuse it, or hold it, themselves.
func TestNumbersThatWouldBeOthers(t *testing.T) {
	for _, tt := range []struct {
		kind, path, fields string
		want               string // of the refusal; empty: it is sent
	}{
		{config.TypeLlamaCpp, "/v1/chat/completions", `"max_tokens":1000000000000`, "max_tokens: 1000000000000; must be between -2147483647 and 2147483647"},
		{config.TypeLlamaCpp, "/v1/completions", `"prompt":"a","n_predict":4294967297`, "n_predict: 4294967297"},
		{config.TypeLlamaCpp, "/v1/messages", `"max_tokens":1e12,"messages":[{"role":"user","content":"a"}]`, "max_tokens: 1e12"},
		{config.TypeLlamaCpp, "/v1/embeddings", `"input":"a","dimensions":4294967297`, "dimensions: 4294967297"},
		{config.TypeLlamaCpp, "/v1/chat/completions", `"max_tokens":1000`, ""},
		{config.TypeVLLM, "/v1/chat/completions", `"max_tokens":1000000000000`, ""},
		{"", "/v1/chat/completions", `"max_tokens":1000000000000`, ""},
	} {
		f := newFleet(2)
		f.model.Endpoints[1].Engine.Kind = tt.kind
		x := f.core.Begin()
		out := run(x, post(func(h *RequestHead) { h.Path = tt.path }), bodyOf(`{"model":"m",`+tt.fields+`}`))
		err := out[len(out)-1].Error
		f.core.Finish(x)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s before %q: %v", tt.fields, tt.kind, err)
		case tt.want != "" && (err == nil || err.Status != 400 || !strings.Contains(err.Message, tt.want)):
			t.Errorf("%s before %q: %+v, want %q", tt.fields, tt.kind, err, tt.want)
		}
	}
}
