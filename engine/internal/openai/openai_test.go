package openai

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
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

// TestWhatTheServerLacks is asked for as a chat; what it has, it answers itself.
func TestWhatTheServerLacks(t *testing.T) {
	has := text(400, `{"error":{"message":"model is missing"}}`)
	for name, tt := range map[string]struct {
		answers                     map[string]http.HandlerFunc
		overResponses, overMessages bool
	}{
		"neither":  {map[string]http.HandlerFunc{}, true, true},
		"both":     {map[string]http.HandlerFunc{"/v1/responses": has, "/v1/messages": has}, false, false},
		"messages": {map[string]http.HandlerFunc{"/v1/responses": text(405, ""), "/v1/messages": text(422, `{"detail":[]}`)}, true, false},
		"a key":    {map[string]http.HandlerFunc{"/v1/responses": text(401, ""), "/v1/messages": text(401, "")}, false, false},
	} {
		k, a := New(nil), assignment(server(t, tt.answers))
		p, err := k.Process(backend.Head, a)
		if err == nil {
			err = p.Ready(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []struct {
			api  apis.API
			body string
			over bool
		}{
			{apis.Responses, `{"model":"m","input":"hi","stream":true}`, tt.overResponses},
			{apis.Messages, `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":3}`, tt.overMessages},
			{apis.Chat, `{"model":"m","messages":[{"role":"user","content":"hi"}]}`, false},
		} {
			req := backend.Request{API: r.api, Body: []byte(r.body), Stream: r.api == apis.Responses, Completion: r.api == apis.Chat}
			if err := json.Unmarshal(req.Body, &req.Fields); err != nil {
				t.Fatal(err)
			}
			w := k.Prepare(a, req)
			if got := w.Path == "/v1/chat/completions"; got != r.over || w.Refused != nil || !strings.Contains(string(w.Body), `"model":"org/\"M\""`) || got && !strings.Contains(string(w.Body), `"messages":[`) {
				t.Errorf("%s, %v: %q gets %s, %v", name, r.api, w.Path, w.Body, w.Refused)
			}
		}
	}
}

// TestWhatIsNotKnownIsAskedAgain has a server that is overloaded when it is asked what it has.
func TestWhatIsNotKnownIsAskedAgain(t *testing.T) {
	for _, status := range []int{408, 425, 429, 500, 503, 504} {
		var asked, messages int
		k, a := New(nil), assignment(server(t, map[string]http.HandlerFunc{
			"/v1/responses": func(w http.ResponseWriter, _ *http.Request) {
				if asked++; asked == 1 {
					w.WriteHeader(status)
					return
				}
				w.WriteHeader(http.StatusNotFound)
			},
			"/v1/messages": func(w http.ResponseWriter, _ *http.Request) {
				messages++
				w.WriteHeader(http.StatusNotImplemented)
			},
		}))
		p, err := k.Process(backend.Head, a)
		if err != nil {
			t.Fatal(err)
		}
		for i, over := range []bool{false, true, true} {
			if err := p.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			for api, want := range map[apis.API]bool{apis.Responses: over, apis.Messages: true} {
				if got := (*k.lacks.Load())[api]; got != want {
					t.Errorf("%d, check %d: %v lacked: %v, want %v", status, i, api, got, want)
				}
			}
		}
		if asked != 2 || messages != 1 {
			t.Errorf("%d: asked %d and %d times, want 2 and 1", status, asked, messages)
		}
	}
}
