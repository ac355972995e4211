package messages

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/engine/internal/backend"
)

func decode(t *testing.T, body string) (f fields) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestChat(t *testing.T) {
	tests := []struct{ name, body, want string }{
		{
			"texts", `{"system":[{"type":"text","text":"Be "},{"type":"text","text":"kind."}],"max_tokens":5,"top_k":3,"metadata":{"user_id":"u"},"messages":[{"role":"user","content":"hi"}]}`,
			`{"max_tokens":5,"messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"hi"}],"top_k":3}`,
		},
		{
			"blocks", `{"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"h"},{"type":"redacted_thinking","data":"x"},{"type":"text","text":"a"},{"type":"tool_use","id":"t","name":"f","input":{"b": 1}}]},` +
				`{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"21"},{"type":"text","text":"°"}]},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA"}},{"type":"image","source":{"type":"url","url":"http://x"}}]}]}`,
			`{"messages":[{"role":"assistant","content":[{"text":"a","type":"text"}],"reasoning_content":"h","tool_calls":[{"function":{"arguments":"{\"b\":1}","name":"f"},"id":"t","type":"function"}]},` +
				`{"role":"user","content":[{"image_url":{"url":"data:image/png;base64,AA"},"type":"image_url"},{"image_url":{"url":"http://x"},"type":"image_url"}]},{"role":"tool","content":"21°","tool_call_id":"t"}]}`,
		},
		{
			"tools", `{"messages":[],"tools":[{"name":"f"}],"tool_choice":{"type":"any","disable_parallel_tool_use":true}}`,
			`{"messages":[],"parallel_tool_calls":false,"tool_choice":"required","tools":[{"function":{"description":"","name":"f","parameters":{}},"type":"function"}]}`,
		},
		{
			"a tool of no schema", `{"messages":[],"tools":[{"name":"f","input_schema":null}]}`,
			`{"messages":[],"tools":[{"function":{"description":"","name":"f","parameters":{}},"type":"function"}]}`,
		},
		{
			"a tool by its name", `{"messages":[],"tools":[{"name":"f"}],"tool_choice":{"type":"tool","name":"f"}}`,
			`{"messages":[],"tool_choice":{"function":{"name":"f"},"type":"function"},"tools":[{"function":{"description":"","name":"f","parameters":{}},"type":"function"}]}`,
		},
		{
			"a form and an effort", `{"messages":[],"output_config":{"effort":"low","format":{"type":"json_schema","schema":{"type":"object"}}}}`,
			`{"messages":[],"reasoning_effort":"low","response_format":{"json_schema":{"name":"answer","schema":{"type":"object"},"strict":true},"type":"json_schema"}}`,
		},
		{
			"a form by its older name", `{"messages":[],"output_format":{"type":"json_schema","schema":{}}}`,
			`{"messages":[],"response_format":{"json_schema":{"name":"answer","schema":{},"strict":true},"type":"json_schema"}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			chat, _, fault := Chat(decode(t, tt.body))
			if fault != nil {
				t.Fatal(fault)
			}
			if diff := cmp.Diff(decoded(t, tt.want), decoded(t, string(backend.Encode(chat)))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func decoded(t *testing.T, s string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRefusals(t *testing.T) {
	for body, param := range map[string]string{
		`{"messages":1}`: "messages",
		`{"messages":[{"role":"user","content":null}]}`:                                                      "messages[0].content",
		`{"messages":[{"role":"user","content":1}]}`:                                                         "messages[0].content",
		`{"messages":[{"role":"user","content":[{"type":"document"}]}]}`:                                     "messages[0].content[0].type",
		`{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"file","file_id":"f"}}]}]}`: "messages[0].content[0].source",
		`{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image"}]}]}]}`:     "messages[0].content[0].content[0].type",
		`{"messages":[],"system":1}`:                                                                         "system",
		`{"messages":[],"stop_sequences":["a"]}`:                                                             "stop_sequences",
		`{"messages":[],"tools":1}`:                                                                          "tools",
		`{"messages":[],"tools":[{"type":"bash_20250124","name":"bash"}]}`:                                   "tools[0].type",
		`{"messages":[],"tools":[{}]}`:                                                                       "tools[0].name",
		`{"messages":[],"tool_choice":1}`:                                                                    "tool_choice",
		`{"messages":[],"tool_choice":{"type":"all"}}`:                                                       "tool_choice.type",
		`{"messages":[],"output_config":1}`:                                                                  "output_config",
		`{"messages":[],"output_config":{"format":{"type":"xml"}}}`:                                          "output_config.format.type",
		`{"messages":[],"output_config":{"format":{"type":"json_schema"}}}`:                                  "output_config.format.schema",
		`{"messages":[],"output_format":{"type":"json_schema"}}`:                                             "output_format.schema",
	} {
		if _, _, fault := Chat(decode(t, body)); fault == nil || fault.Param != param || fault.Status != 400 {
			t.Errorf("%s: %+v, want a refusal of %s", body, fault, param)
		}
	}
}

// stream is one of chat completions: a thought, a text, and two calls.
var stream = strings.Join([]string{
	`data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}`,
	`data: {"choices":[{"index":0,"delta":{"reasoning_content":"h"}}]}`,
	`data: {"choices":[{"index":0,"delta":{"content":"a"}}]}`,
	`data: {"choices":[{"index":0,"delta":{"content":"b"}}]}`,
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"x","function":{"name":"f","arguments":"{"}}]}}]}`,
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}`,
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"y","function":{"name":"g","arguments":"{\"c\":"}}]}}]}`,
	`data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}`,
	`data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":5}}}`,
	`data: [DONE]`, "",
}, "\n\n")

// event is an event of the stream, as far as the tests need it.
type event struct {
	Type  string
	Index int
	Delta struct {
		Type, Text, Thinking string
		JSON                 string  `json:"partial_json"`
		Reason               *string `json:"stop_reason"`
	}
	Block   content `json:"content_block"`
	Message answer
	Usage   usage
}

func events(t *testing.T, out string) (all []event) {
	t.Helper()
	for one := range strings.SplitSeq(strings.TrimSuffix(out, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(one, "\ndata: ")
		var e event
		if !ok || json.Unmarshal([]byte(data), &e) != nil || name != "event: "+e.Type {
			t.Fatalf("an event %q", one)
		}
		all = append(all, e)
	}
	return all
}

func TestStream(t *testing.T) {
	for cut := range len(stream) {
		_, f, _ := Chat(decode(t, `{"model":"m","messages":[]}`))
		out := string(f.Pass([]byte(stream[:cut])))
		out += string(f.Pass([]byte(stream[cut:])))
		out += string(f.Rest())
		all := events(t, out)
		got := ""
		for _, e := range all {
			got += strings.TrimPrefix(e.Type, "content_block_") + " " + e.Delta.Thinking + e.Delta.Text + e.Delta.JSON + e.Block.Name + "\n"
		}
		want := "message_start \nstart \ndelta h\nstop \nstart \ndelta a\ndelta b\nstop \nstart f\ndelta {\ndelta }\nstop \nstart g\ndelta {\"c\":\nstop \nmessage_delta \nmessage_stop \n"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
		first, last := all[0].Message, all[len(all)-2]
		if first.Model != "m" || !strings.HasPrefix(first.ID, "msg_") || first.Content == nil || first.Reason != nil {
			t.Fatalf("%+v", first)
		}
		if *last.Delta.Reason != "tool_use" || last.Usage != (usage{Input: 4, Cached: 5, Output: 4}) {
			t.Fatalf("%+v", last)
		}
	}
}

func TestUnary(t *testing.T) {
	tests := []struct{ name, choice, want string }{
		{"a text", `{"message":{"content":"a"},"finish_reason":"stop"}`, `"content":[{"citations":null,"text":"a","type":"text"}],"id":"msg_`},
		{"a text that was cut", `{"message":{"content":"a"},"finish_reason":"length"}`, `"stop_reason":"max_tokens"`},
		{"a use", `{"message":{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{\"b\":1}"}}]},"finish_reason":"tool_calls"}`, `"input":{"b":1},"name":"f","type":"tool_use"}]`},
		{"a use that was cut", `{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{\"b"}}]},"finish_reason":"length"}`, `"input":{},"name":"f","type":"tool_use"}]`},
	}
	for _, tt := range tests {
		_, f, _ := Chat(decode(t, `{"model":"m","messages":[]}`))
		kind, got, err := f.Unary([]byte(`{"choices":[` + tt.choice + `],"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":1}}}`))
		if err != nil || kind != backend.JSON || !strings.Contains(string(got), tt.want) {
			t.Errorf("%s: %v %s, want %s in it", tt.name, err, got, tt.want)
		}
	}
}

// TestFill has what a backend of few words answers.
func TestFill(t *testing.T) {
	for object, want := range map[string]string{
		`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}`: `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}`,
		`{"type":"content_block_start","content_block":{"type":"text","text":""}}`:          `{"content_block":{"citations":null,"text":"","type":"text"},"type":"content_block_start"}`,
		`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}`: `{"delta":{"container":null,"stop_details":null,"stop_reason":"end_turn","stop_sequence":null},"type":"message_delta",` +
			`"usage":{"cache_creation_input_tokens":null,"cache_read_input_tokens":null,"input_tokens":null,"output_tokens":3,"output_tokens_details":null,"server_tool_use":null}}`,
		`{"type":"message","content":[null,{"type":"tool_use"}],"container":1}`: `{"container":1,"content":[null,{"caller":{"type":"direct"},"type":"tool_use"}],"stop_details":null,"stop_reason":null,"stop_sequence":null,"type":"message"}`,
		`{"type":1}`: `{"type":1}`,
		`null`:       `null`,
		`{`:          `{`,
	} {
		if got := string(Fill([]byte(object))); got != want {
			t.Errorf("%s: %s, want %s", object, got, want)
		}
	}
}

// TestErrorInAStream is an error of the API, and nothing follows it.
func TestErrorInAStream(t *testing.T) {
	_, f, _ := Chat(decode(t, `{"model":"m","messages":[]}`))
	out := string(f.Pass([]byte(`data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\n" + `data: {"error":{"message":"lost"}}` + "\n\n")))
	all := events(t, out+string(f.Rest()))
	if last := all[len(all)-1]; last.Type != "error" || !strings.Contains(out, `"message":"lost"`) {
		t.Errorf("%s", out)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"tools":[{"name":"f"}]}`), []byte(stream), uint(9))
	f.Add([]byte(`{"messages":[{"content":null}],"output_config":{"format":null}}`), []byte("data: {\"choices\":[{}]}\n"), uint(0))
	f.Fuzz(func(t *testing.T, body, answer []byte, cut uint) {
		var request fields
		if json.Unmarshal(body, &request) != nil || request == nil {
			return
		}
		chat, form, fault := Chat(request)
		if fault != nil {
			if fault.Param == "" {
				t.Errorf("%+v names no field", fault)
			}
			return
		}
		if !json.Valid(backend.Encode(chat)) {
			t.Error("the chat is not JSON")
		}
		at := int(cut % uint(len(answer)+1))
		out := string(form.Pass(answer[:at]))
		out += string(form.Pass(answer[at:]))
		if out += string(form.Rest()); out != "" {
			_ = events(t, out)
		}
	})
}
