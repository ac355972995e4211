package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// asHF writes SmolLM2's vocabulary as the tokenizer.json it came from.
func asHF(t testing.TB, folder string, pairs bool) string {
	t.Helper()
	smol(t) // says what is missing
	file, err := os.Open(modelPath())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	meta, err := readGGUF(file)
	if err != nil {
		t.Fatal(err)
	}
	vocab, added, merges := map[string]int{}, []any{}, []any{}
	for i := range meta.tokens.len() {
		vocab[string(meta.tokens.name(i))] = i
		if meta.types[i] == kindControl {
			added = append(added, map[string]any{"id": i, "content": string(meta.tokens.name(i)), "special": true})
		}
	}
	for _, m := range meta.merges {
		if pairs {
			merges = append(merges, strings.SplitN(string(m), " ", 2))
		} else {
			merges = append(merges, string(m))
		}
	}
	write(t, folder, "tokenizer.json", map[string]any{
		"added_tokens": added,
		"pre_tokenizer": map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Digits", "individual_digits": true},
			map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
		}},
		"model": map[string]any{"type": "BPE", "vocab": vocab, "merges": merges},
	})
	write(t, folder, "tokenizer_config.json", map[string]any{
		"chat_template": meta.template, "bos_token": map[string]any{"content": "<|im_start|>"}, "eos_token": "<|im_end|>",
	})
	return filepath.Join(folder, "tokenizer.json")
}

func write(t testing.TB, folder, name string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTokenizerJSONCountsTheSame(t *testing.T) {
	for _, pairs := range []bool{false, true} {
		m, err := Load(asHF(t, t.TempDir(), pairs))
		if err != nil {
			t.Fatal(err)
		}
		if m, err = m.For(Engine{Kind: "vllm"}); err != nil { // others join the texts of a list otherwise
			t.Fatal(err)
		}
		for _, s := range samples(t) {
			switch s.Path {
			case "/tokenize", "/v1/completions", "/v1/embeddings":
				if got, _ := count(t, m, s); got != s.Tokens {
					t.Errorf("%s: %d tokens, want %d", s.Name, got, s.Tokens)
				}
			case "/v1/chat/completions":
				c := chatOf(t, s.Body)
				if last := len(c.Messages) - 1; last < 0 || c.Messages[last].Role == "assistant" || bytes.Contains(s.Body, []byte("developer")) ||
					s.Name == "parts" || hasRare(s.Body) {
					continue // the backend behind such a file does otherwise
				}
				if got, exact := m.CountChat(c); got != s.Tokens || !exact {
					t.Errorf("%s: %d tokens, exact %v; want %d", s.Name, got, exact, s.Tokens)
				}
			}
		}
	}
}

// smallHF is a tokenizer.json with every byte and what else is given.
func smallHF(change func(map[string]any)) map[string]any {
	vocab := map[string]int{"he": 256}
	for i, e := range encoded {
		vocab[string(e)] = i
	}
	file := map[string]any{
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false},
		"model":         map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{"h e"}},
	}
	change(file)
	return file
}

func TestTokenizerJSONOptions(t *testing.T) {
	split := func(regex string) map[string]any {
		return map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Split", "pattern": map[string]any{"Regex": regex}, "behavior": "Isolated"},
			map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
		}}
	}
	tests := []struct {
		name    string
		change  func(map[string]any)
		text    string
		want    int
		wantErr string
	}{
		{"plain", func(map[string]any) {}, "he he", 3, ""},
		{"normalized", func(f map[string]any) { f["normalizer"] = map[string]any{"type": "NFC"} }, "e\u0301", 2, ""},
		{"not normalized", func(map[string]any) {}, "e\u0301", 3, ""},
		{"template around", func(f map[string]any) {
			f["post_processor"] = map[string]any{"type": "Sequence", "processors": []any{
				map[string]any{"type": "ByteLevel"},
				map[string]any{"type": "TemplateProcessing", "single": []any{
					map[string]any{"SpecialToken": map[string]any{"id": "<s>"}}, map[string]any{"Sequence": map[string]any{"id": "A"}},
				}},
			}}
		}, "he", 2, ""},
		{"greedy added token", func(f map[string]any) {
			f["added_tokens"] = []any{map[string]any{"content": "<x>", "lstrip": true, "rstrip": true}}
		}, "he  <x>\n\n he", 3, ""},
		{"known pattern", func(f map[string]any) {
			f["pre_tokenizer"] = split(endings + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`)
		}, "he's", 3, ""},
		{"unknown pattern", func(f map[string]any) { f["pre_tokenizer"] = split(`\w+`) }, "", 0, `pattern "\\w+"`},
		{"unknown normalizer", func(f map[string]any) { f["normalizer"] = map[string]any{"type": "Lowercase"} }, "", 0, `normalizer "Lowercase"`},
		{"no pre-tokenizer", func(f map[string]any) { delete(f, "pre_tokenizer") }, "", 0, "not split byte-level"},
		{"unknown model", func(f map[string]any) { f["model"] = map[string]any{"type": "Unigram"} }, "", 0, `model "Unigram"`},
		{"single words", func(f map[string]any) {
			f["added_tokens"] = []any{map[string]any{"content": "x", "single_word": true}}
		}, "", 0, "single word"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			folder := t.TempDir()
			write(t, folder, "tokenizer.json", smallHF(tt.change))
			m, err := Load(filepath.Join(folder, "tokenizer.json"))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) || !errors.Is(err, ErrUnknown) {
					t.Fatalf("error %v; want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := m.CountPrompt([]byte(tt.text)); got != tt.want {
				t.Errorf("%d tokens, want %d", got, tt.want)
			}
		})
	}
}

func TestTemplateFileWins(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "tokenizer.json", smallHF(func(map[string]any) {}))
	write(t, folder, "tokenizer_config.json", map[string]any{"chat_template": []any{map[string]any{"name": "default", "template": "{{ messages[0].content }}"}}})
	one := &Chat{Messages: []Message{{Role: "user", Content: []byte("he")}}}
	m, err := Load(filepath.Join(folder, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := m.CountChat(one); got != 1 {
		t.Errorf("with the named template %d tokens, want 1", got)
	}
	if err := os.WriteFile(filepath.Join(folder, "chat_template.jinja"), []byte("{{ messages[0].content }}he"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err = Load(filepath.Join(folder, "tokenizer.json")); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.CountChat(one); got != 2 {
		t.Errorf("with the file %d tokens, want 2", got)
	}
}

func FuzzTokenizerJSON(f *testing.F) {
	text, _ := json.Marshal(smallHF(func(map[string]any) {}))
	f.Add(text)
	f.Add([]byte(`{"model":{"vocab":{"a":0},"merges":[["a","b"],["ab","a"]]},"pre_tokenizer":{"type":"ByteLevel"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := readHF(text)
		if err != nil {
			return
		}
		if b, err := newBPE(s.vocabulary, s.splitter); err == nil {
			m := &Model{bpe: b, specials: newSpecials(s.specials), nfc: s.nfc}
			m.CountPrompt(text)
		}
	})
}
