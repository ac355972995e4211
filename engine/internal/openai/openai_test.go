package openai

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

func assignment(url string) *enginepb.Assignment {
	return &enginepb.Assignment{
		Model: "m", Stages: []*enginepb.Stage{{}},
		Backend: &enginepb.Backend{Kind: enginepb.Backend_OPENAI, Url: url, ServedModel: `org/"M"`},
	}
}

// server answers some paths and says 404 to the others.
func server(t *testing.T, answers map[string]http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := answers[r.URL.Path]; f != nil {
			f(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func text(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestReadyByWhateverItAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		health http.HandlerFunc
		ready  bool
	}{
		"it has a path for it": {text(200, ""), true}, "it has none": {nil, true}, "it wants a key": {text(401, ""), true}, "it is loading": {text(503, ""), false},
	} {
		p, err := New(nil).Process(backend.Head, assignment(server(t, map[string]http.HandlerFunc{"/health": tt.health})+"/v1"))
		if err != nil || p.Cmd != nil {
			t.Fatal(err, p.Cmd)
		}
		if err := p.Ready(t.Context()); (err == nil) != tt.ready {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, _ := New(nil).Process(backend.Head, assignment("http://127.0.0.1:1"))
	if err := p.Ready(t.Context()); err == nil {
		t.Error("ready where nobody is")
	}
}

func TestProbeAsksForWhatTheModelIsFor(t *testing.T) {
	const tokens = "data: {\"choices\":[{}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":8}}\n\ndata: [DONE]\n\n"
	named := func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); !strings.Contains(string(b), `"model":"org/\"M\""`) || !strings.Contains(string(b), `"max_tokens":8`) {
			t.Errorf("asked %s", b)
		}
		_, _ = io.WriteString(w, tokens)
	}
	tests := []struct {
		name    string
		answers map[string]http.HandlerFunc
		want    string // of the error; empty: it is ready
	}{
		{"a chat", map[string]http.HandlerFunc{"/v1/chat/completions": named}, ""},
		{"a completion", map[string]http.HandlerFunc{"/v1/completions": named, "/v1/chat/completions": text(400, `{"error":{"message":"no template"}}`)}, ""},
		{"embeddings", map[string]http.HandlerFunc{"/v1/embeddings": text(200, "{}")}, ""},
		{"another model", map[string]http.HandlerFunc{"/v1/chat/completions": text(404, `{"error":{"message":"no model M"}}`)}, "no model M"},
		{"a key is wanted", map[string]http.HandlerFunc{"/v1/chat/completions": text(401, `{"error":"who are you"}`), "/v1/embeddings": text(200, "{}")}, "who are you"},
		{"no token", map[string]http.HandlerFunc{"/v1/chat/completions": text(200, "data: [DONE]\n\n")}, "no token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(nil).Probe(t.Context(), assignment(server(t, tt.answers)), 8)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
