package api

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestFeatures has what the official clients can ask for and few people do: it is done, or
// refused by its name, or it is a hint that the API lets a server pass over.
func TestFeatures(t *testing.T) {
	const (
		chats     = "/v1/chat/completions"
		responses = "/v1/responses"
		messages  = "/v1/messages"
		tool      = `"tools":[{"type":"function","function":{"name":"f"}}]`
	)
	asked := map[string]string{
		chats: `"messages":[{"role":"user","content":"hi"}]`, responses: `"input":"hi"`, messages: `"max_tokens":5,"messages":[{"role":"user","content":"hi"}]`,
		"/v1/completions": `"prompt":"a"`, "/v1/embeddings": `"input":"a"`,
	}
	const hint = "-"
	tests := []struct {
		path, fields string
		param        string // that is refused; "": none
		sent         string // to the backend, done there; hint: whatever it does, it need not
	}{
		{chats, `"logprobs":true,"top_logprobs":2`, "", `"top_logprobs":2`},
		{chats, `"seed":7`, "", `"seed":7`},
		{chats, `"logit_bias":{"5":-100}`, "", `"logit_bias":{"5":-100}`},
		{chats, `"n":2,"stream":true`, "", `"n":2`},
		{chats, tool + `,"parallel_tool_calls":false`, "", `"parallel_tool_calls":false`},
		{chats, `"reasoning_effort":"low"`, "", `"reasoning_effort":"low"`},
		{chats, `"stream_options":{"include_obfuscation":true},"stream":true`, "", hint},
		{chats, `"prompt_cache_key":"k","prompt_cache_retention":"24h"`, "", hint},
		{chats, `"prediction":{"type":"content","content":"a"}`, "", hint},
		{chats, `"service_tier":"flex"`, "", hint},
		{chats, `"safety_identifier":"s","user":"u","metadata":{"a":"b"}`, "", hint},
		{chats, `"store":false`, "", hint},
		{chats, `"store":true`, "store", ""},
		{chats, `"verbosity":"medium"`, "", hint},
		{chats, `"verbosity":"low"`, "verbosity", ""},
		{chats, `"modalities":["text"]`, "", hint},
		{chats, `"modalities":["audio"]`, "modalities", ""},
		{chats, `"audio":{"voice":"a"}`, "audio", ""},
		{chats, `"web_search_options":{"search_context_size":"low"}`, "web_search_options", ""},
		{chats, `"moderation":{"model":"m"}`, "moderation", ""},
		{chats, `"tools":[{"type":"custom","custom":{"name":"f"}}]`, "tools[0].type", ""},

		{responses, `"include":["message.output_text.logprobs"],"top_logprobs":2`, "", `"logprobs":true`},
		{responses, `"include":["web_search_call.results"]`, "include[0]", ""},
		{responses, `"include":["reasoning.encrypted_content"]`, "", hint},
		{responses, `"store":true`, "", hint}, // the answer says that it was not
		{responses, `"reasoning":{"effort":"low","summary":"auto"}`, "", `"reasoning_effort":"low"`},
		{responses, `"text":{"verbosity":"medium"}`, "", hint},
		{responses, `"text":{"verbosity":"high"}`, "text.verbosity", ""},
		{responses, `"truncation":"auto"`, "truncation", ""},
		{responses, `"background":true`, "background", ""},
		{responses, `"conversation":"c"`, "conversation", ""},
		{responses, `"previous_response_id":"resp_1"`, "previous_response_id", ""},
		{responses, `"prompt":{"id":"p"}`, "prompt", ""},
		{responses, `"max_tool_calls":3`, "", hint}, // of tools that a server has
		{responses, `"tools":[{"type":"web_search"}]`, "tools[0].type", ""},
		{responses, `"parallel_tool_calls":false,"tools":[{"type":"function","name":"f"}]`, "", `"parallel_tool_calls":false`},

		{messages, `"top_k":3`, "", `"top_k":3`},
		{messages, `"stop_sequences":["a"]`, "", `"stop_sequences":["a"]`},
		{messages, `"thinking":{"type":"enabled","budget_tokens":1024}`, "", `"budget_tokens":1024`},
		{messages, `"output_config":{"effort":"low"}`, "", `"reasoning_effort":"low"`},
		{messages, `"cache_control":{"type":"ephemeral"},"service_tier":"standard_only","metadata":{"user_id":"u"}`, "", hint},
		{messages, `"container":"c"`, "container", ""},
		{messages, `"inference_geo":"us"`, "inference_geo", ""},
		{messages, `"mcp_servers":[{"url":"u"}]`, "mcp_servers", ""},
		{messages, `"tools":[{"type":"web_search_20250305","name":"web_search"}]`, "tools[0].type", ""},

		{"/v1/completions", `"suffix":"b"`, "suffix", ""},
		{"/v1/completions", `"logprobs":2`, "", `"logprobs":2`},
		{"/v1/embeddings", `"dimensions":2`, "dimensions", ""},
		{"/v1/embeddings", `"encoding_format":"base64"`, "", `"encoding_format":"base64"`},
		{"/v1/embeddings", `"user":"u"`, "", hint},
	}
	for _, tt := range tests {
		t.Run(tt.path+" "+tt.fields, func(t *testing.T) {
			got := ""
			g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got = string(b)
				_, _ = io.WriteString(w, `{"choices":[]}`)
			})
			resp, answer := g.post(t, tt.path, fmt.Sprintf(`{"model":"smollm2",%s,%s}`, asked[tt.path], tt.fields))
			switch named := fmt.Sprintf("%q:%q", "param", tt.param); {
			case tt.param != "":
				if resp.StatusCode != 400 || got != "" || !strings.Contains(answer, named) && (tt.path != messages || !strings.Contains(answer, tt.param+": ")) {
					t.Errorf("%d %s, and the backend got %q; want a refusal of %s", resp.StatusCode, answer, got, tt.param)
				}
			case resp.StatusCode != 200 || got == "":
				t.Errorf("%d %s, want it done", resp.StatusCode, answer)
			case tt.sent != hint && !strings.Contains(got, tt.sent):
				t.Errorf("the backend got %s, want %s in it", got, tt.sent)
			}
		})
	}
}
