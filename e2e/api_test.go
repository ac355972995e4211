package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// called is what the openai client brought back from one call.
type called struct {
	Text    string    `json:"text"`
	Usage   rig.Usage `json:"usage"`
	Object  string    `json:"object"`
	Model   string    `json:"model"`
	Chunks  int       `json:"chunks"`
	Lengths []int     `json:"lengths"`
	IDs     []string  `json:"ids"`
	One     string    `json:"one"`
	Code    string    `json:"code"`
}

// openai runs the client's script against the mesh.
func openai(t *testing.T, m *mesh) map[string]called {
	t.Helper()
	python := filepath.Join(rig.Cache(), "client", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("%v; run `make client` first", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), rig.StartLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, python, "testdata/client.py", m.URL(t, "/v1"), model)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("client.py: %v\n%s", err, stderr.String())
	}
	return rig.Decode[map[string]called](t, stdout.Bytes())
}

// TestAPIWithTheOpenAIClient calls every endpoint through Envoy.
func TestAPIWithTheOpenAIClient(t *testing.T) {
	m := shared(t)
	got := openai(t, m)
	question := []rig.Message{rig.User("What is the capital of France?")}
	prompt := "The capital of France is"
	t.Run("chat", func(t *testing.T) {
		checkText(t, got["chat"], "chat.completion", m.counted(t, "messages", question), 8)
	})
	t.Run("chat streamed", func(t *testing.T) {
		checkSame(t, got["chat"], got["chat_stream"])
		sameUsage(t, got["chat_stream"].Usage, m.counted(t, "messages", question), 8)
	})
	t.Run("completion", func(t *testing.T) {
		checkText(t, got["completion"], "text_completion", m.tokens(t, prompt), 8)
	})
	t.Run("completion streamed", func(t *testing.T) {
		checkSame(t, got["completion"], got["completion_stream"])
	})
	t.Run("responses", func(t *testing.T) {
		checkText(t, got["responses"], "response", m.counted(t, "messages", question), 8)
		if got["responses"].Text != got["chat"].Text {
			t.Errorf("responses said %q, chat %q", got["responses"].Text, got["chat"].Text)
		}
	})
	t.Run("responses streamed", func(t *testing.T) {
		checkSame(t, got["responses"], got["responses_stream"])
		sameUsage(t, got["responses_stream"].Usage, m.counted(t, "messages", question), 8)
	})
	t.Run("embeddings", func(t *testing.T) {
		e := got["embeddings"]
		if len(e.Lengths) != 2 || e.Lengths[0] != 576 || e.Lengths[1] != 576 {
			t.Errorf("lengths = %v, want two of 576", e.Lengths)
		}
		if want := m.tokens(t, "one") + m.tokens(t, "two"); e.Usage.Prompt != want {
			t.Errorf("prompt_tokens = %d, the backend counts %d", e.Usage.Prompt, want)
		}
	})
	t.Run("models", func(t *testing.T) {
		if ids := strings.Join(got["models"].IDs, " "); ids != model || got["models"].One != model {
			t.Errorf("models = %q, %q; want %q alone", ids, got["models"].One, model)
		}
	})
	t.Run("unknown model", func(t *testing.T) {
		if got["unknown_model"].Code != "model_not_found" {
			t.Errorf("got %+v, want code model_not_found", got["unknown_model"])
		}
	})
}

func checkText(t *testing.T, c called, object string, promptTokens, completionTokens int) {
	t.Helper()
	if c.Text == "" || c.Object != object || c.Model != model {
		t.Errorf("got %+v; want some text, object %q, model %q", c, object, model)
	}
	sameUsage(t, c.Usage, promptTokens, completionTokens)
}

func sameUsage(t *testing.T, u rig.Usage, promptTokens, atMost int) {
	t.Helper()
	if u.Prompt != promptTokens {
		t.Errorf("prompt tokens = %d, the backend counts %d", u.Prompt, promptTokens)
	}
	if u.Completion < 1 || u.Completion > atMost || u.Total != u.Prompt+u.Completion {
		t.Errorf("usage = %+v, want 1 to %d completion tokens and their sum", u, atMost)
	}
}

func checkSame(t *testing.T, whole, streamed called) {
	t.Helper()
	if whole.Text != streamed.Text || streamed.Chunks < 2 {
		t.Errorf("streamed %q in %d chunks, want %q in several", streamed.Text, streamed.Chunks, whole.Text)
	}
}

// backend returns the base address of the backend behind the whole replica.
func (m *mesh) backend(t *testing.T) string {
	t.Helper()
	return "http://" + m.Addr(t, "backend@"+m.Replicas(t).Whole, "http")
}

// counted returns how many prompt tokens the backend itself counts.
func (m *mesh) counted(t *testing.T, field string, value any) int {
	t.Helper()
	a := rig.MustPost(t, m.backend(t)+"/v1/chat/completions/input_tokens", map[string]any{"model": model, field: value})
	return rig.Decode[struct {
		Input int `json:"input_tokens"`
	}](t, a.Body).Input
}

// tokens returns how many tokens the backend itself counts in a text.
func (m *mesh) tokens(t *testing.T, text string) int {
	t.Helper()
	a := rig.MustPost(t, m.backend(t)+"/tokenize", map[string]any{"content": text, "add_special": true})
	return len(rig.Decode[struct {
		Tokens []int `json:"tokens"`
	}](t, a.Body).Tokens)
}

// curl runs curl as the README shows it.
func curl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rig.BackLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "curl", append([]string{"-sS", "--fail-with-body"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestAPIWithCurl calls every endpoint with the tool that everybody has.
func TestAPIWithCurl(t *testing.T) {
	m := shared(t)
	json := func(path, body string) string {
		return curl(t, m.URL(t, path), "-H", "content-type: application/json", "-d", body)
	}
	tests := []struct {
		name string
		got  func() string
		want string
	}{
		{"chat", func() string {
			return json("/v1/chat/completions", `{"model":"smollm2","max_tokens":4,"messages":[{"role":"user","content":"hi"}]}`)
		}, `"object":"chat.completion"`},
		{"chat streamed", func() string {
			return json("/v1/chat/completions", `{"model":"smollm2","max_tokens":4,"stream":true,"messages":[{"role":"user","content":"hi"}]}`)
		}, "data: [DONE]"},
		{"completion", func() string {
			return json("/v1/completions", `{"model":"smollm2","max_tokens":4,"prompt":"hi"}`)
		}, `"object":"text_completion"`},
		{"embeddings", func() string {
			return json("/v1/embeddings", `{"model":"smollm2","input":"hi"}`)
		}, `"embedding"`},
		{"responses", func() string {
			return json("/v1/responses", `{"model":"smollm2","max_output_tokens":4,"input":"hi"}`)
		}, `"object":"response"`},
		{"models", func() string { return curl(t, m.URL(t, "/v1/models")) }, `"id":"smollm2"`},
		{"one model", func() string { return curl(t, m.URL(t, "/v1/models/smollm2")) }, `"id":"smollm2"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.ReplaceAll(tt.got(), `": `, `":`)
			if !strings.Contains(got, tt.want) {
				t.Errorf("no %s in %s", tt.want, got)
			}
		})
	}
}

// TestUsageEqualsTheBackends compares the usage that a client sees with the
// backend's own counts, of the same answer and of the same question asked anew.
func TestUsageEqualsTheBackends(t *testing.T) {
	m := shared(t)
	for _, text := range []string{"hi", "Name three colours, please.", "Füße, 漢字 and 🙂"} {
		req := rig.Ask(8, text)
		a := rig.MustPost(t, m.URL(t, "/v1/chat/completions"), req)
		got := rig.Decode[rig.Completion](t, a.Body)
		if n := got.Timings.Cached + got.Timings.Prompt; n != got.Usage.Prompt || got.Timings.Predicted != got.Usage.Completion {
			t.Errorf("%q: usage %+v, the backend's timings %+v", text, got.Usage, got.Timings)
		}
		bare := rig.Decode[rig.Completion](t, rig.MustPost(t, m.backend(t)+"/v1/chat/completions", req).Body)
		if bare.Usage.Prompt != got.Usage.Prompt || bare.Usage.Completion != got.Usage.Completion {
			t.Errorf("%q: usage %+v, the bare backend's %+v", text, got.Usage, bare.Usage)
		}
		if h := a.Header.Get("x-millrace-usage"); !strings.Contains(h, usageHeader(got.Usage)) {
			t.Errorf("%q: x-millrace-usage: %q, want %q in it", text, h, usageHeader(got.Usage))
		}
	}
}

func usageHeader(u rig.Usage) string {
	return fmt.Sprintf("prompt=%d,cached=%d,completion=%d", u.Prompt, u.Details.Cached, u.Completion)
}
