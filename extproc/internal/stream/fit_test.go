package stream

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
)

// texts counts a token for every byte of a text, an id for one.
type texts struct{ exact bool }

func (c texts) Count(r *openai.Request) (n int, doubt string) {
	for i := range r.Messages {
		n += len(r.Messages[i].Content)
	}
	for _, p := range r.Prompts {
		n += p.IDs + len(p.Text)
	}
	return n, doubtful(c.exact)
}

func TestPromptsThatCannotFit(t *testing.T) {
	const (
		context = 100
		chat    = "/v1/chat/completions"
	)
	text := func(n int) string { return strings.Repeat("a", n) }
	message := func(n int) string { return `{"role":"user","content":"` + text(n) + `"}` }
	ids := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("7,", n), ",") + "]" }
	tests := []struct {
		name, path, fields string
		estimated          bool
		tokens             int // of the refusal; 0: it is sent
	}{
		{"room for one token", chat, `"messages":[` + message(99) + `]`, false, 0},
		{"no room for one", chat, `"messages":[` + message(100) + `]`, false, 100},
		{"more messages than tokens", chat, `"messages":[` + strings.Repeat(message(0)+",", 100) + message(0) + `]`, false, 101},
		{"token ids", "/v1/completions", `"prompt":` + ids(101), false, 101},
		{"one prompt of several", "/v1/completions", `"prompt":["` + text(50) + `","` + text(120) + `",` + ids(3) + `]`, false, 120},
		{"several prompts that fit one by one", "/v1/completions", `"prompt":["` + text(90) + `","` + text(90) + `"]`, false, 0},
		{"what is embedded needs no room for an answer", "/v1/embeddings", `"input":"` + text(100) + `"`, false, 0},
		{"what is embedded", "/v1/embeddings", `"input":"` + text(101) + `"`, false, 101},
		{"responses", "/v1/responses", `"input":"` + text(101) + `"`, false, 101},
		{"Anthropic's messages", "/v1/messages", `"max_tokens":5,"messages":[` + message(100) + `]`, false, 100},
		{"it is only counted", "/v1/messages/count_tokens", `"messages":[` + message(400) + `]`, false, 0},
		{"the tokens of a response are only counted", "/v1/responses/input_tokens", `"input":[` + message(400) + `]`, false, 0},
		{"that is too much to count", "/v1/messages/count_tokens", `"messages":[` + message(401) + `]`, false, 401},
		{"an estimate may be wrong", chat, `"messages":[` + message(400) + `]`, true, 0},
		{"an estimate is hardly so wrong", chat, `"messages":[` + message(401) + `]`, true, 401},
		{"the engine is to cut it", chat, `"truncate_prompt_tokens":50,"messages":[` + message(400) + `]`, false, 0},
		{"documents are put together by rules of the engine", "/v1/rerank", `"query":"a","documents":["` + text(200) + `"]`, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1)
			f.model.Context = context
			f.model.SetCounter(texts{!tt.estimated})
			x := f.core.Begin()
			defer f.core.Finish(x)
			out := run(x, post(func(h *RequestHead) { h.Path = tt.path }), bodyOf(`{"model":"m",`+tt.fields+`}`))
			err := out[len(out)-1].Error
			if tt.tokens == 0 {
				if err != nil || out[len(out)-1].Decision == nil {
					t.Errorf("got %+v, want a decision", out)
				}
				return
			}
			if err == nil || err.Status != 400 || err.Code != "context_length_exceeded" || !strings.Contains(err.Message, fmt.Sprint(tt.tokens)) {
				t.Fatalf("got %+v, want a refusal of %d tokens", err, tt.tokens)
			}
			var body struct {
				Type  string
				Error struct{ Type, Code string }
			}
			anthropic := strings.HasPrefix(tt.path, "/v1/messages")
			if e := json.Unmarshal(err.JSON(), &body); e != nil || (body.Type == "error") != anthropic || (body.Error.Code == "context_length_exceeded") == anthropic {
				t.Errorf("%s: %v", err.JSON(), e)
			}
		})
	}
}

// TestAHundredThousandMessages must not cost more than reading them.
func TestAHundredThousandMessages(t *testing.T) {
	body := `{"model":"m","messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 100_000) + `{"role":"user","content":"a"}]}`
	f := newFleet(1)
	f.model.Context = 4096
	f.table.Policy.MaxBody = 16 << 20
	f.model.SetCounter(never{t})
	x := f.core.Begin()
	defer f.core.Finish(x)
	began := time.Now()
	out := run(x, post(), bodyOf(body))
	if err := out[len(out)-1].Error; err == nil || err.Code != "context_length_exceeded" {
		t.Errorf("got %+v", out)
	}
	t.Logf("%d bytes in %v", len(body), time.Since(began))
}

// never is a counter that must not be asked.
type never struct{ t *testing.T }

func (n never) Count(*openai.Request) (int, string) {
	n.t.Error("its tokens were counted")
	return 0, pick.Certain
}

// TestTooManyEntriesAreRefused refuses what has more messages or inputs than are read, before
// anything is counted: as too long where the context is known.
func TestTooManyEntriesAreRefused(t *testing.T) {
	list := func(one string) string { return "[" + strings.Repeat(one+",", openai.MaxEntries) + one + "]" }
	for _, tt := range []struct {
		name, path, body, code string
		context                int
	}{
		{"messages", "/v1/chat/completions", `{"model":"m","messages":` + list(`{}`) + `}`, "too_many_entries", 0},
		{"messages, context known", "/v1/chat/completions", `{"model":"m","messages":` + list(`{}`) + `}`, "context_length_exceeded", 1000},
		{"inputs", "/v1/embeddings", `{"model":"m","input":` + list(`""`) + `}`, "too_many_entries", 1000},
	} {
		f := newFleet(3, func(t *pick.Table) { t.Policy.MaxBody = 1 << 30 })
		f.model.Context = tt.context
		out := run(f.core.Begin(), post(func(h *RequestHead) { h.Path = tt.path }), bodyOf(tt.body))
		if err := out[len(out)-1].Error; err == nil || err.Status != 400 || err.Code != tt.code {
			t.Errorf("%s: %+v", tt.name, out[len(out)-1])
		}
	}
}
