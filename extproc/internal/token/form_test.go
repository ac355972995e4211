package token

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// withTemplate is SmolLM2 with another chat template.
func withTemplate(t testing.TB, template string) *Model {
	t.Helper()
	m := smol(t)
	out := &Model{bpe: m.bpe, specials: m.specials, memo: newMemo()}
	out.setTemplate(&source{template: template, bos: "<|endoftext|>", eos: "<|im_end|>", llama: true})
	return out
}

const (
	trimming = `{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}`
	alternating = `{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}` +
		`{{ '<|im_start|>' ~ m.role ~ ' ' ~ m.content ~ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}`
	thinking = `{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}` +
		`{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}`
	lastUser = `{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}` +
		`{% for m in messages %}{% if m.role == 'user' %}<repo_name>{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m.content }}<file_sep>` +
		`{% else %}{{ m.content + '<|endoftext|>' }}{% endif %}{% endfor %}`
	emptyLess = `{% for m in messages %}{% if m.content %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}<|im_start|>`
	typedOnly = `{% for m in messages %}<|im_start|>{{ m.role }}{% for p in m.content %}{% if p.type == 'text' %}{{ '[' + p.text + ']' }}{% endif %}{% endfor %}<|im_end|>{% endfor %}`
	plainText = `{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}`
	numbered  = `{% for m in messages %}<|im_start|>{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}`
	dated     = `<|im_start|>{{ strftime_now('%d %b %Y') }}<|im_end|>{% for m in messages %}<|im_start|>{{ m.role + m.content }}<|im_end|>{% endfor %}`
	called    = `{% for m in messages %}<|im_start|>{{ m.role + '\n' }}{% if m.tool_calls %}{% for c in m.tool_calls %}<filename>{{ c.function | tojson }}{% endfor %}` +
		`{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}`
)

// Templates that treat the last answer, and the white space before answers, apart.
const (
	lastAnswer = `{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}` +
		`{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`
	leftLines = `{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content.lstrip('\n') if m.role == 'assistant' else m.content }}{{ '<|im_end|>\n' }}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`
)

// TestFormsLeaveWhatTheyDoNotHoldFor has conversations that the forms of such
// templates counted otherwise than the templates, and called it exact.
func TestFormsLeaveWhatTheyDoNotHoldFor(t *testing.T) {
	m := smol(t)
	for name, text := range map[string]string{"last answer": lastAnswer, "left lines": leftLines} {
		of := &Model{bpe: m.bpe, specials: m.specials, memo: newMemo()}
		of.setTemplate(&source{template: text})
		if of.form.Load() == nil {
			t.Fatalf("%s: no form", name)
		}
		native := 0
		for _, answer := range []string{"yes", "\n\nyes", "yes\n", ""} {
			for _, last := range []string{"", "And?"} {
				c := &Chat{Messages: []Message{{Role: "user", Content: []byte("Who?")}, {Role: "assistant", Content: []byte(answer)}}}
				if last != "" {
					c.Messages = append(c.Messages, Message{Role: "user", Content: []byte(last)})
				}
				if checkForm(t, of, c) {
					native++
				}
			}
		}
		if native == 0 {
			t.Errorf("%s: no conversation went by the form", name)
		}
	}
}

var templates = []struct {
	name, source string
	form         bool // whether it has one
	strict       bool
	noSystem     bool
	noEmpty      bool
	trips        int
}{
	{name: "chatML", source: chatML, form: true},
	{name: "trimming", source: trimming, form: true},
	{name: "alternating", source: alternating, form: true, strict: true, noSystem: true},
	{name: "thinking", source: thinking, form: true, trips: 1},
	{name: "last user", source: lastUser, form: true, noSystem: true},
	{name: "without empty ones", source: emptyLess, form: true, noEmpty: true},
	{name: "typed only", source: typedOnly, form: true},
	{name: "plain text", source: plainText, form: true},
	{name: "numbered", source: numbered},
	{name: "dated", source: dated, form: true},
	{name: "with calls", source: called, form: true},
}

func TestFormsAreFound(t *testing.T) {
	for _, tt := range templates {
		t.Run(tt.name, func(t *testing.T) {
			m := withTemplate(t, tt.source)
			if m.broken != nil {
				t.Fatal(m.broken)
			}
			f := m.form.Load()
			if (f != nil) != tt.form {
				t.Fatalf("form %v; want one: %v", f, tt.form)
			}
			if f == nil {
				return
			}
			if f.strict != tt.strict || f.noSystem != tt.noSystem || f.noEmpty != tt.noEmpty || len(f.trips) != tt.trips {
				t.Errorf("strict %v, noSystem %v, noEmpty %v, trips %q", f.strict, f.noSystem, f.noEmpty, f.trips)
			}
		})
	}
}

// randomChat has messages of any roles, with scraps of text and of templates.
func randomChat(rng *rand.Rand) *Chat {
	c := &Chat{}
	for i := range 1 + rng.IntN(6) {
		role := []string{"user", "assistant"}[i%2]
		if rng.IntN(4) == 0 {
			role = []string{"system", "user", "assistant", "tool", "developer", "other"}[rng.IntN(6)]
		}
		text := randomText(rng, 12)
		if rng.IntN(5) == 0 {
			text += []string{"</think>", "<think>x</think>y", " user ", "assistant\n", "text"}[rng.IntN(5)]
		}
		c.Messages = append(c.Messages, Message{Role: role, Content: []byte(text)})
	}
	return c
}

// checkForm holds counting by the form to its twin, the whole prompt rendered and
// counted. It returns whether the conversation went by the form.
func checkForm(t *testing.T, m *Model, c *Chat) bool {
	t.Helper()
	p, err := m.plan(c)
	if err != nil {
		return false // two of the assistant's at the end: refused
	}
	got, ok := m.countNative(&p)
	if !ok {
		return false
	}
	again, _ := m.countNative(&p) // what it remembers now
	prompt, err := m.render(c, &p)
	if err != nil {
		t.Fatalf("%q: the form counts what the template refuses: %v", texts(c), err)
	}
	if want := m.tokens(prompt, true) + m.addedTo; got != want || again != want {
		t.Fatalf("%q: %d tokens by the form, then %d, rendered %d: %q", texts(c), got, again, want, prompt)
	}
	return true
}

func TestFormsAgreeWithTheirTemplates(t *testing.T) {
	for _, tt := range templates {
		t.Run(tt.name, func(t *testing.T) {
			m := withTemplate(t, tt.source)
			rng := rand.New(rand.NewPCG(21, 21))
			native := 0
			for range 400 {
				if checkForm(t, m, randomChat(rng)) {
					native++
				}
			}
			if tt.form && native < 40 {
				t.Errorf("only %d of 400 conversations went by the form", native)
			}
		})
	}
}

// FuzzForms has messages divided by bytes below 8, which name their roles.
func FuzzForms(f *testing.F) {
	f.Add("\x00be kind\x01Who <|im_start|> are you?\x02I am </think> x\x01 ok ")
	f.Add("\x01aaaa\n\n\x02\x01<|im_end|>\n<|im_start|>assistant\n")
	f.Add("\x03[]\x01é\u00a0 \x05")
	var models []*Model
	for _, tt := range templates {
		models = append(models, withTemplate(f, tt.source))
	}
	f.Fuzz(func(t *testing.T, script string) {
		if len(script) > 1<<12 || !utf8.ValidString(script) {
			return // what is not UTF-8 the backend refuses
		}
		c := &Chat{}
		for i := 0; i < len(script); {
			role := []string{"system", "user", "assistant", "tool", "developer", "other", "user", "assistant"}[script[i]%8]
			end := i + 1
			for end < len(script) && script[end] >= 8 {
				end++
			}
			c.Messages = append(c.Messages, Message{Role: role, Content: []byte(script[i+1 : end])})
			i = end
			if len(c.Messages) > 20 {
				return
			}
		}
		for _, m := range models {
			checkForm(t, m, c)
		}
	})
}

func texts(c *Chat) (out []string) {
	for _, m := range c.Messages {
		out = append(out, m.Role+": "+string(m.Content))
	}
	return out
}

func TestADatedFormIsRenewed(t *testing.T) {
	m := withTemplate(t, dated)
	old := m.form.Load()
	if old.days != daysOf(time.Now()) {
		t.Fatalf("form of days %v", old.days)
	}
	old.days.here++ // as if it were of another day
	if m.currentForm() == old || m.form.Load().days != daysOf(time.Now()) {
		t.Error("the form of another day is still there")
	}
}

func TestTemplatesThatCannotBeRendered(t *testing.T) {
	for _, source := range []string{"{% for %}", "{{ (", "{% unknown %}", "{{ trimmed }}" + trimmed} {
		m := withTemplate(t, source)
		if m.TemplateError() == nil {
			t.Errorf("%q was taken", source)
		}
		n, exact := m.CountChat(&Chat{Messages: []Message{{Role: "user", Content: []byte("Hello there")}}, Tools: []byte("[]")})
		if n < 2 || n > 20 || exact {
			t.Errorf("%q: estimate %d, exact %v", source, n, exact)
		}
	}
	if smol(t).TemplateError() != nil {
		t.Error("SmolLM2's template is broken")
	}
}

func TestTemplateErrorsBecomeEstimates(t *testing.T) {
	m := withTemplate(t, alternating)
	c := &Chat{Messages: []Message{{Role: "assistant", Content: []byte("x")}, {Role: "user", Content: []byte("y")}}}
	if n, exact := m.CountChat(c); exact || n == 0 {
		t.Errorf("%d tokens, exact %v, of what the template refuses", n, exact)
	}
}

func TestToolsAreRenderedButNotSworn(t *testing.T) {
	m := withTemplate(t, called)
	call := `{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{\"b\": 1, \"a\": [true, null]}"}}]}`
	c := &Chat{
		Messages: []Message{{Role: "user", Content: []byte("x")}, {Role: "assistant", Raw: []byte(call)}, {Role: "tool", Content: []byte("y")}},
		Tools:    []byte(`[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`),
	}
	p, err := m.plan(c)
	if err != nil {
		t.Fatal(err)
	}
	prompt, err := m.render(c, &p)
	if err != nil {
		t.Fatal(err)
	}
	want := "<|im_start|>user\nx<|im_end|><|im_start|>assistant\n<filename>" +
		`{"name": "f", "arguments": {"b": 1, "a": [true, null]}}` + "<|im_end|><|im_start|>tool\ny<|im_end|>" +
		`[{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]`
	if string(prompt) != want {
		t.Errorf("prompt %q\nwant %q", prompt, want)
	}
	if n, exact := m.CountChat(c); exact || n != m.tokens(prompt, true) {
		t.Errorf("%d tokens, exact %v", n, exact)
	}
}

// TestLlamaStripsASCII has white space that llama.cpp leaves and Python strips.
func TestLlamaStripsASCII(t *testing.T) {
	for _, tt := range []struct {
		llama bool
		want  string
	}{{true, "|\u00a0x|"}, {false, "|x|"}} {
		tmpl, err := newTemplate(`|{{ messages[0].content | trim }}|`, "", "", tt.llama)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tmpl.render(&input{messages: []*jinja.Dict{tmpl.message("user", " \u00a0x\n")}})
		if err != nil || got != tt.want {
			t.Errorf("llama %v: %q, %v; want %q", tt.llama, got, err, tt.want)
		}
	}
}

func TestRangeIsBounded(t *testing.T) {
	tmpl, err := newTemplate("{% for i in range(999999999) %}{% endfor %}", "", "", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tmpl.render(&input{}); err == nil || !strings.Contains(err.Error(), "range of more than") {
		t.Errorf("an endless range: %v", err)
	}
}
