package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/internal/wire"
)

// recorder lists what is restored and saved.
type recorder struct {
	mu   sync.Mutex
	done []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, fmt.Sprintf(format, args...))
}

func (r *recorder) Restore(_ context.Context, a *enginepb.Assignment, chain []cachelog.Link) func() {
	r.add("restore %s %v", a.GetModel(), chain)
	return func() { r.add("free") }
}

func (r *recorder) Save(_ *enginepb.Assignment, chain []cachelog.Link, tokens uint64) {
	r.add("save %v %d", chain, tokens)
}

func TestStateIsRestoredBeforeAndSavedAfter(t *testing.T) {
	const answer = `{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":300,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":100}}}`
	const chain = "[{1 40} {2 300}]"
	for _, tt := range []struct {
		name, path, body string
		status           int
		kind             enginepb.Backend_Kind
		want             []string
	}{
		{"chat", "/v1/chat/completions", `{"model":"smollm2","max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}`, 200, enginepb.Backend_LLAMACPP,
			[]string{"restore smollm2 " + chain, "asked", "save " + chain + " 305", "free"}},
		{"a backend that refuses", "/v1/chat/completions", `{"model":"smollm2","max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}`, 400, enginepb.Backend_LLAMACPP,
			[]string{"restore smollm2 " + chain, "asked", "free"}},
		{"embeddings", "/v1/embeddings", `{"model":"smollm2","input":"Hi"}`, 200, enginepb.Backend_LLAMACPP, []string{"asked"}},
		{"two answers", "/v1/completions", `{"model":"smollm2","max_tokens":5,"prompt":"Hi","n":2}`, 200, enginepb.Backend_OPENAI,
			[]string{"restore smollm2 " + chain, "asked", "free"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			states := &recorder{}
			g := newRigOf(t, tt.kind, func(w http.ResponseWriter, _ *http.Request) {
				states.add("asked")
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, answer)
			}, func(c *Config) { c.Snapshots = states })
			req := g.request(t.Context(), tt.path, tt.body)
			req.Header.Set(wire.PrefixHeader, "0000000000000001.40,0000000000000002.300")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			states.mu.Lock()
			defer states.mu.Unlock()
			if diff := cmp.Diff(strings.Join(tt.want, "\n"), strings.Join(states.done, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
