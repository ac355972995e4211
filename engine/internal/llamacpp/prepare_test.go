package llamacpp

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

const weather = `"tools":[{"type":"function","function":{"name":"weather","parameters":{"$defs":{"c":{"type":"string"}},"properties":{"city":{"$ref":"#/$defs/c"}}}}},{"type":"function","function":{"name":"time"}}]`

// request is a request of an API as engine gives it to a kind.
func request(t *testing.T, api apis.API, body string) backend.Request {
	t.Helper()
	r := backend.Request{API: api, Body: append(make([]byte, 0, len(body)+backend.Room), body...), Completion: api == apis.Chat || api == apis.Completions}
	if err := json.Unmarshal(r.Body, &r.Fields); err != nil {
		t.Fatal(err)
	}
	r.Stream = string(r.Fields["stream"]) == "true"
	return r
}

// TestFieldsAreRefusedByName where the server would pass over them.
func TestFieldsAreRefusedByName(t *testing.T) {
	const hi = `"messages":[{"role":"user","content":"hi"}]`
	tests := []struct {
		api         apis.API
		body, param string // empty: it is sent
	}{
		{apis.Chat, `{` + hi + `,"tool_choice":"required"}`, "tool_choice"},
		{apis.Chat, `{` + hi + `,"tool_choice":"auto"}`, ""},
		{apis.Chat, `{` + hi + `,` + weather + `,"tool_choice":"must"}`, "tool_choice"},
		{apis.Chat, `{` + hi + `,` + weather + `,"tool_choice":{"type":"function","function":{"name":"nope"}}}`, "tool_choice.function.name"},
		{apis.Chat, `{` + hi + `,` + weather + `,"tool_choice":{"type":"custom"}}`, "tool_choice.type"},
		{apis.Chat, `{` + hi + `,` + weather + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"x"}}]}}}`, "tool_choice.allowed_tools.tools"},
		{apis.Chat, `{` + hi + `,"tools":[{"type":"web_search"}]}`, "tools[0].type"},
		{apis.Chat, `{` + hi + `,"functions":[{}]}`, "functions"},
		{apis.Chat, `{` + hi + `,"modalities":["text","audio"]}`, "modalities"},
		{apis.Chat, `{` + hi + `,"modalities":["text"],"audio":null}`, ""},
		{apis.Completions, `{"prompt":"a","echo":true}`, "echo"},
		{apis.Completions, `{"prompt":"a","echo":false,"suffix":""}`, ""},
		{apis.Completions, `{"prompt":"a","suffix":"b"}`, "suffix"},
		{apis.Completions, `{"prompt":"a","best_of":3}`, "best_of"},
		{apis.Completions, `{"prompt":"a","best_of":2,"n":2}`, ""},
		{apis.Embeddings, `{"input":"a","dimensions":64}`, "dimensions"},
		{apis.Messages, `{` + hi + `,"output_config":{"format":{"type":"json_schema"}}}`, "output_config.format.schema"},
		{apis.Messages, `{` + hi + `,"output_config":{"format":{"type":"json_schema","schema":{}}},"stop_sequences":["a"]}`, "stop_sequences"},
		{apis.Messages, `{` + hi + `,"tool_choice":{"type":"any"}}`, "tool_choice"},
		{apis.Messages, `{` + hi + `,"tools":[{"type":"web_search_20250305","name":"web_search"}]}`, "tools[0].type"},
		{apis.Messages, `{` + hi + `,"tools":[{"type":"custom","name":"a"}]}`, ""},
		{apis.Messages, `{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"document"}]}]}`, "messages[0].content[1].type"},
		{apis.Messages, `{` + hi + `,"tools":[{"name":"a"}],"tool_choice":{"type":"tool","name":"b"}}`, "tool_choice.name"},
		{apis.Messages, `{` + hi + `,"tools":[{"name":"a"}],"tool_choice":{"type":"any"}}`, ""},
		{apis.CountTokens, `{` + hi + `,"tools":[{"name":"a"}],"tool_choice":{"type":"tool","name":"b"}}`, "tool_choice.name"},
		{apis.InputTokens, `{"input":"hi","conversation":"conv_1"}`, "conversation"},
		{apis.Responses, `{"input":"hi","previous_response_id":"resp_1"}`, "previous_response_id"},
	}
	k := &Kind{}
	k.toolless.Store(true)
	for _, tt := range tests {
		w := k.Prepare(nil, request(t, tt.api, tt.body))
		switch {
		case tt.param == "" && w.Refused != nil:
			t.Errorf("%v %s: refused: %+v", tt.api, tt.body, w.Refused)
		case tt.param != "" && (w.Refused == nil || w.Refused.Param != tt.param || w.Refused.Status != 400):
			t.Errorf("%v %s: %+v, want 400 for %s", tt.api, tt.body, w.Refused, tt.param)
		}
	}
}

// TestNamedToolWithATemplateThatHasTools is the only tool, and must be called.
func TestNamedToolWithATemplateThatHasTools(t *testing.T) {
	k := &Kind{}
	for choice, want := range map[string]string{
		`{"type":"function","function":{"name":"time"}}`:                                                                    `"tool_choice":"required","tools":[{"type":"function","function":{"name":"time"}}]`,
		`{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"time"}}]}}`: `"tool_choice":"auto","tools":[{"type":"function","function":{"name":"time"}}]`,
		`"required"`: `"tool_choice":"required"`,
	} {
		w := k.Prepare(nil, request(t, apis.Chat, `{"messages":[],`+weather+`,"tool_choice":`+choice+`}`))
		if w.Refused != nil || !strings.Contains(string(w.Body), want) || w.Other {
			t.Errorf("%s: sent %s, want %s in it", choice, w.Body, want)
		}
	}
}

// TestCallsByGrammar has a template without tools: what the model writes is made a call,
// or an answer.
func TestCallsByGrammar(t *testing.T) {
	answer := func(text, finish string) string {
		return string(backend.Encode(map[string]any{"id": "x", "choices": []any{map[string]any{
			"index": 0, "finish_reason": finish, "message": map[string]any{"role": "assistant", "content": text},
		}}, "usage": map[string]int{"prompt_tokens": 7}}))
	}
	tests := []struct {
		name, choice, text, finish string
		want                       []string
	}{
		{"a call", `"required"`, `{"name":"weather","arguments": {"city": "Wien"}}`, "stop",
			[]string{`"arguments":"{\"city\":\"Wien\"}"`, `"name":"weather"`, `"content":null`, `"finish_reason":"tool_calls"`}},
		{"a call that was cut", `"required"`, `{"name": "weather", "arguments": {"city": "Wi`, "length",
			[]string{`"arguments":"{\"city\": \"Wi"`, `"finish_reason":"length"`}},
		{"a call whose name was cut", `"required"`, `{"na`, "length", []string{`"content":""`, `"finish_reason":"length"`}},
		{"an answer", `"auto"`, `{"response":"Hello \"you\""}`, "stop", []string{`"content":"Hello \"you\""`, `"finish_reason":"stop"`}},
		{"an answer that is null", `"auto"`, `{"response": null}`, "stop", []string{`"content":"null"`}},
		{"an answer that was cut", `"auto"`, `{"response": "Hel\u00`, "length", []string{`"content":"Hel"`}},
	}
	k := &Kind{}
	k.toolless.Store(true)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, stream := range []string{"false", "true"} {
				w := k.Prepare(nil, request(t, apis.Chat, `{"stream":`+stream+`,"stream_options":{"include_usage":true},"messages":[{"role":"system","content":"Be kind."}],`+weather+`,"tool_choice":`+tt.choice+`}`))
				if w.Refused != nil || !w.Other || !strings.Contains(string(w.Body), `#/$defs/arguments0/$defs/c`) || !strings.Contains(string(w.Body), "Be kind.\\n\\nYou can call functions") {
					t.Fatalf("sent %s, refused %v", w.Body, w.Refused)
				}
				kind, got, err := w.Reform.Unary([]byte(answer(tt.text, tt.finish)))
				if err != nil {
					t.Fatal(err)
				}
				wants := tt.want
				if stream == "true" {
					wants = append(wants[:len(wants):len(wants)], `"delta":{`, "data: [DONE]\n\n", `"usage":{"prompt_tokens":7}`)
				}
				for _, want := range wants {
					if !strings.Contains(string(got), want) {
						t.Errorf("%s: %s, want %s in it", kind, got, want)
					}
				}
			}
		})
	}
}

// TestMessagesGoOverChat where the server would pass over what is asked for, to be answered
// or to be counted.
func TestMessagesGoOverChat(t *testing.T) {
	const (
		hi   = `"messages":[{"role":"user","content":"hi"}]`
		tool = `"tools":[{"name":"a","input_schema":{"type":"object"}}]`
		form = `"output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}`
	)
	tests := []struct {
		name     string
		api      apis.API
		toolless bool
		body     string
		path     string // "": the request's own
		want     string // in the body that is sent
	}{
		{"text", apis.Messages, true, hi, "", hi},
		{"tools and a template for them", apis.Messages, false, hi + "," + tool, "", tool},
		{"tools and no template for them", apis.Messages, true, hi + "," + tool, "/v1/chat/completions", `"name":{"const":"a"}`},
		{"tools that are not to be called", apis.Messages, true, hi + "," + tool + `,"tool_choice":{"type":"none"}`, "", hi},
		{"a form", apis.Messages, false, hi + "," + form, "/v1/chat/completions", `"response_format":{"json_schema":`},
		{"the tokens of text", apis.CountTokens, true, hi, "", hi},
		{"the tokens of tools", apis.CountTokens, true, hi + "," + tool, "/v1/chat/completions/input_tokens", "You can call functions"},
		{"the tokens of a response", apis.InputTokens, true, `"input":"hi"`, "/v1/chat/completions/input_tokens", hi},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := &Kind{}
			k.toolless.Store(tt.toolless)
			w := k.Prepare(nil, request(t, tt.api, "{"+tt.body+"}"))
			if w.Refused != nil || w.Path != tt.path || !strings.Contains(string(w.Body), tt.want) {
				t.Fatalf("%q gets %s, %+v; want %q and %s", w.Path, w.Body, w.Refused, tt.path, tt.want)
			}
			if !tt.api.Row().OnlyCounts() || tt.path == "" {
				return
			}
			if _, got, err := w.Reform.Unary([]byte(`{"input_tokens":7,"object":"x"}`)); err != nil || !strings.Contains(string(got), `"input_tokens":7`) || strings.Contains(string(got), `"x"`) {
				t.Errorf("%s %v", got, err)
			}
			if _, got, err := w.Reform.Unary([]byte(`{"choices":[]}`)); err == nil {
				t.Errorf("%s of what is no count", got)
			}
		})
	}
}

// TestSeveralChoicesHaveOneAccount, as a stream: a prompt counts once.
func TestSeveralChoicesHaveOneAccount(t *testing.T) {
	const (
		token = `data: {"choices":[{"index":1,"delta":{"content":"a"}}]}` + "\n\n"
		usage = `data: {"choices":[],"id":"x","usage":{"completion_tokens":4,"prompt_tokens":33,"prompt_tokens_details":{"cached_tokens":30}}}` + "\n\n"
		end   = "data: [DONE]\n\n"
	)
	for _, asked := range []string{"false", "true"} {
		k := &Kind{}
		w := k.Prepare(nil, request(t, apis.Chat, `{"n":2,"stream":true,"stream_options":{"include_usage":`+asked+`},"messages":[]}`))
		var got string
		for _, part := range []string{token, "data: null\n\n" + usage[:9], usage[9:] + token, usage + end} {
			got += string(w.Reform.Pass([]byte(part)))
		}
		want := token + token
		if asked == "true" {
			want += `data: {"choices":[],"id":"x","usage":{"completion_tokens":8,"prompt_tokens":33,"prompt_tokens_details":{"cached_tokens":30},"total_tokens":41}}` + "\n\n"
		}
		if got += string(w.Reform.Rest()); got != want+end {
			t.Errorf("asked %s: %q, want %q", asked, got, want+end)
		}
		if u, ok := w.Reform.(*lines).Tally(); !ok || u.Prompt != 33 || u.Completion != 8 || u.Cached != 30 {
			t.Errorf("account %+v, %v", u, ok)
		}
	}
}

func TestLogprobsOfCompletions(t *testing.T) {
	k := &Kind{}
	w := k.Prepare(nil, request(t, apis.Completions, `{"prompt":"a","logprobs":1}`))
	_, got, err := w.Reform.Unary([]byte(`{"choices":[{"text":" éa","logprobs":{"content":[{"token":" é","logprob":-1,"top_logprobs":[{"token":"b","logprob":-0.5}]},{"token":"a","logprob":-2,"top_logprobs":[]}]}}],"id":"chatcmpl-7"}`))
	want := `{"choices":[{"logprobs":{"text_offset":[0,2],"token_logprobs":[-1,-2],"tokens":[" é","a"],"top_logprobs":[{"b":-0.5},{}]},"text":" éa"}],"id":"cmpl-7"}`
	if err != nil || string(got) != want {
		t.Errorf("%v %s, want %s", err, got, want)
	}
}

// TestChatHasAllFields that clients are promised.
func TestChatHasAllFields(t *testing.T) {
	for answer, want := range map[string]string{
		`{"choices":[{"index":0,"message":{"role":"assistant","content":"a"}}]}`:                           `{"choices":[{"index":0,"logprobs":null,"message":{"refusal":null,"role":"assistant","content":"a"}}]}`,
		`{"choices":[{"index":0,"message":{"role":"assistant","content":"a"},"logprobs":{"content":[]}}]}`: `{"choices":[{"index":0,"message":{"refusal":null,"role":"assistant","content":"a"},"logprobs":{"refusal":null,"content":[]}}]}`,
	} {
		w := (&Kind{}).Prepare(nil, request(t, apis.Chat, `{"messages":[],"logprobs":true}`))
		if _, got, err := w.Reform.Unary([]byte(answer)); err != nil || string(got) != want {
			t.Errorf("%v %s, want %s", err, got, want)
		}
	}
}

func FuzzCalled(f *testing.F) {
	f.Add([]byte(`{"choices":[{"message":{"content":"{\"name\":\"a\",\"arguments\":{"}}]}`), true)
	f.Fuzz(func(t *testing.T, answer []byte, stream bool) {
		c := &called{stream: stream, usage: true}
		if kind, out, err := c.Unary(answer); err == nil && kind == backend.JSON && !json.Valid(out) {
			t.Errorf("not JSON: %s", out)
		}
		l := &lines{api: apis.Completions, several: true, n: 2, account: true}
		_ = l.Pass(answer)
		_ = l.Pass([]byte("\ndata: [DONE]\n\n"))
		_, _, _ = l.Unary(answer)
	})
}

// TestTextsOfAListAreSentOneByOne: of several with unequally many tokens the server pools parts.
func TestTextsOfAListAreSentOneByOne(t *testing.T) {
	a := &enginepb.Assignment{Backend: &enginepb.Backend{Slots: 2}}
	for input, want := range map[string][]string{
		`"a"`:                   nil,
		`["a"]`:                 nil,
		`["a","b"]`:             {`{"input":["a"],"model":"m"}`, `{"input":["b"],"model":"m"}`},
		`[1,2,3]`:               nil,
		`[]`:                    nil,
		`7`:                     nil,
		`["a","b","c"]`:         {`{"input":["a"],"model":"m"}`, `{"input":["b"],"model":"m"}`, `{"input":["c"],"model":"m"}`},
		`[[1],[2,3],[4],[5,6]]`: {`{"input":[[1]],"model":"m"}`, `{"input":[[2,3]],"model":"m"}`, `{"input":[[4]],"model":"m"}`, `{"input":[[5,6]],"model":"m"}`},
	} {
		w := (&Kind{}).Prepare(a, request(t, apis.Embeddings, `{"model":"m","input":`+input+`}`))
		var got []string
		if w.Parts != nil {
			for p := range w.Parts {
				got = append(got, string(p))
			}
		}
		if !slices.Equal(got, want) || !w.Single {
			t.Errorf("%s: sent %q, want %q", input, got, want)
		}
	}
}

func FuzzJoinEmbeddings(f *testing.F) {
	f.Add(`{"data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":1}}`, `{"data":[{"index":0,"embedding":"AAA="}],"usage":{"prompt_tokens":2}}`)
	f.Add(`null`, `{"data":[null]}`)
	f.Add(`{"data":{}}`, ``)
	f.Fuzz(func(t *testing.T, a, b string) {
		whole, err := joinEmbeddings([][]byte{[]byte(a), []byte(b)})
		if err == nil && !json.Valid(whole) {
			t.Errorf("%q", whole)
		}
	})
}
