package vllm

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

// prepare has a request of an API prepared.
func prepare(t *testing.T, api apis.API, body string) backend.Way {
	t.Helper()
	r := backend.Request{API: api, Body: append(make([]byte, 0, len(body)+backend.Room), body...), Completion: api == apis.Chat || api == apis.Completions}
	if err := json.Unmarshal(r.Body, &r.Fields); err != nil {
		t.Fatal(err)
	}
	r.Stream = string(r.Fields["stream"]) == "true"
	return New(Program{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)).Prepare(assignment("/m"), r)
}

// TestWhatVLLMPassesOver is refused by its name.
func TestWhatVLLMPassesOver(t *testing.T) {
	const (
		hi   = `{"messages":[{"role":"user","content":"hi"}]`
		tool = `,"tools":[{"type":"function","function":{"name":"f"}}]`
		use  = `,"tools":[{"name":"f","input_schema":{}}]`
	)
	for _, tt := range []struct {
		api         apis.API
		body, param string
	}{
		{apis.Chat, hi + `,"functions":[{"name":"f"}]}`, "functions"},
		{apis.Chat, hi + `,"function_call":"auto"}`, "function_call"},
		{apis.Chat, hi + `,"functions":null}`, ""},
		{apis.Chat, hi + `,"verbosity":"low"}`, "verbosity"},
		{apis.Chat, hi + `,"verbosity":"medium","store":false}`, ""},
		{apis.Chat, hi + `,"modalities":["text","audio"]}`, "modalities"},
		{apis.Chat, hi + `,"web_search_options":{"search_context_size":"low"}}`, "web_search_options"},
		{apis.Chat, hi + `,"store":true}`, "store"},
		{apis.Chat, hi + tool + `,"tool_choice":{"type":"function","function":{"name":"g"}}}`, "tool_choice.function.name"},
		{apis.Chat, hi + `,"tool_choice":"required"}`, "tool_choice"},
		{apis.Chat, hi + tool + `,"tool_choice":"required"}`, ""},
		{apis.Completions, `{"prompt":"a","best_of":3}`, "best_of"},
		{apis.Completions, `{"prompt":"a","best_of":3,"n":3}`, ""},
		{apis.Completions, `{"prompt":"a","best_of":1,"echo":true}`, ""},
		{apis.Responses, `{"input":"a","text":{"verbosity":"low"}}`, "text.verbosity"},
		{apis.Responses, `{"input":"a","text":{"verbosity":"medium"}}`, ""},
		{apis.Responses, `{"input":"a","previous_response_id":"resp_1"}`, "previous_response_id"},
		{apis.Responses, `{"input":"a","background":true}`, "background"},
		{apis.InputTokens, `{"input":"a","conversation":"c"}`, "conversation"},
		{apis.Messages, hi + `,"container":"c"}`, "container"},
		{apis.Messages, hi + use + `,"tool_choice":{"type":"tool","name":"g"}}`, "tool_choice.name"},
		{apis.Messages, hi + `,"tool_choice":{"type":"any"}}`, "tool_choice"},
		{apis.Messages, hi + use + `,"tool_choice":{"type":"tool","name":"f"}}`, ""},
		{apis.CountTokens, hi + use + `,"tool_choice":{"type":"tool","name":"g"}}`, "tool_choice.name"},
	} {
		got := ""
		if w := prepare(t, tt.api, tt.body); w.Refused != nil {
			got = w.Refused.Param
		}
		if got != tt.param {
			t.Errorf("%s: refused for %q, want %q", tt.body, got, tt.param)
		}
	}
}

// TestPrepare has how requests go to the server where it has something otherwise than the API.
func TestPrepare(t *testing.T) {
	const hi = `"messages":[{"role":"user","content":"hi"}]`
	for name, tt := range map[string]struct {
		api        apis.API
		body       string
		path, want string
		other      bool
	}{
		"a chat":                       {apis.Chat, `{` + hi + `}`, "", `{` + hi + `}`, false},
		"a stream":                     {apis.Chat, `{` + hi + `,"stream":true}`, "", `"include_usage":true`, false},
		"a function by its name":       {apis.Chat, `{` + hi + `,"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}],"tool_choice":{"type":"function","function":{"name":"f"}}}`, "", `"name":"g"`, false},
		"functions that are allowed":   {apis.Chat, `{` + hi + `,"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}}}`, "", `"tool_choice":"required","tools":[{"type":"function","function":{"name":"g"}}]`, true},
		"several at temperature 0":     {apis.Chat, `{` + hi + `,"n":2,"temperature":0}`, "", `"temperature":0.01,"top_k":1`, false},
		"one at temperature 0":         {apis.Chat, `{` + hi + `,"n":1,"temperature":0}`, "", `"temperature":0}`, false},
		"several at the model's own":   {apis.Chat, `{` + hi + `,"n":2,"temperature":null}`, "", `"temperature":null}`, false},
		"several at another":           {apis.Chat, `{` + hi + `,"n":2,"temperature":0.5}`, "", `"temperature":0.5}`, false},
		"several completions at 0":     {apis.Completions, `{"prompt":"a","n":2,"temperature":0}`, "", `"temperature":0.01,"top_k":1`, false},
		"a response":                   {apis.Responses, `{"input":"hi","max_output_tokens":3}`, "/v1/chat/completions", `"max_tokens":3`, false},
		"a response as a stream":       {apis.Responses, `{"input":"hi","stream":true}`, "/v1/chat/completions", `"stream_options":{"include_usage":true}`, false},
		"the tokens of a response":     {apis.InputTokens, `{"input":"hi"}`, "/tokenize", hi, false},
		"a message":                    {apis.Messages, `{` + hi + `}`, "", `{` + hi + `}`, false},
		"the tokens of a message":      {apis.CountTokens, `{` + hi + `}`, "", `{` + hi + `}`, false},
		"an operation nobody looks at": {apis.Rerank, `{"query":"a"}`, "", `{"query":"a"}`, false},
	} {
		w := prepare(t, tt.api, tt.body)
		if w.Refused != nil || w.Path != tt.path || !strings.Contains(string(w.Body), tt.want) || w.Other != tt.other {
			t.Errorf("%s: %q gets %s, other %v, refused %v; want %q and %s", name, w.Path, w.Body, w.Other, w.Refused, tt.path, tt.want)
		}
	}
}

// TestAnswersAreThoseOfTheAPI has what vLLM 0.32 answers, cut short, and what clients get.
func TestAnswersAreThoseOfTheAPI(t *testing.T) {
	for name, tt := range map[string]struct {
		api          apis.API
		body, answer string
		want         []string
	}{
		"a message": {apis.Messages, `{"messages":[]}`, `{"id":"chatcmpl-1f","type":"message","content":[{"type":"text","text":"a"}],"usage":{"input_tokens":1,"output_tokens":2}}`,
			[]string{`"id":"msg_1f"`, `"stop_sequence":null`}},
		"a response at its limit": {apis.Responses, `{"model":"m","input":"hi","store":true}`, `{"id":"chatcmpl-1f","choices":[{"message":{"content":"a","reasoning":"h"},"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`,
			[]string{`"id":"resp_`, `"status":"incomplete"`, `"store":false`, `"text":"h"`, `"text":"a"`}},
		"a count": {apis.InputTokens, `{"input":"hi"}`, `{"count":7,"max_model_len":9,"tokens":[1]}`, []string{`{"input_tokens":7,"object":"response.input_tokens"}`}},
	} {
		_, got, err := prepare(t, tt.api, tt.body).Reform.Unary([]byte(tt.answer))
		for _, want := range tt.want {
			if err != nil || !strings.Contains(string(got), want) {
				t.Errorf("%s: %s %v, want %s in it", name, got, err, want)
			}
		}
	}
}
