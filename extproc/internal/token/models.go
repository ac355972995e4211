package token

import (
	"fmt"
	"slices"
)

// A family is a pre-tokenizer under the names that GGUF files have for it, and
// what llama.cpp assumes of such models.
type family struct {
	names      []string
	make       func(*classes) splitter
	wholeWords bool
	addBOS     bool // unless the file says otherwise
}

func cl(digits int, letters class) func(*classes) splitter {
	return func(c *classes) splitter { return cl100k{classes: c, digits: digits, letter: letters} }
}

func gpt(digits bool) func(*classes) splitter {
	return func(c *classes) splitter { return gpt2{classes: c, digits: digits} }
}

func o200(digits int, endings bool) func(*classes) splitter {
	return func(c *classes) splitter { return o200k{classes: c, digits: digits, endings: endings} }
}

var families = []family{
	{names: []string{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}, make: gpt(true)},
	{names: []string{"gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"}, make: gpt(false)},
	{names: []string{"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}, make: cl(3, letter), wholeWords: true, addBOS: true},
	{names: []string{"dbrx", "smaug-bpe", "chatglm-bpe"}, make: cl(3, letter)},
	{names: []string{"glm4", "glm5"}, make: cl(3, letter), wholeWords: true},
	{names: []string{"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"}, make: cl(1, letter)},
	{names: []string{"qwen35"}, make: cl(1, letter|mark)},
	{names: []string{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"}, make: o200(3, true)},
	{names: []string{"tekken"}, make: o200(1, false), wholeWords: true, addBOS: true},
}

// GGUF's kinds of tokens.
const (
	kindUnknown     = 2
	kindControl     = 3
	kindUserDefined = 4
)

// build makes a model of what a GGUF file says.
func (m *metadata) build() (*Model, error) {
	if m.model != "gpt2" {
		return nil, fmt.Errorf("%w: kind %q of a GGUF file; only gpt2 (byte-level BPE) is counted exactly", ErrUnknown, m.model)
	}
	i := slices.IndexFunc(families, func(f family) bool { return slices.Contains(f.names, m.pre) })
	if i < 0 {
		return nil, fmt.Errorf("%w: pre-tokenizer %q", ErrUnknown, m.pre)
	}
	if m.tokens == nil || len(m.merges) == 0 {
		return nil, fmt.Errorf("%w: no vocabulary or no merge rules", errHeader)
	}
	f := &families[i]
	s := &source{
		vocabulary: &vocabulary{tokens: m.tokens, merges: m.merges, wholeWords: f.wholeWords},
		splitter:   f.make(llamaClasses()),
		specials:   m.specials(),
		template:   m.template,
		bos:        m.text(m.bos), eos: m.text(m.eos),
		llama: true,
	}
	if m.addBOS.is(f.addBOS) {
		s.begin = []uint32{uint32(max(0, m.bos))}
	}
	if m.addEOS.is(false) {
		s.end = []uint32{uint32(max(0, m.eos))}
	}
	return s.model()
}

func (m *metadata) text(id int) string {
	if id < 0 || id >= m.tokens.len() {
		return ""
	}
	return string(m.tokens.name(id))
}

func (m *metadata) specials() (out []special) {
	for i, kind := range m.types {
		if i >= m.tokens.len() {
			break
		}
		if kind == kindUnknown || kind == kindControl || kind == kindUserDefined {
			out = append(out, special{text: slices.Clone(m.tokens.name(i)), id: uint32(i), control: kind != kindUserDefined})
		}
	}
	return out
}
