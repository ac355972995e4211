package responses

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/engine/internal/backend"
)

func decode(t *testing.T, body string) fields {
	t.Helper()
	var f fields
	if err := json.Unmarshal([]byte(body), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestChat(t *testing.T) {
	tests := []struct{ name, request, field, want string }{
		{"a text", `{"input":"hi","instructions":"Be kind."}`, "messages", `[{"role":"system","content":"Be kind."},{"role":"user","content":"hi"}]`},
		{"easy items", `{"input":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"type":"message","role":"developer","content":[{"type":"input_text","text":"c"}]}]}`, "messages",
			`[{"role":"user","content":[{"text":"a","type":"text"}]},{"role":"assistant","content":[{"text":"b","type":"text"}]},{"role":"developer","content":[{"text":"c","type":"text"}]}]`},
		{"an assistant's items are one message", `{"input":[{"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"h"}]},{"role":"assistant","content":"b"},{"type":"function_call","call_id":"c1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c1","output":"7"}]}`, "messages",
			`[{"role":"assistant","content":[{"text":"b","type":"text"}],"reasoning_content":"h","tool_calls":[{"function":{"arguments":"{}","name":"f"},"id":"c1","type":"function"}]},{"role":"tool","content":"7","tool_call_id":"c1"}]`},
		{"reasoning without a text", `{"input":[{"type":"reasoning","id":"rs_1","summary":[]},{"role":"user","content":"a"}]}`, "messages", `[{"role":"user","content":[{"text":"a","type":"text"}]}]`},
		{"a limit", `{"input":"hi","max_output_tokens":7}`, "max_tokens", `7`},
		{"a form", `{"input":"hi","text":{"format":{"type":"json_schema","name":"a","strict":true,"schema":{"type":"object"}}}}`, "response_format", `{"json_schema":{"name":"a","schema":{"type":"object"},"strict":true},"type":"json_schema"}`},
		{"a plain form", `{"input":"hi","text":{"format":{"type":"text"}}}`, "response_format", ``},
		{"tools", `{"input":"hi","tools":[{"type":"function","name":"f","parameters":{}}]}`, "tools", `[{"function":{"name":"f","parameters":{}},"type":"function"}]`},
		{"a tool by its name", `{"input":"hi","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"function","name":"f"}}`, "tool_choice", `{"function":{"name":"f"},"type":"function"}`},
		{"allowed tools", `{"input":"hi","tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"f"}]}}`, "tool_choice",
			`{"allowed_tools":{"mode":"auto","tools":[{"function":{"name":"f"},"type":"function"}]},"type":"allowed_tools"}`},
		{"a backend's own field", `{"input":"hi","top_k":7}`, "top_k", `7`},
		{"an image of no detail", `{"input":[{"role":"user","content":[{"type":"input_image","image_url":"http://x","detail":null}]}]}`, "messages", `[{"role":"user","content":[{"image_url":{"url":"http://x"},"type":"image_url"}]}]`},
		{"effort", `{"input":"hi","reasoning":{"effort":"low"}}`, "reasoning_effort", `"low"`},
		{"logprobs", `{"input":"hi","include":["message.output_text.logprobs"],"top_logprobs":2}`, "logprobs", `true`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			chat, _, fault := Chat(decode(t, tt.request))
			if fault != nil {
				t.Fatalf("%+v", fault)
			}
			if got := string(chat[tt.field]); got != tt.want || chat["input"] != nil {
				t.Errorf("%s: %s, want %s", tt.field, got, tt.want)
			}
		})
	}
}

func TestChatRefusesByName(t *testing.T) {
	for request, param := range map[string]string{
		`{"input":"a","previous_response_id":"resp_1"}`:                                                       "previous_response_id",
		`{"input":"a","conversation":"conv_1"}`:                                                               "conversation",
		`{"input":"a","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"function","name":"g"}}`: "tool_choice.name",
		`{"input":"a","background":true}`:                                                                     "background",
		`{"input":"a","truncation":"auto"}`:                                                                   "truncation",
		`{"input":"a","include":["file_search_call.results"]}`:                                                "include[0]",
		`{"input":"a","tools":[{"type":"web_search"}]}`:                                                       "tools[0].type",
		`{"input":"a","tool_choice":{"type":"file_search"}}`:                                                  "tool_choice.type",
		`{"input":"a","text":{"format":{"type":"json_schema","schema":null}}}`:                                "text.format.schema",
		`{"input":"a","text":{"format":{"type":"xml"}}}`:                                                      "text.format.type",
		`{"input":[{"type":"item_reference","id":"x"}]}`:                                                      "input[0].type",
		`{"input":[{"role":"tool","content":"a"}]}`:                                                           "input[0].role",
		`{"input":[{"role":"user","content":"a"},{"role":"user","content":7}]}`:                               "input[1].content",
		`{"input":[{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]}`:                         "input[0].content[0].type",
		`{"input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]}]}`:                        "input[0].content[0].image_url",
		`{"input":[{"type":"function_call_output","call_id":"c","output":{"a":1}}]}`:                          "input[0].output",
		`{"input":7}`: "input",
	} {
		if _, _, fault := Chat(decode(t, request)); fault == nil || fault.Param != param || fault.Status != 400 || !strings.HasPrefix(fault.Message, param+": ") {
			t.Errorf("%s: %+v, want 400 for %s", request, fault, param)
		}
	}
}

// stream is what chat completions answer: a thought, a text, a call.
var stream = []string{
	`data: null`,
	`data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}`,
	`data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}`,
	`data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}`,
	`data: {"choices":[{"index":0,"delta":{"content":"lo"},"logprobs":{"content":[{"token":"lo"}]}}]}`,
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":"{"}}]}}]}`,
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}`,
	`data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}`,
	`data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}}`,
	`data: [DONE]`,
}

// event is what every event of the API has, and what some have.
type event struct {
	Type     string `json:"type"`
	Sequence *int   `json:"sequence_number"`
	Output   *int   `json:"output_index"`
	Content  *int   `json:"content_index"`
	Item     string `json:"item_id"`
	Delta    string `json:"delta"`
	Response *struct {
		ID     string            `json:"id"`
		Model  string            `json:"model"`
		Status string            `json:"status"`
		Output []json.RawMessage `json:"output"`
		Usage  *usage            `json:"usage"`
	} `json:"response"`
}

func events(t *testing.T, out string) (all []event) {
	t.Helper()
	for i, one := range strings.Split(strings.TrimSuffix(out, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(one, "\ndata: ")
		var e event
		if err := json.Unmarshal([]byte(data), &e); !ok || err != nil || name != "event: "+e.Type || e.Sequence == nil || *e.Sequence != i {
			t.Fatalf("event %d: %q", i, one)
		}
		all = append(all, e)
	}
	return all
}

// TestStream cuts it at every place: the events are the same.
func TestStream(t *testing.T) {
	whole := strings.Join(stream, "\n\n") + "\n\n"
	for cut := range len(whole) {
		_, f, fault := Chat(decode(t, `{"model":"m","input":"hi"}`))
		if fault != nil {
			t.Fatal(fault)
		}
		out := string(f.Pass([]byte(whole[:cut])))
		out += string(f.Pass([]byte(whole[cut:])))
		out += string(f.Rest())
		var got []string
		all := events(t, out)
		for _, e := range all {
			line := strings.TrimPrefix(e.Type, "response.")
			if e.Output != nil {
				line += fmt.Sprint(" ", *e.Output)
			}
			if e.Content != nil {
				line += fmt.Sprint(".", *e.Content)
			}
			got = append(got, strings.TrimSpace(line+" "+e.Delta))
		}
		want := []string{
			"created", "in_progress",
			"output_item.added 0", "content_part.added 0.0", "reasoning_text.delta 0.0 hm", "reasoning_text.done 0.0", "content_part.done 0.0", "output_item.done 0",
			"output_item.added 1", "content_part.added 1.0", "output_text.delta 1.0 Hel", "output_text.delta 1.0 lo", "output_text.done 1.0", "content_part.done 1.0", "output_item.done 1",
			"output_item.added 2", "function_call_arguments.delta 2 {", "function_call_arguments.delta 2 }", "function_call_arguments.done 2", "output_item.done 2",
			"completed",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", cut, diff)
		}
		first, last := all[0].Response, all[len(all)-1].Response
		if first.Status != "in_progress" || first.Output == nil || first.Model != "m" || !strings.HasPrefix(first.ID, "resp_") {
			t.Fatalf("created: %+v", first)
		}
		if last.Status != "completed" || len(last.Output) != 3 || last.Usage.Total != 10 || last.Usage.InDetails.Cached != 5 || last.ID != first.ID {
			t.Fatalf("completed: %+v", last)
		}
	}
}

func TestUnaryThatReachesItsLimit(t *testing.T) {
	_, f, _ := Chat(decode(t, `{"model":"m","input":"hi","max_output_tokens":2}`))
	kind, body, err := f.Unary([]byte(`{"choices":[{"index":0,"finish_reason":"length","message":{"role":"assistant","content":"Hel"}}],"usage":{"prompt_tokens":7,"completion_tokens":2}}`))
	for _, want := range []string{`"status":"incomplete","background"`, `"incomplete_details":{"reason":"max_output_tokens"}`, `"max_output_tokens":2`, `"text":"Hel"`, `"output_tokens":2`} {
		if err != nil || kind != backend.JSON || !strings.Contains(string(body), want) {
			t.Errorf("%v %s, want %s in it", err, body, want)
		}
	}
}

func TestBrokenStreamFails(t *testing.T) {
	for name, end := range map[string]func(*Form) []byte{
		"the backend was lost":  func(f *Form) []byte { return f.Fail(backend.Error{Message: "lost"}) },
		"the backend's own end": func(f *Form) []byte { return f.Pass([]byte("data: {\"error\":{\"message\":\"lost\"}}\n\n")) },
	} {
		_, f, _ := Chat(decode(t, `{"model":"m","input":"hi"}`))
		out := string(f.Pass([]byte(stream[3] + "\n\n")))
		out += string(end(f))
		out += string(f.Rest())
		all := events(t, out)
		if n := len(all); all[n-2].Type != "error" || all[n-1].Type != "response.failed" || all[n-1].Response.Status != "failed" || !strings.Contains(out, `"message":"lost"`) {
			t.Errorf("%s: %s", name, out)
		}
	}
}

func FuzzResponses(f *testing.F) {
	f.Add([]byte(`{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],"tools":[{"type":"function","name":"f"}]}`), []byte(strings.Join(stream, "\n\n")), uint(9))
	f.Add([]byte(`{"input":"a","text":{"format":null},"include":[]}`), []byte("data: {\"choices\":[{}]}\n"), uint(0))
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
		_ = events(t, out+string(form.Rest()))
	})
}
