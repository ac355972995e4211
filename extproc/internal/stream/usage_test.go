package stream

import (
	"testing"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
)

// TestUsageOfOthers reads headers that engines and gateways really send.
func TestUsageOfOthers(t *testing.T) {
	tests := []struct {
		name    string
		headers []string
		want    pick.Usage
		by      flow.Source
	}{
		{"Text Generation Inference", []string{"x-prompt-tokens", "9", "x-generated-tokens", "8", "x-total-time", "70"}, pick.Usage{Prompt: 9, Completion: 8}, flow.Usage},
		{"Amazon Bedrock", []string{"x-amzn-bedrock-input-token-count", "9", "x-amzn-bedrock-output-token-count", "8"}, pick.Usage{Prompt: 9, Completion: 8}, flow.Usage},
		{"a gateway", []string{"x-usage-prompt-text-tokens", "9", "x-usage-completion-text-tokens", "8"}, pick.Usage{Prompt: 9, Completion: 8}, flow.Usage},
		{"ours comes first", []string{"x-generated-tokens", "8", "x-millrace-usage", "prompt=1,completion=2"}, pick.Usage{Prompt: 1, Completion: 2}, flow.Usage},
		{"only the prompt", []string{"x-prompt-tokens", "9"}, pick.Usage{}, flow.Unanswered},
		{"no number", []string{"x-generated-tokens", "NaN", "x-usage-completion-tokens", "-1"}, pick.Usage{}, flow.Unanswered},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var in inbound
			for i := 0; i < len(tt.headers); i += 2 {
				in.answerHeader([]byte(tt.headers[i]), []byte(tt.headers[i+1]))
			}
			got, by, ok := in.Answer.usage()
			if got != tt.want || by != tt.by || ok != (tt.by != flow.Unanswered) {
				t.Errorf("usage() = %+v, %v, %v, want %+v, %v", got, by, ok, tt.want, tt.by)
			}
		})
	}
}

// bodies that say what an answer has needed, and how much that is.
var usageBodies = []struct {
	name, body string
	want       usageOf
}{
	{"chat", `{"choices":[{"message":{"content":"\"usage\":{\"completion_tokens\":1}"}}],"usage":{"completion_tokens":8,"prompt_tokens":9,"total_tokens":17,"prompt_tokens_details":{"cached_tokens":3}}}`, usageOf{9, 0, 8, true}},
	{"a stream of chat", "data: {\"choices\":[],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\": {\"prompt_tokens\": 9, \"completion_tokens\": 8}}\n\ndata: [DONE]\n\n", usageOf{9, 0, 8, true}},
	{"responses", `data: {"type":"response.completed","response":{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":0},"output_tokens":8,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":17}}}`, usageOf{9, 0, 8, true}},
	{"Anthropic's stream", `data: {"type":"message_start","message":{"usage":{"input_tokens":4,"cache_read_input_tokens":5,"output_tokens":1}}}` + "\n\n" + `data: {"type":"message_delta","usage":{"output_tokens":8}}` + "\n\n", usageOf{9, 0, 8, true}},
	{"what the client sent is repeated", `{"tools":[{"parameters":{"usage":{"output_tokens":0}}}],"usage":{"input_tokens":9,"output_tokens":8}}`, usageOf{9, 0, 8, true}},
	{"nothing", `{"choices":[]}`, usageOf{}},
	{"it does not end", `{"usage":{"prompt_tokens":9,"completion_tokens":8`, usageOf{}},
	{"a list", `{"usage":[1,2]}`, usageOf{}},
}

// TestUsageInBodies reads them in pieces of every size.
func TestUsageInBodies(t *testing.T) {
	for _, tt := range usageBodies {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.body); size++ {
				var got tail
				for i := 0; i < len(tt.body); i += size {
					got.read([]byte(tt.body[i:min(i+size, len(tt.body))]))
				}
				if got.found != tt.want {
					t.Fatalf("in pieces of %d: %+v, want %+v", size, got.found, tt.want)
				}
			}
		})
	}
}

// FuzzUsageInBodies reads any body in two ways of taking it apart.
func FuzzUsageInBodies(f *testing.F) {
	for _, tt := range usageBodies {
		f.Add([]byte(tt.body), 7)
	}
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		if size < 1 {
			return
		}
		var whole, pieces tail
		whole.read(body)
		for i := 0; i < len(body); i += size {
			pieces.read(body[i:min(i+size, len(body))])
		}
		if s := whole.found; s.completion < 0 || s.prompt < 0 {
			t.Errorf("%q: %+v", body, s)
		}
		if len(pieces.rest) > max(longestUsage, len(usageKey)) {
			t.Errorf("%q: %d bytes are kept", body, len(pieces.rest))
		}
	})
}
