package token

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ggufWriter writes headers for tests.
type ggufWriter struct {
	entries int
	body    bytes.Buffer
}

func (w *ggufWriter) number(v any) { _ = binary.Write(&w.body, binary.LittleEndian, v) }

func (w *ggufWriter) text(s string) {
	w.number(uint64(len(s)))
	w.body.WriteString(s)
}

func (w *ggufWriter) key(name string, kind uint32) {
	w.entries++
	w.text(name)
	w.number(kind)
}

func (w *ggufWriter) string(name, value string) {
	w.key(name, ggufString)
	w.text(value)
}

func (w *ggufWriter) strings(name string, values []string) {
	w.key(name, ggufArray)
	w.number(uint32(ggufString))
	w.number(uint64(len(values)))
	for _, v := range values {
		w.text(v)
	}
}

func (w *ggufWriter) integers(name string, values []int32) {
	w.key(name, ggufArray)
	w.number(uint32(5))
	w.number(uint64(len(values)))
	w.number(values)
}

func (w *ggufWriter) flag(name string, value bool) {
	w.key(name, ggufBool)
	w.number(value)
}

func (w *ggufWriter) file() []byte {
	var head bytes.Buffer
	head.WriteString("GGUF")
	for _, v := range []any{uint32(3), uint64(0), uint64(w.entries)} {
		_ = binary.Write(&head, binary.LittleEndian, v)
	}
	return append(head.Bytes(), w.body.Bytes()...)
}

// tiny is a small model: every byte, two merge rules, three special tokens.
func tiny(pre, template string) *ggufWriter {
	tokens := []string{"<|bos|>", "<|eos|>", "<user>"}
	kinds := []int32{kindControl, kindControl, kindUserDefined}
	for _, e := range encoded {
		tokens, kinds = append(tokens, string(e)), append(kinds, 1)
	}
	w := &ggufWriter{}
	w.string("general.name", "tiny")
	w.string("tokenizer.ggml.model", "gpt2")
	w.string("tokenizer.ggml.pre", pre)
	w.strings("tokenizer.ggml.tokens", append(tokens, "he", "hel"))
	w.integers("tokenizer.ggml.token_type", append(kinds, 1, 1))
	w.strings("tokenizer.ggml.merges", []string{"h e", "he l"})
	w.integers("something.else", []int32{1, 2, 3})
	w.key("tokenizer.ggml.bos_token_id", 4)
	w.number(uint32(0))
	w.key("tokenizer.ggml.eos_token_id", 4)
	w.number(uint32(1))
	if template != "" {
		w.string("tokenizer.chat_template", template)
	}
	return w
}

func build(t testing.TB, w *ggufWriter) *Model {
	t.Helper()
	m, err := loadGGUF(bytes.NewReader(w.file()))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSpecialTokensInText(t *testing.T) {
	w := tiny("gpt-2", "")
	w.flag("tokenizer.ggml.add_bos_token", true)
	w.flag("tokenizer.ggml.add_eos_token", true)
	m := build(t, w)
	tests := []struct {
		name         string
		text         string
		count, input int
	}{
		{"merged", "hello", 3, 5},
		{"empty", "", 0, 2},
		{"control tokens only count in prompts", "he<|bos|>he", 9, 5},
		{"user-defined tokens always count", "he<user>he", 3, 5},
		{"alone", "<user>", 1, 3},
		{"bytes that are not UTF-8 become U+FFFD", "he\xffhe", 5, 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := m.Count([]byte(tt.text)); got != tt.count {
				t.Errorf("Count = %d, want %d", got, tt.count)
			}
			if got := m.CountPrompt([]byte(tt.text)); got != tt.input {
				t.Errorf("CountPrompt = %d, want %d", got, tt.input)
			}
		})
	}
}

func TestFamiliesAssumeABOS(t *testing.T) {
	if got := build(t, tiny("llama-bpe", "")).CountPrompt([]byte("he")); got != 2 {
		t.Errorf("llama-bpe: %d tokens, want a BOS and one", got)
	}
	w := tiny("llama-bpe", "")
	w.flag("tokenizer.ggml.add_bos_token", false)
	if got := build(t, w).CountPrompt([]byte("he")); got != 1 {
		t.Errorf("llama-bpe without BOS: %d tokens, want one", got)
	}
}

func TestOverlappingSpecialTokens(t *testing.T) {
	var all []special
	for _, s := range []string{"<a>", "a><b", "<b>", "<<a>", "xx"} {
		all = append(all, special{text: []byte(s)})
	}
	s := newSpecials(all)
	tests := []struct{ text, want string }{
		{"..<a>..", "<a>"},
		{"<a><b>", "a><b"},
		{"<<a>>", "<<a>"},
		{"xxx", "xx"},
		{"xxxx", "xx xx"},
		{"<b><a>", "<b> <a>"},
		{"<a> <b>", "<a> <b>"},
	}
	for _, tt := range tests {
		var got []string
		for _, h := range s.find([]byte(tt.text), true) {
			got = append(got, tt.text[h.start:h.end])
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q: found %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	edit := func(change func(*ggufWriter)) []byte {
		w := tiny("gpt-2", "")
		change(w)
		return w.file()
	}
	whole := tiny("gpt-2", "").file()
	tests := []struct {
		name    string
		file    []byte
		want    string
		unknown bool
	}{
		{"empty", nil, "ends too early", false},
		{"not GGUF", []byte("PK\x03\x04 and so on"), "no GGUF magic", false},
		{"old version", append([]byte("GGUF\x01\x00\x00\x00"), whole[8:]...), "version 1; must be 2 or 3", false},
		{"cut", whole[:len(whole)/2], "ends too early", false},
		{"too many entries", append(append([]byte{}, whole[:16]...), bytes.Repeat([]byte{0xff}, 8)...), "metadata entries; at most", false},
		{"no vocabulary", (&ggufWriter{}).file(), `kind "" of a GGUF file`, true},
		{"SentencePiece", edit(func(w *ggufWriter) { w.string("tokenizer.ggml.model", "llama") }), `kind "llama" of a GGUF file`, true},
		{"unknown words", edit(func(w *ggufWriter) { w.string("tokenizer.ggml.pre", "made-up") }), `pre-tokenizer "made-up"`, true},
		{"wrong type", edit(func(w *ggufWriter) { w.flag("tokenizer.ggml.pre", true) }), "value of type 7; must be 8", false},
		{"unknown type", edit(func(w *ggufWriter) { w.key("x", 99) }), "value of unknown type 99", false},
		{"long string", edit(func(w *ggufWriter) {
			w.key("tokenizer.chat_template", ggufString)
			w.number(uint64(1 << 60))
		}), "string of 1152921504606846976 bytes; at most", false},
		{"long array", edit(func(w *ggufWriter) {
			w.key("tokenizer.ggml.merges", ggufArray)
			w.number(uint32(ggufString))
			w.number(uint64(1 << 50))
		}), "array of 1125899906842624 elements; at most", false},
		{"deep arrays", edit(func(w *ggufWriter) {
			w.key("x", ggufArray)
			for range 50 {
				w.number(uint32(ggufArray))
				w.number(uint64(1))
			}
		}), "value of unknown type 9", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := loadGGUF(bytes.NewReader(tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrUnknown) != tt.unknown {
				t.Errorf("error %v; want %q, ErrUnknown %v", err, tt.want, tt.unknown)
			}
		})
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.gguf")
	if _, err := Load(path); err == nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Load of no file: %v", err)
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add(tiny("gpt-2", "{{ messages[0].content }}").file())
	f.Add(tiny("llama-bpe", "").file()[:300])
	f.Fuzz(func(t *testing.T, file []byte) {
		m, err := readGGUF(bytes.NewReader(file))
		if err != nil {
			return
		}
		if m.tokens == nil {
			return
		}
		found := newSpecials(m.specials())
		b, err := newBPE(&vocabulary{tokens: m.tokens, merges: m.merges, wholeWords: true}, gpt2{classes: llamaClasses()})
		if err == nil {
			model := &Model{bpe: b, specials: found}
			model.Count(file)
			model.CountPrompt(file)
		}
	})
}
