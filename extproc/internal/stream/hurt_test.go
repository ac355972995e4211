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
		{"the embedding again, as engines that have too much to do are not hurt", "/v1/embeddings", embed, 500, 3},
		{"the embedding after errors", "/v1/embeddings", embed, 200, 0},
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
		h.add(i, i%2 == 0, epoch.Add(time.Duration(i)*time.Millisecond))
	}
	if n := len(h.keys); n > mostHurts || int(h.n.Load()) != n {
		t.Errorf("%d requests are remembered, %d said; want at most %d", n, h.n.Load(), mostHurts)
	}
	last := uint64(5*mostHurts - 1)
	if once, _ := h.has(last, epoch); !once {
		t.Errorf("request %d, the last one, is forgotten", last)
	}
}

// TestWhatEnginesEndOverIsSentToNobody follows one key through what is known of it.
func TestWhatEnginesEndOverIsSentToNobody(t *testing.T) {
	type verdict struct {
		once bool
		wait time.Duration
	}
	const key = 7
	tests := []struct {
		name string
		do   func(h *hurts)
		at   time.Duration // from epoch
		want verdict
	}{
		{name: "nothing is known", do: func(*hurts) {}},
		{name: "errors: one engine finds out", do: func(h *hurts) { h.add(key, false, epoch) }, want: verdict{once: true}},
		{name: "ends: nobody is asked", do: func(h *hurts) { h.add(key, true, epoch) }, want: verdict{true, refuseFirst}},
		{name: "then one engine", do: func(h *hurts) { h.add(key, true, epoch) }, at: refuseFirst, want: verdict{once: true}},
		{name: "that failed, too: nobody for twice as long", do: func(h *hurts) {
			h.add(key, true, epoch)
			h.again(key, epoch)
		}, want: verdict{true, 2 * refuseFirst}},
		{name: "never for longer than it is remembered", do: func(h *hurts) {
			h.add(key, true, epoch)
			for range 20 {
				h.again(key, epoch)
			}
		}, want: verdict{true, hurtFor}},
		{name: "one that failed, of which nothing is known", do: func(h *hurts) { h.again(key, epoch) }},
		{name: "what was answered before is not the cause", do: func(h *hurts) {
			h.answer(key)
			h.add(key, true, epoch)
		}},
		{name: "what is answered after it neither", do: func(h *hurts) {
			h.add(key, true, epoch)
			h.answer(key)
		}},
		{name: "forgotten", do: func(h *hurts) { h.add(key, true, epoch) }, at: refuseFirst + hurtFor + 1},
		{name: "no key", do: func(h *hurts) { h.add(0, true, epoch) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var h hurts
			tt.do(&h)
			if once, wait := h.has(key, epoch.Add(tt.at)); (verdict{once, wait}) != tt.want {
				t.Errorf("has() = %v, %v, want %v", once, wait, tt.want)
			}
		})
	}
}

// TestGist has a body be known by what it says, wherever that is, at a bounded cost.
func TestGist(t *testing.T) {
	for _, size := range []int{1, 3 * gistPart, 3*gistPart + 1, 1 << 20} {
		body := bytes.Repeat([]byte("x"), size)
		was := gist(body)
		for _, at := range []int{0, size / 2, size - 1} {
			body[at] = 'y'
			if gist(body) == was {
				t.Errorf("of %d bytes, another one at %d makes no difference", size, at)
			}
			body[at] = 'x'
		}
		if gist(append(body, 'x')) == was {
			t.Errorf("of %d bytes, one more makes no difference", size)
		}
	}
}

func BenchmarkGist(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1<<20)
	for b.Loop() {
		gist(body)
	}
}
