package token

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"testing"
)

// rendered is a conversation with what vLLM made of it: see testdata/engine.py.
type rendered struct {
	Template string          `json:"t"`
	Args     json.RawMessage `json:"a"`
	Body     json.RawMessage `json:"b"`
	Out      *string         `json:"o"` // nil: it refuses
}

func renderedBy(t *testing.T, name string) (out []rendered) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r rendered
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// hfWith is a model of transformers with a template, for an engine.
func hfWith(t testing.TB, template string, e Engine) *Model {
	t.Helper()
	m := smol(t)
	of := &Model{bpe: m.bpe, specials: m.specials, memo: newMemo(), ids: new(idMemo)}
	of.setTemplate(&source{template: template, eos: "<|im_end|>", bos: "<|im_start|>"})
	if of.broken != nil {
		t.Fatal(of.broken)
	}
	out, err := of.For(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestConversationsAreRenderedAsByVLLM holds what is counted as exact to what vLLM 0.32
// renders: fields that it renames, lists, calls, defaults, documents, the last message.
func TestConversationsAreRenderedAsByVLLM(t *testing.T) {
	models := map[string]*Model{}
	exact, native, refused := 0, 0, 0
	all := renderedBy(t, "testdata/engine.jsonl")
	for _, r := range all {
		key := r.Template + string(r.Args)
		m := models[key]
		if m == nil {
			args := string(r.Args)
			if args == "null" {
				args = ""
			}
			m = hfWith(t, r.Template, Engine{Kind: "vllm", Version: "0.32.0", Args: [2]string{args}})
			models[key] = m
		}
		n, sure := m.CountChat(chatOf(t, r.Body))
		switch {
		case !sure:
			if r.Out == nil {
				refused++
			}
			continue
		case r.Out == nil:
			t.Errorf("%s\nwith %s %s: %d tokens called exact; vLLM refuses", r.Template, r.Body, r.Args, n)
			continue
		}
		exact++
		if want := m.tokens([]byte(*r.Out), true); n != want {
			c := chatOf(t, r.Body)
			p, _ := m.plan(c)
			got, err := m.render(c, &p)
			t.Errorf("%s\nwith %s %s: %d tokens, want %d\n got %q %v\nwant %q", r.Template, r.Body, r.Args, n, want, got, err, *r.Out)
		}
		if p, _ := m.plan(chatOf(t, r.Body)); !p.slow {
			native++
		}
	}
	t.Logf("%d conversations: %d exact, %d of them without rendering, %d refused by both", len(all), exact, native, refused)
	if exact < len(all)*6/10 {
		t.Errorf("%d of %d are exact; something is lost", exact, len(all))
	}
}

const thinkingOf = `{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}`

// TestReasoningByVersion has the same conversation counted as each engine renders it.
func TestReasoningByVersion(t *testing.T) {
	const why = "because it is so"
	body := func(fields string) []byte {
		return []byte(`{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a",` + fields + `},{"role":"user","content":"b"}]}`)
	}
	without := func(e Engine) int {
		n, _ := hfWith(t, thinkingOf, e).CountChat(chatOf(t, []byte(`{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"b"}]}`)))
		return n
	}
	tests := []struct {
		kind, version       string
		reasoning, old      bool // whether each is shown
		reasoningSure, sure bool
	}{
		{"vllm", "0.10.2", false, false, true, true},
		{"vllm", "0.11.0", false, false, true, true},
		{"vllm", "0.11.2", true, true, true, true},
		{"vllm", "0.14.1+cu129", true, true, true, true},
		{"vllm", "0.16.0", true, false, true, true},
		{"vllm", "v0.21.0", true, false, true, true},
		{"vllm", "0.22.0", true, true, true, true},
		{"vllm", "0.32.0", true, true, true, true},
		{"sglang", "0.5.6.post2", false, true, true, true},
		{"sglang", "0.5.23", false, true, true, true},
		{"vllm", "", false, false, false, false},
		{"vllm", "0.15.1", false, false, false, false},
		{"vllm", "0.32.1.dev12", false, false, false, false},
		{"vllm", "0.34.0", false, false, false, false},
		{"sglang", "0.6.0", false, false, false, false},
		{"openai", "", false, false, false, false},
		{"tgi", "3.0.0", false, false, false, false},
	}
	for _, tt := range tests {
		e := Engine{Kind: tt.kind, Version: tt.version}
		bare := without(e)
		for field, shown := range map[string]bool{"reasoning": tt.reasoning, "reasoning_content": tt.old} {
			c := chatOf(t, body(`"`+field+`":"`+why+`"`))
			n, exact := hfWith(t, thinkingOf, e).CountChat(c)
			if exact != tt.sure || !exact && c.Doubt != ByEngine {
				t.Errorf("%v with %s: exact %v, doubt %q", e, field, exact, c.Doubt)
			}
			if exact && shown != (n > bare) {
				t.Errorf("%v with %s: %d tokens, %d without; shown: %v", e, field, n, bare, shown)
			}
		}
	}
}

// TestTemplateArguments has an engine's own count, the endpoint's win over the model's, and
// the request's over both.
func TestTemplateArguments(t *testing.T) {
	count := func(args [2]string, kwargs string) int {
		t.Helper()
		m := hfWith(t, thinkingOf, Engine{Kind: "vllm", Version: "0.32.0", Args: args})
		n, exact := m.CountChat(chatOf(t, []byte(`{"messages":[{"role":"user","content":"q"}]`+kwargs+`}`)))
		if !exact {
			t.Errorf("%v %s is not exact", args, kwargs)
		}
		return n
	}
	on, off := count([2]string{}, ""), count([2]string{`{"enable_thinking":false}`}, "")
	if on >= off {
		t.Fatalf("%d tokens with thinking, %d without", on, off)
	}
	for _, tt := range []struct {
		args   [2]string
		kwargs string
		want   int
	}{
		{[2]string{"", `{"enable_thinking":false}`}, "", off},
		{[2]string{`{"enable_thinking":false}`, `{"enable_thinking":true}`}, "", on},
		{[2]string{`{"enable_thinking":false}`}, `,"chat_template_kwargs":{"enable_thinking":true}`, on},
		{[2]string{`{"enable_thinking":true}`}, `,"chat_template_kwargs":{"enable_thinking":false}`, off},
		{[2]string{`{"enable_thinking":false}`}, `,"chat_template_kwargs":{"other":1}`, off},
		{[2]string{`{"enable_thinking":false}`}, `,"chat_template_kwargs":{"enable_thinking":null}`, off}, // vLLM: unset
		{[2]string{`{"other":false}`}, ``, on},
	} {
		if n := count(tt.args, tt.kwargs); n != tt.want {
			t.Errorf("%v %s: %d tokens, want %d", tt.args, tt.kwargs, n, tt.want)
		}
	}
	if _, err := smol(t).For(Engine{Args: [2]string{`[1]`}}); err == nil {
		t.Error("a list is taken for arguments")
	}
}

// TestLastMessageByEngine has conversations that end with the assistant.
func TestLastMessageByEngine(t *testing.T) {
	body := []byte(`{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}`)
	asked := []byte(`{"messages":[{"role":"user","content":"q"},{"role":"user","content":"a"}]}`)
	for _, tt := range []struct {
		kind, version string
		exact, asks   bool
	}{
		{"vllm", "", true, false}, {"vllm", "0.12.0", true, false}, {"sglang", "0.5.4", true, false},
		{"sglang", "0.5.7", false, false}, {"sglang", "0.5.8", true, true}, {"sglang", "0.5.23", true, true}, {"openai", "", false, false},
	} {
		m := hfWith(t, thinkingOf, Engine{Kind: tt.kind, Version: tt.version})
		n, exact := m.CountChat(chatOf(t, body))
		other, _ := m.CountChat(chatOf(t, asked))
		stays := hfWith(t, thinkingOf, Engine{Kind: "vllm"})
		same, _ := stays.CountChat(chatOf(t, body))
		want := same
		if tt.asks {
			want = other
		}
		if exact != tt.exact || exact && n != want {
			t.Errorf("%s %s: %d tokens, exact %v; want %d", tt.kind, tt.version, n, exact, want)
		}
	}
}

// TestListsByEngine has texts of a list joined as each engine does it.
func TestListsByEngine(t *testing.T) {
	const bare = `{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}`
	body := []byte(`{"messages":[{"role":"user","content":[{"type":"text","text":"one"},{"type":"text","text":"two"}]}]}`)
	for _, tt := range []struct {
		kind, version, want string
	}{
		{"vllm", "", "one\ntwo"}, {"vllm", "0.32.0", "one\ntwo"}, {"sglang", "0.5.10", "one two"}, {"sglang", "", ""}, {"openai", "", ""},
	} {
		m := hfWith(t, bare, Engine{Kind: tt.kind, Version: tt.version})
		n, exact := m.CountChat(chatOf(t, body))
		if want := m.tokens([]byte("user:"+tt.want+";"), true); exact != (tt.want != "") || exact && n != want {
			t.Errorf("%s %s: %d tokens, exact %v; want %d", tt.kind, tt.version, n, exact, want)
		}
	}
}

// TestHarmonyIsAnEstimate has a template of gpt-oss, which vLLM does not render.
func TestHarmonyIsAnEstimate(t *testing.T) {
	const source = `{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>{{ m.content }}<|end|>{% endfor %}`
	for kind, doubt := range map[string]Doubt{"vllm": ByHarmony, "openai": ByHarmony, "sglang": Certain} {
		c := chatOf(t, []byte(`{"messages":[{"role":"user","content":"q"}]}`))
		hfWith(t, source, Engine{Kind: kind}).CountChat(c)
		if c.Doubt != doubt {
			t.Errorf("%s: doubt %q, want %q", kind, c.Doubt, doubt)
		}
	}
}

func FuzzVersions(f *testing.F) {
	f.Add("0.32.0+cpu")
	f.Add("v0.5.6.post1")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		for _, kind := range []string{"vllm", "sglang", "x"} {
			if h, _ := habitsOf(Engine{Kind: kind, Version: text}); h.known != (kind != "x") {
				t.Errorf("%s %q: known %v", kind, text, h.known)
			}
		}
	})
}
