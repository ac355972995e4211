package token

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// modelFile is where `make setup` puts the model of the tests.
const modelFile = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"

// modelPath finds the model from the repository's root up.
func modelPath() string {
	cache := os.Getenv("MILLRACE_CACHE")
	if cache != "" {
		return filepath.Join(cache, "models", filepath.Base(modelFile))
	}
	return filepath.Join("..", "..", "..", modelFile)
}

var loadOnce = sync.OnceValues(func() (*Model, error) { return Load(modelPath()) })

// smol returns SmolLM2's counter.
func smol(t testing.TB) *Model {
	t.Helper()
	if _, err := os.Stat(modelPath()); err != nil {
		t.Fatalf("%v; run `make setup`, which fetches the model", err)
	}
	m, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sample is a line of testdata/counts.jsonl.
type sample struct {
	Name   string
	Path   string
	Body   json.RawMessage
	Tokens int // what the real llama.cpp server counted
}

func samples(t testing.TB) []sample {
	t.Helper()
	text, err := os.ReadFile("testdata/counts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var out []sample
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s sample
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(s.Path, "/v1/messages") { // extproc's own test counts these
			out = append(out, s)
		}
	}
	return out
}

// chatOf reads a chat completion's body as extproc does.
func chatOf(t testing.TB, raw []byte) *Chat {
	t.Helper()
	var body struct {
		Messages []json.RawMessage
		Tools    json.RawMessage
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Fatal(err)
	}
	c := &Chat{Tools: body.Tools, Raw: raw}
	for _, m := range body.Messages {
		var msg struct {
			Role    string
			Content any
		}
		if err := json.Unmarshal(m, &msg); err != nil {
			t.Fatal(err)
		}
		out := Message{Role: msg.Role, Raw: m}
		if s, ok := msg.Content.(string); ok {
			out.Content = append([]byte{}, s...)
		}
		c.Messages = append(c.Messages, out)
	}
	return c
}

// prompts counts a prompt or input: a string or a list of them.
func prompts(t *testing.T, m *Model, raw json.RawMessage) int {
	t.Helper()
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return m.CountPrompt([]byte(one))
	}
	var many []string
	if err := json.Unmarshal(raw, &many); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range many {
		n += m.CountPrompt([]byte(s))
	}
	return n
}

// count answers a sample as extproc would.
func count(t *testing.T, m *Model, s sample) (n int, exact bool) {
	t.Helper()
	var body struct {
		Content, Prompt, Input json.RawMessage
	}
	if err := json.Unmarshal(s.Body, &body); err != nil {
		t.Fatal(err)
	}
	switch s.Path {
	case "/tokenize":
		var text string
		if err := json.Unmarshal(body.Content, &text); err != nil {
			t.Fatal(err)
		}
		return m.Count([]byte(text)), true
	case "/v1/completions":
		return prompts(t, m, body.Prompt), true
	case "/v1/embeddings":
		return prompts(t, m, body.Input), true
	case "/v1/responses":
		c, err := ResponseChat(s.Body)
		if err != nil {
			t.Fatal(err)
		}
		return m.CountChat(c)
	}
	return m.CountChat(chatOf(t, s.Body))
}

func TestCountsEqualTheServers(t *testing.T) {
	m := smol(t)
	all := samples(t)
	if len(all) < 400 {
		t.Fatalf("%d samples; something is lost", len(all))
	}
	for _, s := range all {
		t.Run(s.Name, func(t *testing.T) {
			for range 2 { // the second time from the caches
				if n, exact := count(t, m, s); n != s.Tokens || !exact {
					t.Errorf("%d tokens, exact %v; the server counts %d", n, exact, s.Tokens)
				}
			}
		})
	}
}

func TestSmolLMHasAForm(t *testing.T) {
	f := smol(t).form.Load()
	if f == nil || f.strict || !f.tools || len(f.trips) > 0 {
		t.Fatalf("form %+v; want one without conditions", f)
	}
}
