package token_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prompt"
	"millrace.dev/millrace/extproc/internal/token"
	"millrace.dev/millrace/internal/apis"
)

// asked is a line of testdata/vllm/prompts.jsonl, which `make test-vllm` holds to a real vLLM.
type asked struct {
	Name, Path, Template string
	Body                 json.RawMessage
	// Count is the tokens of the prompt by vLLM's usage, Tokens those of each prompt.
	Count  int
	Tokens [][]uint32
}

// counters loads the tokenizer of the samples with each template: it puts a token before
// texts, as that of the real server does.
func counters(t *testing.T, names ...string) map[string]pick.Counter {
	t.Helper()
	all := map[string]pick.Counter{}
	for _, name := range names {
		folder := t.TempDir()
		path := token.AsHF(t, folder, true)
		text, err := os.ReadFile(filepath.Join("testdata", "vllm", name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "chat_template.jinja"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := prompt.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = c.(pick.Tailor).For([]pick.Engine{{Kind: "vllm", Version: "0.32.0"}})
	}
	all[""] = all["served"]
	return all
}

// TestPromptsAreVLLMs goes through what a real vLLM has made of prompts: what is not an
// estimate is the same.
func TestPromptsAreVLLMs(t *testing.T) {
	f, err := os.Open("testdata/vllm/prompts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	load := counters(t, "served", "plain", "parts", "strict")
	agree, identified, estimates := 0, 0, map[string]int{}
	var r openai.Request
	for lines.Scan() {
		var s asked
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		if err := r.Parse(apis.Of("POST", s.Path), s.Body); err != nil {
			t.Errorf("%s: %v", s.Name, err)
			continue
		}
		c := load[s.Template]
		n, doubt := c.Count(&r)
		ids, exact := c.(pick.Identifier).IDs(nil, &r)
		switch {
		case doubt != pick.Certain:
			estimates[doubt]++
			t.Logf("%s: %d tokens, vLLM %d: estimate by %s", s.Name, n, s.Count, doubt)
		case n != s.Count:
			t.Errorf("%s: %d tokens, vLLM has %d: %s", s.Name, n, s.Count, s.Body)
		default:
			agree++
		}
		if !exact || len(ids) == 0 {
			continue
		}
		if len(s.Tokens) == 1 && !slices.Equal(ids, s.Tokens[0]) {
			t.Errorf("%s: tokens %v, vLLM has %v: %s", s.Name, ids, s.Tokens[0], s.Body)
		}
		identified++
	}
	t.Logf("figure: %d agree, tokens known of %d, estimates by reason %v", agree, identified, estimates)
	if agree < 300 {
		t.Errorf("%d prompts are counted exactly", agree)
	}
}
