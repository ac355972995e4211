package stream

import (
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/prefix"
)

func TestCount(t *testing.T) {
	const chat = `{"model":"m","messages":[{"role":"user","content":"hi"}]`
	tests := []struct {
		name   string
		path   string
		body   string
		head   func(*RequestHead)
		blind  bool
		bare   bool // the model has no tokenizer
		prompt int
		exact  bool
		output int
	}{
		{name: "counted by the tokenizer", body: chat + `}`, prompt: len(chat+`}`) / 4, exact: true, output: 128},
		{name: "estimated", body: chat + `}`, bare: true, prompt: 5, output: 128},
		{name: "a limit", body: chat + `,"max_tokens":7}`, bare: true, prompt: 5, output: 7},
		{name: "the limit is sure to be reached", body: chat + `,"max_tokens":900,"ignore_eos":true}`, bare: true, prompt: 5, output: 900},
		{name: "several answers", body: chat + `,"n":3,"max_tokens":10}`, bare: true, prompt: 5, output: 30},
		{name: "several prompts, each with several answers", path: "/v1/completions", body: `{"model":"m","prompt":["abcd","abcd","abcd"],"n":2,"max_tokens":10}`, bare: true, prompt: 3, output: 60},
		{name: "a limit that only an engine has", body: chat + `,"max_tokens":1,"ignore_eos":true,"n_predict":900}`, bare: true, prompt: 5, output: 900},
		{name: "at least so many", body: chat + `,"min_tokens":500}`, bare: true, prompt: 5, output: 500},
		{name: "nothing is generated", path: "/v1/embeddings", body: `{"model":"m","input":"12345678"}`, bare: true, prompt: 2, output: 0},
		{name: "nothing is sent", head: func(h *RequestHead) { h.Method = "GET" }, blind: true, prompt: 1, output: 0},
		{name: "a body that nobody knows", head: func(h *RequestHead) { h.Length = 400 }, blind: true, prompt: 100, output: 128},
		{name: "an upload", head: func(h *RequestHead) { h.Length, h.ContentType = 40<<20, "audio/wav" }, blind: true, prompt: upload, output: 128},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1)
			if tt.bare {
				f.model.SetCounter(nil)
			}
			in := f.inputOf(tt.body, func(h *RequestHead) {
				if tt.path != "" {
					h.Path = tt.path
				}
				if tt.head != nil {
					tt.head(h)
				}
			})
			var r openai.Request
			if !tt.blind {
				if err := r.Parse(in.api, in.body); err != nil {
					t.Fatal(err)
				}
			}
			u := understood{model: f.model, blind: tt.blind, size: len(tt.body)}
			n := count(in, &u, &r)
			if n.prompt != tt.prompt || n.exact != tt.exact || n.output != tt.output || n.shape.Prompt != n.prompt || n.shape.API != in.api {
				t.Errorf("count() = %+v, want %d tokens, exact %v, %d of output", n, tt.prompt, tt.exact, tt.output)
			}
		})
	}
}

func TestCountOfWhatContinuesAResponse(t *testing.T) {
	f := newFleet(2)
	recordResponse(f.table.Policy, f.model, "resp_1", 1000, f.model.Endpoints[1], epoch)
	in := f.inputOf(`{"model":"m","input":"hi","previous_response_id":"resp_1"}`, func(h *RequestHead) { h.Path = "/v1/responses" })
	var r openai.Request
	if err := r.Parse(in.api, in.body); err != nil {
		t.Fatal(err)
	}
	u := understood{model: f.model}
	n := count(in, &u, &r)
	if want := len(in.body)/4 + 1000; n.prompt != want || n.before.Cache != f.model.Endpoints[1].KV.ID() {
		t.Errorf("%d tokens behind %+v; want %d", n.prompt, n.before, want)
	}
	r.Previous = []byte("resp_2")
	if n := count(in, &u, &r); n.before != (prefix.Match{}) || n.prompt != len(in.body)/4 {
		t.Errorf("of a response that nobody made: %+v", n)
	}
}
