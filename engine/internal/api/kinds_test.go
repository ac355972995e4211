package api

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
)

const (
	streamed  = `{"model":"smollm2","stream":true,"messages":[{"role":"user","content":"hi"}]}`
	someToken = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	someUsage = `data: {"choices":[],"usage":{"prompt_tokens":39,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":24}}}` + "\n\n"
	someEnd   = "data: [DONE]\n\n"
)

// TestStreamsAreAskedForTheirAccount of kinds that give none by themselves; clients
// that have not asked don't get it.
func TestStreamsAreAskedForTheirAccount(t *testing.T) {
	for _, kind := range []enginepb.Backend_Kind{enginepb.Backend_VLLM, enginepb.Backend_OPENAI} {
		var sent string
		g := newRigOf(t, kind, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			sent = string(b)
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			_, _ = io.WriteString(w, someToken+someToken)
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, someUsage+someEnd)
		})
		asked := strings.Replace(streamed, "{", `{"stream_options":{"include_usage":true},`, 1)
		for body, want := range map[string]string{streamed: someToken + someToken + someEnd, asked: someToken + someToken + someUsage + someEnd} {
			resp, got := g.post(t, "/v1/chat/completions", body)
			if resp.StatusCode != http.StatusOK || got != want {
				t.Errorf("%v: %d %s, want %s", kind, resp.StatusCode, got, want)
			}
			if !strings.Contains(sent, `"stream_options":{"include_usage":true}`) {
				t.Errorf("%v: the backend got %s", kind, sent)
			}
			if usage := resp.Trailer.Get(headerUsage); !strings.HasPrefix(usage, "prompt=39,cached=24,completion=2,prefill_ms=") {
				t.Errorf("%v: usage %q", kind, usage)
			}
		}
	}
}

// TestErrorAsTheFirstEvent is answered as an error: nothing was sent yet, and another
// replica can answer.
func TestErrorAsTheFirstEvent(t *testing.T) {
	g := newRigOf(t, enginepb.Backend_VLLM, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}`+"\n\n"+someEnd)
	})
	if resp, body := g.post(t, "/v1/chat/completions", streamed); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `"code":"backend_lost"`) {
		t.Errorf("%d %s, want 503", resp.StatusCode, body)
	}
}

// TestEmptyStreamIsNoAnswer: what ends before its first byte was not answered.
func TestEmptyStreamIsNoAnswer(t *testing.T) {
	g := newRigOf(t, enginepb.Backend_VLLM, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
	})
	if resp, body := g.post(t, "/v1/chat/completions", streamed); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%d %s, want 503", resp.StatusCode, body)
	}
}

// TestExternalServer gets the model's name as it has it, and what engine does not know.
func TestExternalServer(t *testing.T) {
	g := newRigOf(t, enginepb.Backend_OPENAI, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/v1/refused" {
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"error":{"message":"slow down","type":"requests","code":null}}`)
			return
		}
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"), b)
	})
	v := g.serving.Load()
	v.Assignment.Backend.ServedModel = "org/Smol-2"
	tests := []struct{ name, path, kind, body, want string }{
		{"a name that differs", "/v1/chat/completions", "application/json", `{"model": "smollm2", "messages":[1]}`,
			`POST /v1/chat/completions application/json {"model": "org/Smol-2", "messages":[1]}`},
		{"an operation of its own", "/v1/moderations?a=1", "application/json", `{"model":"smollm2","query":"q"}`,
			`POST /v1/moderations?a=1 application/json {"model":"org/Smol-2","query":"q"}`},
		{"one without a model", "/tokenize", "application/json", `{"prompt":"q"}`, `POST /tokenize application/json {"prompt":"q"}`},
		{"no JSON", "/v1/audio/transcriptions", "multipart/form-data; boundary=x", "--x--", "POST /v1/audio/transcriptions multipart/form-data; boundary=x --x--"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := g.request(t.Context(), tt.path, tt.body)
			req.Header.Set("Content-Type", tt.kind)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, _ := io.ReadAll(resp.Body); string(b) != tt.want || resp.Header.Get(headerNode) != "node-a" {
				t.Errorf("%d %s, want %s", resp.StatusCode, b, tt.want)
			}
		})
	}
	if resp, body := g.post(t, "/v1/moderations", `{"model":"gpt"}`); resp.StatusCode != http.StatusNotFound || !strings.Contains(body, "model_not_found") {
		t.Errorf("another model: %d %s", resp.StatusCode, body)
	}
	if resp, body := g.post(t, "/v1/refused", `{}`); resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, "slow down") || resp.Header.Get("Retry-After") == "" {
		t.Errorf("refused: %d %s", resp.StatusCode, body)
	}
}

func TestOnlyWhatTheKindHasPasses(t *testing.T) {
	for kind, want := range map[enginepb.Backend_Kind]int{enginepb.Backend_LLAMACPP: 404, enginepb.Backend_VLLM: 404, enginepb.Backend_OPENAI: 200} {
		g := newRigOf(t, kind, func(http.ResponseWriter, *http.Request) {})
		if resp, _ := g.post(t, "/reset_prefix_cache", "{}"); resp.StatusCode != want {
			t.Errorf("%v: %d, want %d", kind, resp.StatusCode, want)
		}
	}
}

// TestWhatAServerLacks is refused in the API's form, whatever it answers there.
func TestWhatAServerLacks(t *testing.T) {
	answers := map[string]struct {
		status int
		body   string
	}{
		"FastAPI's":              {404, `{"detail":"Not Found"}`},
		"vLLM's":                 {404, `{"error":{"message":"Not Found","type":"NotFoundError","param":null,"code":404}}`},
		"Go's":                   {404, "404 page not found\n"},
		"OpenAI's":               {404, `{"error":{"message":"Invalid URL (POST /v1/embeddings)","type":"invalid_request_error","param":null,"code":null}}`},
		"another method's":       {405, `{"detail":"Method Not Allowed"}`},
		"one that says so":       {501, `{"error":{"code":501,"message":"start it with --embeddings","type":"not_supported_error"}}`},
		"nothing":                {404, ""},
		"an adapter that is not": {404, `{"error":{"message":"The model poet does not exist.","type":"NotFoundError","param":"model","code":404}}`},
	}
	for _, kind := range []enginepb.Backend_Kind{enginepb.Backend_VLLM, enginepb.Backend_OPENAI, enginepb.Backend_LLAMACPP} {
		for name, answer := range answers {
			g := newRigOf(t, kind, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, answer.body)
			})
			resp, got := g.post(t, "/v1/embeddings", `{"model":"smollm2","input":"a"}`)
			lacks := resp.StatusCode == http.StatusBadRequest && strings.Contains(got, `"param":"model","code":"unsupported_operation"`)
			if lacks != (name != "an adapter that is not") {
				t.Errorf("%v, %s: %d %s", kind, name, resp.StatusCode, got)
			}
		}
	}
}
