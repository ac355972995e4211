package token

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRareKeysAreFound(t *testing.T) {
	tests := []struct {
		body string
		want bool
	}{
		{`{}`, false},
		{``, false},
		{`{"messages":[{"role":"user","content":"add_generation_prompt"}]}`, false},
		{`{"add_generation_prompt":false}`, true},
		{`{"messages":[{"content":"a\"b\\"}], "continue_final_message" : true}`, true},
		{`{"messages":[{"reasoning_effort":"x"}]}`, false},
		{`{"reasoning\u005feffort":"low"}`, true},
		{`{"x":"\\\"","reasoning_effort":"low"}`, true},
		{`{"x":"\\","y":{"z":["}]"]},"json_schema":{}}`, true},
		{`{"x":"unterminated`, false},
		{`"\`, false},
	}
	for _, tt := range tests {
		if got := hasRare([]byte(tt.body)); got != tt.want {
			t.Errorf("hasRare(%s) = %v", tt.body, got)
		}
	}
}

// checkRare holds hasRare to encoding/json. It may take a text for a key, and any text
// with escapes for a rare one, but it must see all that are there.
func checkRare(t *testing.T, raw []byte) {
	t.Helper()
	var fields map[string]json.RawMessage
	got := hasRare(raw)
	if json.Unmarshal(raw, &fields) != nil {
		return
	}
	want, may := false, bytes.IndexByte(raw, '\\') >= 0
	for key, value := range fields {
		want = want || rare[key]
		may = may || rare[strings.Trim(string(value), `"`)]
	}
	if want && !got || got && !want && !may {
		t.Errorf("hasRare(%s) = %v, want %v", raw, got, want)
	}
}

func FuzzRareKeys(f *testing.F) {
	f.Add([]byte(`{"x":"\\\"","reasoning_effort":"low"}`))
	f.Add([]byte(`{"x":["\\","}"],"y":{"json_schema":1},"json_schema\u0020":"\\"}`))
	f.Add([]byte(`{"\u0063\u006f\u006e\u0074\u0069\u006e\u0075\u0065\u005f\u0066\u0069\u006e\u0061\u006c\u005f\u006d\u0065\u0073\u0073\u0061\u0067\u0065":true}`))
	f.Fuzz(checkRare)
}

func TestWhatTheBackendRefusesIsEstimated(t *testing.T) {
	m := smol(t)
	bodies := []string{
		`{"messages":[{"role":"assistant","content":"a"},{"role":"assistant","content":"b"}]}`,
		`{"messages":[{"role":"user","content":"x"}],"continue_final_message":true}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}`,
		`{"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]}]}`,
		`{"messages":[{"role":"user","content":5}]}`,
		`{"messages":[{"role":"user","content":"x"}],"add_generation_prompt":"maybe"}`,
	}
	for _, body := range bodies {
		if n, exact := m.CountChat(chatOf(t, []byte(body))); exact || n == 0 {
			t.Errorf("%s: %d tokens, exact %v; want an estimate", body, n, exact)
		}
	}
}

func TestBrokenBodiesAreEstimated(t *testing.T) {
	m := smol(t)
	c := &Chat{Messages: []Message{{Role: "user", Raw: []byte(`{"content":`)}}, Raw: []byte(`{"json_schema"`)}
	if _, exact := m.CountChat(c); exact {
		t.Error("a broken body is counted exactly")
	}
}

// TestHeavyConversationsAreEstimated has a template whose work grows with the square of
// the messages.
func TestHeavyConversationsAreEstimated(t *testing.T) {
	m := withTemplate(t, `{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s + m.content %}{% if tools %}{{ tools|length }}{% endif %}{% endfor %}{{ ns.s }}`)
	for name, c := range map[string]*Chat{
		"messages": {Messages: slices.Repeat([]Message{{Role: "user", Content: []byte("hello")}}, 100_000)},
		"one text": {Messages: []Message{{Role: "user", Content: bytes.Repeat([]byte("hello "), 500_000)}}},
		"tools":    {Messages: []Message{{Role: "user", Content: []byte("hello")}}, Tools: []byte(`[{"x":"` + strings.Repeat("a", 3<<20) + `"}]`)},
	} {
		if c.Tools == nil {
			c.Tools = []byte(`[{"type":"function","function":{"name":"f"}}]`)
		}
		began := time.Now()
		if n, exact := m.CountChat(c); exact || n < 100_000 {
			t.Errorf("%s: %d tokens, exact: %v", name, n, exact)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// TestResponsesInTheirEasyForms count as those that spell everything out.
func TestResponsesInTheirEasyForms(t *testing.T) {
	for easy, full := range map[string]string{
		`{"input":[{"role":"assistant","content":"a"}]}`:                                 `{"input":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}]}]}`,
		`{"input":[{"type":"reasoning","summary":[]},{"role":"user","content":"a"}]}`:    `{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}]}`,
		`{"input":[{"role":"assistant","content":[{"type":"refusal","refusal":"no"}]}]}`: `{"input":[{"role":"assistant","content":[{"type":"output_text","text":"no"}]}]}`,
	} {
		a, err1 := ResponseChat([]byte(easy))
		b, err2 := ResponseChat([]byte(full))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if diff := cmp.Diff(b.Messages, a.Messages); diff != "" {
			t.Errorf("%s (-want +got):\n%s", easy, diff)
		}
	}
}

func TestResponsesRefused(t *testing.T) {
	tests := []struct{ body, want string }{
		{`{`, "responses: unexpected end"},
		{`{}`, "responses: input: missing"},
		{`{"input":5}`, "responses: input: json"},
		{`{"input":[{"type":"web_search"}]}`, `item 0: of type "web_search" and role "" is unknown`},
		{`{"input":[{"role":"user","content":[{"type":"input_file"}]}]}`, "item 0: content that is not text"},
	}
	for _, tt := range tests {
		if _, err := ResponseChat([]byte(tt.body)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.body, err, tt.want)
		}
	}
}

func TestResponsesKeepTheEffort(t *testing.T) {
	m := withTemplate(t, `{{ reasoning_effort }}{% for m in messages %}{{ m.content }}{% endfor %}`)
	c, err := ResponseChat([]byte(`{"input":"x","reasoning":{"effort":"high"},"tools":[{"type":"web"},{"type":"function","name":"f"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := m.CountChat(c); n != m.Count([]byte("highx")) {
		t.Errorf("%d tokens; the effort is lost", n)
	}
	var tools []map[string]any
	if err := json.Unmarshal(c.Tools, &tools); err != nil || len(tools) != 1 {
		t.Errorf("tools %s, %v", c.Tools, err)
	}
}

func FuzzBodies(f *testing.F) {
	for _, s := range samples(f) {
		if len(s.Body) < 2000 && (s.Path == "/v1/chat/completions" || s.Path == "/v1/responses") {
			f.Add([]byte(s.Body))
		}
	}
	m := smol(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var body struct {
			Messages []struct {
				Role    string
				Content any
			}
			Tools json.RawMessage
		}
		if json.Unmarshal(raw, &body) == nil {
			c := &Chat{Tools: body.Tools, Raw: raw}
			for _, msg := range body.Messages {
				text, _ := json.Marshal(msg)
				c.Messages = append(c.Messages, Message{Role: msg.Role, Raw: text})
			}
			m.CountChat(c)
		}
		m.CountChat(&Chat{Raw: raw, Messages: []Message{{Role: "user", Content: raw}, {Role: string(raw), Raw: raw}}})
		if c, err := ResponseChat(raw); err == nil {
			m.CountChat(c)
		}
	})
}

// TestLlamaRefusesEmptyMessages has messages without content and calls.
func TestLlamaRefusesEmptyMessages(t *testing.T) {
	m := smol(t)
	for body, want := range map[string]Doubt{
		`{"messages":[{"role":"user","content":"x"},{"role":"assistant"},{"role":"user","content":"y"}]}`:                ByRefusal,
		`{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":""},{"role":"user","content":"y"}]}`:   Certain,
		`{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":null},{"role":"user","content":"y"}]}`: Certain,
	} {
		c := chatOf(t, []byte(body))
		if _, exact := m.CountChat(c); exact != (want == Certain) || c.Doubt != want {
			t.Errorf("%s: exact %v, doubt %q; want %q", body, exact, c.Doubt, want)
		}
	}
}

// TestDoubtsAreNamed has what each kind of estimate is called.
func TestDoubtsAreNamed(t *testing.T) {
	both := `{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}`
	for _, tt := range []struct {
		template, body string
		want           Doubt
	}{
		{chatML, `{"messages":[{"role":"user","content":"x"}]}`, Certain},
		{`{% include 'x' %}`, `{"messages":[{"role":"user","content":"x"}]}`, ByTemplate},
		{`{{ messages[0].content|wordwrap }}`, `{"messages":[{"role":"user","content":"x"}]}`, ByTemplate},
		{alternating, `{"messages":[{"role":"user","content":"x"},{"role":"user","content":"y"}]}`, ByRefusal},
		{called, `{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}]}`, ByTools},
		{chatML, `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, ByMedia},
		{chatML, `{"messages":[{"role":"user","content":"` + strings.Repeat("a", longWord+1) + `"}]}`, ByWords},
		{both, `{"messages":[{"role":"system","content":"x"},{"role":"user","content":"y"}]}`, ByFields},
		{both, `{"messages":[{"role":"user","content":"y"}]}`, Certain},
	} {
		m := withTemplate(t, tt.template)
		c := chatOf(t, []byte(tt.body))
		if _, exact := m.CountChat(c); exact != (tt.want == Certain) || c.Doubt != tt.want {
			t.Errorf("%.80s: exact %v, doubt %q; want %q", tt.template, exact, c.Doubt, tt.want)
		}
	}
}
