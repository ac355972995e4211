package stream

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
)

// TestARequestThatFailedOnTwoIsSentToOne has the same request be sent to one engine for a
// while, others to as many as before, and the log say nothing of what is asked.
func TestARequestThatFailedOnTwoIsSentToOne(t *testing.T) {
	f := newFleet(4)
	var logged bytes.Buffer
	f.core.Logs(slog.New(slog.NewTextHandler(&logged, nil)))
	now := epoch
	ask := func(path, body string, status int) *Decision {
		now = now.Add(time.Second)
		x := f.core.Begin()
		defer f.core.Finish(x)
		head, rest := post(func(h *RequestHead) { h.Path = path }), bodyOf(body)
		head.At, rest.At = now, now
		out := run(x, head, rest)
		d := *out[len(out)-1].Decision
		served := d.Choice.List[min(1, len(d.Choice.List)-1)].Address
		run(x, Event{Kind: ResponseHeaders, At: now, End: true, Answer: AnswerHead{Answer: pick.Answer{Status: status, Attempts: min(2, d.Retries+1), Served: served}}})
		return &d
	}
	const poison = `{"model":"m","messages":[{"role":"user","content":"a secret poison"}]}`
	const other = `{"model":"m","messages":[{"role":"user","content":"bread"}]}`
	const embed = `{"model":"m","input":"poisoned"}`
	steps := []struct {
		name, path, body string
		status, retries  int
	}{
		{"first", "/v1/chat/completions", poison, 500, 3},
		{"again", "/v1/chat/completions", poison, 500, 0},
		{"written otherwise", "/v1/chat/completions", strings.Replace(poison, `"model":"m"`, ` "model": "m"`, 1), 500, 0},
		{"another", "/v1/chat/completions", other, 200, 3},
		{"an embedding", "/v1/embeddings", embed, 503, 3},
		{"the embedding again", "/v1/embeddings", embed, 200, 0},
		{"the embedding, which was answered", "/v1/embeddings", embed, 200, 3},
		{"the first again", "/v1/chat/completions", poison, 500, 0},
	}
	for _, s := range steps {
		if d := ask(s.path, s.body, s.status); d.Retries != s.retries {
			t.Errorf("%s: %d retries, want %d", s.name, d.Retries, s.retries)
		}
	}
	now = now.Add(hurtFor)
	if d := ask("/v1/chat/completions", poison, 200); d.Retries != 3 {
		t.Errorf("%d retries after a while, want 3", d.Retries)
	}
	if s := logged.String(); !strings.Contains(s, "model=m") || strings.Contains(s, "secret") {
		t.Errorf("the log has %q; want the model, and nothing of what is asked", s)
	}
}

func TestHurtsAreBounded(t *testing.T) {
	var h hurts
	for i := range uint64(5 * mostHurts) {
		h.add(i, epoch.Add(time.Duration(i)*time.Millisecond))
	}
	if n := len(h.keys); n > mostHurts || int(h.n.Load()) != n {
		t.Errorf("%d requests are remembered, %d said; want at most %d", n, h.n.Load(), mostHurts)
	}
	if last := uint64(5*mostHurts - 1); !h.has(last, epoch) {
		t.Errorf("request %d, the last one, is forgotten", last)
	}
}
