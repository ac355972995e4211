//go:build templates

package token

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var entries = regexp.MustCompile(`\bmodel: "([^"]*)",\s*gguf:\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')`)

// modelTemplates are the templates that models were published with, by model, of
// the file that `make test-templates` fetches.
func modelTemplates(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(os.Getenv("MILLRACE_CACHE"), "templates", "package", "src", "chat-template-automap.ts"))
	if err != nil {
		t.Fatalf("%v; run `make test-templates`", err)
	}
	out := map[string]string{}
	for _, m := range entries.FindAllStringSubmatch(string(text), -1) {
		literal := m[2]
		if literal[0] == '\'' {
			literal = `"` + strings.ReplaceAll(strings.ReplaceAll(literal[1:len(literal)-1], `\'`, `'`), `"`, `\"`) + `"`
		}
		var source string
		if err := json.Unmarshal([]byte(literal), &source); err != nil {
			t.Fatalf("%s: %v", m[1], err)
		}
		out[m[1]] = source
	}
	if len(out) < 90 {
		t.Fatalf("%d templates", len(out))
	}
	return out
}

// TestTemplatesOfModelsHaveTrueForms counts conversations by the forms of published
// templates, and by rendering them.
func TestTemplatesOfModelsHaveTrueForms(t *testing.T) {
	forms, native, all := 0, 0, 0
	for name, text := range modelTemplates(t) {
		t.Run(name, func(t *testing.T) {
			for _, llama := range []bool{true, false} {
				m := smol(t)
				of := &Model{bpe: m.bpe, specials: m.specials, memo: newMemo()}
				of.setTemplate(&source{template: text, bos: "<|endoftext|>", eos: "<|im_end|>", llama: llama})
				if of.broken != nil {
					if !strings.Contains(of.broken.Error(), "trims its messages") {
						t.Errorf("%s: %v", name, of.broken)
					}
					continue
				}
				if of.form.Load() != nil {
					forms++
				}
				rng := rand.New(rand.NewPCG(5, 5))
				for range 60 {
					all++
					if checkForm(t, of, randomChat(rng)) {
						native++
					}
				}
			}
		})
	}
	t.Logf("%d templates have a form; %d of %d conversations went by them", forms, native, all)
}
