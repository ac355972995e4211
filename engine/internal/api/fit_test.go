package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

func TestPromptsThatCannotFit(t *testing.T) {
	const chat = "/v1/chat/completions"
	text := func(n int) string { return strings.Repeat("a", n) }
	message := func(n int) string { return `{"role":"user","content":"` + text(n) + `"}` }
	ids := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("7,", n), ",") + "]" }
	tests := []struct {
		name, path, fields string
		counted            int // by extproc; 0: nobody has
		fits               bool
	}{
		{"as extproc counts, all of it", chat, `"messages":[` + message(9) + `]`, 1000, false},
		{"as extproc counts, with room for one token", chat, `"messages":[` + message(9) + `]`, 999, true},
		{"more messages than tokens", chat, `"messages":[` + strings.Repeat(message(0)+",", 1000) + message(0) + `]`, 0, false},
		{"more messages than tokens, whatever a header says", chat, `"messages":[` + strings.Repeat(message(0)+",", 1000) + message(0) + `]`, 5, false},
		{"a text of four times as much", chat, `"messages":[` + message(16_100) + `]`, 0, false},
		{"a text that may fit", chat, `"messages":[` + message(15_900) + `]`, 0, true},
		{"a text in parts", chat, `"messages":[{"role":"user","content":[{"type":"text","text":"` + text(16_100) + `"}]}]`, 0, false},
		{"an image is no text", chat, `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + text(30_000) + `"}}]}]`, 0, true},
		{"ids", "/v1/completions", `"prompt":` + ids(1001), 0, false},
		{"several prompts of ids", "/v1/completions", `"prompt":[` + ids(600) + `,` + ids(600) + `]`, 1200, true},
		{"one of several prompts", "/v1/completions", `"prompt":["a","` + text(16_100) + `"]`, 0, false},
		{"responses", "/v1/responses", `"input":"` + text(16_100) + `"`, 0, false},
		{"Anthropic's messages", "/v1/messages", `"max_tokens":5,"messages":[` + message(9) + `]`, 1000, false},
		{"embeddings", "/v1/embeddings", `"input":"` + text(16_100) + `"`, 0, false},
		{"it is to be cut", chat, `"truncate_prompt_tokens":9,"messages":[` + message(9) + `]`, 3000, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reached := false
			g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				reached = true
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, `{"choices":[]}`)
			})
			g.serving.Load().Assignment.Backend.MaxBodyBytes = 1 << 20
			req := g.request(t.Context(), tt.path, `{"model":"smollm2",`+tt.fields+`}`)
			if tt.counted > 0 {
				req.Header.Set(wire.PromptTokensHeader, fmt.Sprint(tt.counted))
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if reached != tt.fits {
				t.Errorf("%d %s; the backend was reached: %v", resp.StatusCode, body, reached)
			}
			if tt.fits {
				return
			}
			var e struct {
				Type  string
				Error struct{ Type, Code, Param string }
			}
			anthropic := strings.HasPrefix(tt.path, "/v1/messages")
			if json.Unmarshal(body, &e) != nil || resp.StatusCode != 400 || (e.Type == "error") != anthropic ||
				!anthropic && (e.Error.Code != "context_length_exceeded" || e.Error.Param == "") {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		})
	}
}

// asked is what of a body an operation can't do without.
func asked(a apis.API) string {
	switch a {
	case apis.Chat, apis.Messages, apis.CountTokens:
		return `"max_tokens":900,"messages":[{"role":"user","content":"a"}]`
	case apis.Responses, apis.InputTokens:
		return `"max_output_tokens":900,"input":"a"`
	case apis.Completions:
		return `"max_tokens":900,"prompt":["a"]`
	}
	return fmt.Sprintf(`%q:["a"]`, cmp.Or(a.Row().Input, "x"))
}

// TestClientsThatLeave has a client leave while the backend works on its request, whatever
// is asked of which backend: the backend's connection ends.
func TestClientsThatLeave(t *testing.T) {
	for kind, name := range enginepb.Backend_Kind_name {
		if enginepb.Backend_Kind(kind) == enginepb.Backend_KIND_UNSPECIFIED {
			continue
		}
		for a := apis.Chat; a < apis.Len; a++ {
			for _, stream := range []bool{false, true} {
				row := a.Row()
				if stream && (!row.Generates || row.Reader == apis.Form) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%v", name, row.Name, stream), func(t *testing.T) {
					begun, left := make(chan struct{}), make(chan struct{})
					g := newRigOf(t, enginepb.Backend_Kind(kind), func(_ http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						close(begun)
						<-r.Context().Done()
						close(left)
					})
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					req := g.request(ctx, row.Path, fmt.Sprintf(`{"model":"smollm2","stream":%v,%s}`, stream, asked(a)))
					req.Header.Set("Content-Type", row.Reader.ContentType())
					go func() {
						if resp, err := http.DefaultClient.Do(req); err == nil {
							resp.Body.Close()
						}
					}()
					select {
					case <-begun:
					case <-time.After(10 * time.Second):
						t.Fatal("the backend gets no request")
					}
					leave()
					select {
					case <-left:
					case <-time.After(10 * time.Second):
						t.Error("the backend still works")
					}
				})
			}
		}
	}
}
