package dialect

import (
	"encoding/json"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

func request(t *testing.T, api apis.API, body string) backend.Request {
	t.Helper()
	r := backend.Request{API: api, Body: []byte(body)}
	if err := json.Unmarshal(r.Body, &r.Fields); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRight cuts streams at every place: what is put right is the same.
func TestRight(t *testing.T) {
	const (
		grown       = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"id\"}\n\n"
		chunkOfText = "data: " + `{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" a"},"logprobs":null,"finish_reason":null}]}` + "\n\n"
		ping        = "event: ping\ndata: {\"type\": \"ping\"}\n\n"
	)
	tests := []struct {
		name   string
		api    apis.API
		stream string
		want   []string
		not    []string
	}{
		{"a message", apis.Messages, ping + "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"chatcmpl-1f\",\"type\":\"message\"}}\n\n",
			[]string{ping, "event: message_start\n", `"id":"msg_1f"`}, nil},
		{"a message whose id is one", apis.Messages, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_2\"}}\n\n", []string{`"id":"msg_2"`}, nil},
		{"a response that the limit has cut", apis.Responses, grown + "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\"status\":\"incomplete\",\"metadata\":{\"a\":\"b\"}}}\n\n",
			[]string{grown, "event: response.incomplete\n", `"type":"response.incomplete"`, `"store":false`, `"metadata":{"a":"b"}`, `"id":"resp_1"`}, []string{"response.completed"}},
		{"a response that failed", apis.Responses, "data: {\"type\":\"response.completed\",\"response\":{\"status\":\"failed\"}}\n\n", []string{`data: {`, `"type":"response.failed"`}, []string{"event:"}},
		{"a response that is complete", apis.Responses, "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\"}}\n\n", []string{"event: response.completed\n"}, nil},
		{"lines that end otherwise", apis.Responses, "event: response.completed\r\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"incomplete\"}}\r\n\r\ndata: [DONE]\r\n\r\n",
			[]string{"event: response.incomplete\n", "data: [DONE]\r\n\r\n"}, nil},
		{"a call that grows", apis.Chat, "data: " + `{"id":"c","choices":[{"index":0,"delta":{"role":null,"content":null,"tool_calls":[{"index":0,"id":null,"type":null,"function":{"name":null,"arguments":"{\"a\":null"}}],"reasoning":null},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\ndata: [DONE]\n\n",
			[]string{`"tool_calls":[{"function":{"arguments":"{\"a\":null"},"index":0}]`, `"finish_reason":null`, `"content":null`, "data: [DONE]\n\n"},
			[]string{`"name"`, `"role"`, `"id":null`, `"type"`, `"reasoning"`, `"usage"`}},
		{"a chunk of text", apis.Chat, chunkOfText, []string{chunkOfText}, nil},
		{"one that says null", apis.Chat, "data: " + `{"choices":[{"index":0,"delta":{"content":"null"},"logprobs":null,"finish_reason":null}]}` + "\n\n", []string{`"content":"null"`, `"logprobs":null`}, nil},
		{"logprobs of a chunk", apis.Chat, "data: " + `{"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[]},"finish_reason":null}]}` + "\n\n", []string{`"logprobs":{"content":[],"refusal":null}`}, nil},
		{"an account that was not asked for", apis.Chat, chunkOfText + "data: " + `{"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":null}}` + "\n\ndata: [DONE]\n\n", []string{chunkOfText + "data: [DONE]\n\n"}, []string{"prompt_tokens"}},
		{"what is no event", apis.Messages, ": comment\n\nevent: a\nevent: b\ndata: {\"type\":\"message_start\"}\n\ndata: nonsense\n\n\n\nrest", []string{": comment\n\nevent: a\nevent: b\ndata: {\"type\":\"message_start\"}\n\ndata: nonsense\n\n\n\nrest"}, nil},
	}
	for _, tt := range tests {
		for cut := range len(tt.stream) + 1 {
			r := request(t, tt.api, `{"model":"m"}`)
			r.Stream = true
			form := Unasked(Right(r))
			got := string(form.Pass([]byte(tt.stream[:cut])))
			got += string(form.Pass([]byte(tt.stream[cut:])))
			got += string(form.Rest())
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Fatalf("%s, cut at %d: %q, want %q in it", tt.name, cut, got, want)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(got, not) {
					t.Fatalf("%s, cut at %d: %q, %q in it", tt.name, cut, got, not)
				}
			}
		}
	}
}

func TestRightOfAWholeAnswer(t *testing.T) {
	for _, tt := range []struct {
		api          apis.API
		answer, want string
	}{
		{apis.Messages, `{"id":"chatcmpl-1f","type":"message"}`, `"id":"msg_1f"`},
		{apis.Responses, `{"id":"resp_1","object":"response","status":"incomplete"}`, `"store":false`},
		{apis.Responses, `{"object":"response","output":[{"content":[{"text":"response.output_text.delta"}]}]}`, `"store":false`},
		{apis.Messages, `{"id":"chatcmpl-1f","type":"message","content":[{"type":"tool_use","input":{"type":"content_block_delta"}}]}`, `"id":"msg_1f"`},
		{apis.Responses, `no JSON`, `no JSON`},
		{apis.Chat, `{"id":"chatcmpl-1","choices":[{"index":0,"message":{"content":null,"refusal":null,"annotations":null,"audio":null,"role":"assistant"},"logprobs":null}],"usage":{"prompt_tokens":1,"prompt_tokens_details":null},"service_tier":null}`,
			`{"choices":[{"index":0,"logprobs":null,"message":{"content":null,"refusal":null,"role":"assistant"}}],"id":"chatcmpl-1","usage":{"prompt_tokens":1}}`},
		{apis.Completions, `{"choices":[{"text":"a","logprobs":null}],"usage":{"completion_tokens_details":null}}`, `{"choices":[{"logprobs":null,"text":"a"}],"usage":{}}`},
		{apis.Chat, `{"choices":[null],"usage":null}`, `{"choices":[null]}`},
		{apis.Chat, `{"choices":[{"message":{"content":"","tool_calls":[{}]},"logprobs":{"content":[]}}]}`, `{"choices":[{"logprobs":{"content":[],"refusal":null},"message":{"content":null,"tool_calls":[{}]}}]}`},
		{apis.Chat, `{"error":"x"}`, `{"error":"x"}`},
	} {
		if _, got, err := Right(request(t, tt.api, `{}`)).Unary([]byte(tt.answer)); err != nil || !strings.Contains(string(got), tt.want) {
			t.Errorf("%s %v, want %s in it", got, err, tt.want)
		}
	}
	if form := Right(request(t, apis.Embeddings, `{}`)); form != nil {
		t.Errorf("embeddings are put right by %v", form)
	}
}

func FuzzRight(f *testing.F) {
	f.Add([]byte("event: a\ndata: {\"type\":\"message_start\",\"message\":{\"id\":1}}\n\n"), uint(3), true)
	f.Add([]byte("data: {\"response\":{},\"type\":\"response.completed\"}\r\n\r\n"), uint(9), false)
	f.Fuzz(func(t *testing.T, stream []byte, cut uint, message bool) {
		api := apis.Responses
		if message {
			api = apis.Messages
		}
		whole, parts := Right(request(t, api, `{}`)), Right(request(t, api, `{}`))
		want := string(whole.Pass(stream)) + string(whole.Rest())
		at := int(cut % uint(len(stream)+1))
		got := string(parts.Pass(stream[:at]))
		got += string(parts.Pass(stream[at:]))
		got += string(parts.Rest())
		// A response's promised id and time differ.
		if message && got != want {
			t.Errorf("cut at %d: %q, want %q", at, got, want)
		}
	})
}
