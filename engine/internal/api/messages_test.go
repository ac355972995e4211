package api

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
)

func TestMessages(t *testing.T) {
	const body = `{"model":"smollm2","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}`
	g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/messages/count_tokens":
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"input_tokens":31}`)
		case "/v1/messages":
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: message_start\ndata: {\"message\":{\"usage\":{\"cache_read_input_tokens\":24,\"input_tokens\":7}}}\n\n"+
				"event: message_delta\ndata: {\"usage\":{\"output_tokens\":3}}\n\n")
		default:
			t.Errorf("the backend got %s", r.URL.Path)
		}
	})
	resp, got := g.post(t, "/v1/messages", strings.Replace(body, `{`, `{"stream":true,`, 1))
	if usage := resp.Trailer.Get(headerUsage); resp.StatusCode != http.StatusOK || !strings.HasPrefix(usage, "prompt=31,cached=24,completion=3,") {
		t.Errorf("a stream: %d, usage %q: %s", resp.StatusCode, usage, got)
	}
	if resp, got := g.post(t, "/v1/messages/count_tokens", body); resp.StatusCode != http.StatusOK || got != `{"input_tokens":31}` {
		t.Errorf("count: %d %s", resp.StatusCode, got)
	}
}

func TestMessagesErrors(t *testing.T) {
	g := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":{"code":400,"message":"no","type":"invalid_request_error"}}`)
	})
	for _, tt := range []struct {
		name, body, kind string
		status           int
	}{
		{"another model", `{"model":"x","messages":[1]}`, "not_found_error", 404},
		{"no messages", `{"model":"smollm2"}`, "invalid_request_error", 400},
		{"too large", `{"model":"smollm2","messages":"` + strings.Repeat("x", maxBody) + `"}`, "request_too_large", 413},
		{"the backend's own", `{"model":"smollm2","messages":[1]}`, "invalid_request_error", 400},
	} {
		resp, got := g.post(t, "/v1/messages", tt.body)
		if resp.StatusCode != tt.status || !strings.HasPrefix(got, `{"error":{"message":`) || !strings.Contains(got, `"type":"`+tt.kind+`"},"request_id":null,"type":"error"}`) {
			t.Errorf("%s: %d %s, want %d and %s in Anthropic's form", tt.name, resp.StatusCode, got, tt.status, tt.kind)
		}
	}
	g.serving.Store(nil)
	if resp, got := g.post(t, "/v1/messages", `{}`); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(got, "overloaded_error") {
		t.Errorf("not ready: %d %s", resp.StatusCode, got)
	}
}

func TestResponseIDs(t *testing.T) {
	g := newRigOf(t, enginepb.Backend_OPENAI, func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); strings.Contains(string(b), "stream") {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: response.created\ndata: {\"response\":{\"id\":\"resp_1\"}}\n\ndata: x\n\n")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"resp_2","usage":{"input_tokens":5,"output_tokens":1}}`)
	})
	resp, _ := g.post(t, "/v1/responses", `{"model":"smollm2","input":"hi","stream":true}`)
	if got := resp.Trailer.Get(headerResponse); got != "resp_1" {
		t.Errorf("a stream: id %q in trailers %v", got, resp.Trailer)
	}
	resp, _ = g.post(t, "/v1/responses", `{"model":"smollm2","input":"hi"}`)
	if got := resp.Header.Get(headerResponse); got != "resp_2" {
		t.Errorf("one answer: id %q", got)
	}
	resp, _ = g.post(t, "/v1/completions", `{"model":"smollm2","prompt":"hi"}`)
	if got := resp.Header.Get(headerResponse); got != "" {
		t.Errorf("not a response: id %q", got)
	}
}
