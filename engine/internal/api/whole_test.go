package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// events has the backend answer with a stream.
func events(t *testing.T, stream string) *rig {
	return newRig(t, func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); !strings.HasSuffix(string(b), `,"stream":true,"stream_options":{"include_usage":true}}`) {
			t.Errorf("the backend got %s", b)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, stream)
	})
}

func TestUnaryFromAStream(t *testing.T) {
	const hello = `data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hello"}}]}` + "\n\n" +
		`data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]}` + "\n\n"
	const end = `data: {"choices":[],"usage":{"prompt_tokens":39,"completion_tokens":48,"prompt_tokens_details":{"cached_tokens":24}},` + timings + "}\n\ndata: [DONE]\n\n"
	g := events(t, hello+end)
	resp, body := g.post(t, "/v1/chat/completions", chat)
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, `{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"message":{"content":"Hello","refusal":null,"role":"assistant"}}],"object":"chat.completion",`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp.Header.Get(headerUsage) != cost || resp.Header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("header %v", resp.Header)
	}

	resp, body = events(t, hello).post(t, "/v1/chat/completions", chat)
	wantError(t, resp, body, http.StatusServiceUnavailable, "the stream ended early")
	resp, body = events(t, hello+`data: {"error":{"code":400,"message":"no room"}}`+"\n\n").post(t, "/v1/chat/completions", chat)
	wantError(t, resp, body, http.StatusBadRequest, "no room")
}

func TestUnaryFromAStreamWhoseClientLeaves(t *testing.T) {
	begun, left := make(chan struct{}), make(chan struct{})
	g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: null\n\n")
		w.(http.Flusher).Flush()
		close(begun)
		<-r.Context().Done()
		close(left)
	})
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-begun; leave() }()
	if resp, err := http.DefaultClient.Do(g.request(ctx, "/v1/chat/completions", chat)); err == nil {
		resp.Body.Close()
		t.Errorf("status %d", resp.StatusCode)
	}
	<-left // the backend has noticed
}

// embedder answers a request for embeddings of texts as llama.cpp does, each with its length.
func embedder(t *testing.T, asked func(texts []string) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Input []string }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		if !asked(q.Input) {
			http.Error(w, `{"error":{"code":400,"message":"input is too large","type":"invalid_request_error"}}`, http.StatusBadRequest)
			return
		}
		var data []any
		for i, text := range q.Input {
			data = append(data, map[string]any{"object": "embedding", "index": i, "embedding": []int{len(text)}})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"object": "list", "model": "smollm2", "data": data, "usage": map[string]int{"prompt_tokens": 2 * len(data), "total_tokens": 2 * len(data)}})
	}
}

const texts = `{"model":"smollm2","input":["a","bb","ccc"]}`

// TestManyTextsAreOneAnswer of the parts in which they went to the backend.
func TestManyTextsAreOneAnswer(t *testing.T) {
	g := newRig(t, embedder(t, func([]string) bool { return true }))
	resp, body := g.post(t, "/v1/embeddings", texts)
	want := `{"data":[{"embedding":[1],"index":0,"object":"embedding"},{"embedding":[2],"index":1,"object":"embedding"},{"embedding":[3],"index":2,"object":"embedding"}],` +
		`"model":"smollm2","object":"list","usage":{"prompt_tokens":6,"total_tokens":6}}`
	if resp.StatusCode != http.StatusOK || body != want {
		t.Errorf("status %d: %s\nwant %s", resp.StatusCode, body, want)
	}
	if usage := resp.Header.Get(headerUsage); !strings.Contains(usage, "prompt=6") {
		t.Errorf("usage %q, want that of all parts", usage)
	}
}

// TestRefusedPartEndsTheRequest with the backend's own refusal.
func TestRefusedPartEndsTheRequest(t *testing.T) {
	var asked atomic.Int64
	g := newRig(t, embedder(t, func(texts []string) bool { asked.Add(1); return texts[0] != "bb" }))
	resp, body := g.post(t, "/v1/embeddings", texts)
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "input is too large") || asked.Load() != 2 {
		t.Errorf("status %d after %d parts: %s", resp.StatusCode, asked.Load(), body)
	}
}

// TestTextsOfWhoHasLeftAreNotSent to a backend that computes all that it has begun.
func TestTextsOfWhoHasLeftAreNotSent(t *testing.T) {
	first, proceed := make(chan struct{}), make(chan struct{})
	var asked atomic.Int64
	g := newRig(t, embedder(t, func([]string) bool {
		if asked.Add(1) == 1 {
			close(first)
		}
		<-proceed
		return true
	}))
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = http.DefaultClient.Do(g.request(ctx, "/v1/embeddings", texts))
	}()
	<-first
	leave()
	<-done
	until(t, func() bool { return g.gate.Load().Running == 0 })
	close(proceed) // the backend finishes what it has begun
	if n := asked.Load(); n != 1 {
		t.Errorf("%d parts were sent, want 1", n)
	}
}
