package api

import (
	"context"
	"io"
	"net/http"
	"strings"
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
