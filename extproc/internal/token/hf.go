package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"millrace.dev/millrace/internal/regular"
)

// maxFile is the largest tokenizer.json read, in bytes. Known ones have up to
// 35 MB.
const maxFile = 128 << 20

// hfFile is a tokenizer.json.
type hfFile struct {
	Added      []hfAdded       `json:"added_tokens"`
	Normalizer *hfStep         `json:"normalizer"`
	Pre        *hfStep         `json:"pre_tokenizer"`
	Post       *hfStep         `json:"post_processor"`
	Model      json.RawMessage `json:"model"`
}

type hfAdded struct {
	ID         uint32 `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Special    bool   `json:"special"`
}

// hfStep is a normalizer, pre-tokenizer or post-processor, or a sequence of
// them.
type hfStep struct {
	Type           string    `json:"type"`
	Normalizers    []hfStep  `json:"normalizers"`
	Pretokenizers  []hfStep  `json:"pretokenizers"`
	Processors     []hfStep  `json:"processors"`
	Pattern        hfPattern `json:"pattern"`
	Behavior       string    `json:"behavior"`
	Invert         bool      `json:"invert"`
	AddPrefixSpace bool      `json:"add_prefix_space"`
	UseRegex       *bool     `json:"use_regex"`
	Individual     bool      `json:"individual_digits"`
	Single         []struct {
		SpecialToken *struct {
			ID string `json:"id"`
		} `json:"SpecialToken"`
	} `json:"single"`
	Specials map[string]struct {
		IDs []uint32 `json:"ids"`
	} `json:"special_tokens"`
}

type hfPattern struct {
	Regex string `json:"Regex"`
}

type hfModel struct {
	Type         string          `json:"type"`
	Vocab        map[string]int  `json:"vocab"`
	Merges       json.RawMessage `json:"merges"`
	IgnoreMerges bool            `json:"ignore_merges"`
	Unknown      *string         `json:"unk_token"`
	Prefix       string          `json:"continuing_subword_prefix"`
	Suffix       string          `json:"end_of_word_suffix"`
	ByteFallback bool            `json:"byte_fallback"`
}

// hfPatterns are the regular expressions that have a splitter here, as
// tokenizer.json files spell them.
var hfPatterns = map[string]func(*classes) splitter{
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`:        func(c *classes) splitter { return cl100k{c, 3, letter, true} },
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`:             func(c *classes) splitter { return cl100k{c, 1, letter, true} },
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`: func(c *classes) splitter { return cl100k{c, 1, letter | mark, true} },
	o200kWord + `+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|` + o200kCaps + `*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}` + o200kRest:          func(c *classes) splitter { return o200k{c, 3, true, true} },
	o200kWord + `+|` + o200kCaps + `*|\p{N}` + o200kRest:                                                                         func(c *classes) splitter { return o200k{c, 1, false, true} },
}

// Pieces of the o200k pattern.
const (
	o200kWord = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	o200kCaps = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	o200kRest = `| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

func loadHF(r io.Reader, folder string) (*Model, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	s, err := readHF(text)
	if err != nil {
		return nil, err
	}
	if err := s.readConfig(folder); err != nil {
		return nil, err
	}
	return s.model()
}

// readHF understands a tokenizer.json.
func readHF(text []byte) (*source, error) {
	var f hfFile
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	s := &source{}
	var err error
	if s.nfc, err = f.Normalizer.normalizes(); err != nil {
		return nil, err
	}
	if s.splitter, err = f.Pre.splitter(); err != nil {
		return nil, err
	}
	if s.specials, err = f.specials(); err != nil {
		return nil, err
	}
	f.Post.adds(s)
	s.vocabulary, err = readHFModel(f.Model)
	return s, err
}

func (f *hfFile) specials() (out []special, err error) {
	for _, a := range f.Added {
		if a.SingleWord {
			return nil, fmt.Errorf("%w: added token %q must be a single word", ErrUnknown, a.Content)
		}
		out = append(out, special{text: []byte(a.Content), id: a.ID, control: a.Special, left: a.LStrip, right: a.RStrip})
	}
	return out, nil
}

// flat lists the steps of a sequence.
func (s *hfStep) flat() []hfStep {
	if s == nil {
		return nil
	}
	if s.Type == "Sequence" {
		return slices.Concat(s.Normalizers, s.Pretokenizers, s.Processors)
	}
	return []hfStep{*s}
}

// normalizes says whether text is made NFC. Others are refused.
func (s *hfStep) normalizes() (nfc bool, err error) {
	for _, step := range s.flat() {
		if step.Type != "NFC" {
			return false, fmt.Errorf("%w: normalizer %q", ErrUnknown, step.Type)
		}
		nfc = true
	}
	return nfc, nil
}

func (s *hfStep) splitter() (splitter, error) {
	steps := s.flat()
	last := len(steps) - 1
	if last < 0 || steps[last].Type != "ByteLevel" || steps[last].AddPrefixSpace {
		return nil, fmt.Errorf("%w: its words are not split byte-level", ErrUnknown)
	}
	regex := steps[last].UseRegex == nil || *steps[last].UseRegex
	switch {
	case last == 0 && regex:
		return gpt2{classes: hfClasses()}, nil
	case last == 1 && regex && steps[0].Type == "Digits" && steps[0].Individual:
		return gpt2{classes: hfClasses(), digits: true}, nil
	case last == 1 && !regex && steps[0].Type == "Split":
		return steps[0].pattern()
	}
	return nil, fmt.Errorf("%w: this sequence of pre-tokenizers", ErrUnknown)
}

func (s *hfStep) pattern() (splitter, error) {
	build, ok := hfPatterns[s.Pattern.Regex]
	if !ok || s.Invert || s.Behavior != "Isolated" && s.Behavior != "Removed" {
		return nil, fmt.Errorf("%w: pattern %q", ErrUnknown, s.Pattern.Regex)
	}
	return build(hfClasses()), nil
}

// adds records which tokens are put before and after each prompt.
func (s *hfStep) adds(to *source) {
	for _, step := range s.flat() {
		if step.Type != "TemplateProcessing" {
			continue
		}
		around := &to.begin
		for _, part := range step.Single {
			if part.SpecialToken == nil {
				around = &to.end // the prompt itself
				continue
			}
			ids := step.Specials[part.SpecialToken.ID].IDs
			if len(ids) == 0 {
				ids = []uint32{0} // the file does not say which
			}
			*around = append(*around, ids...)
		}
	}
}

func readHFModel(raw []byte) (*vocabulary, error) {
	var m hfModel
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if m.Type != "BPE" && m.Type != "" || m.Prefix != "" || m.Suffix != "" || m.ByteFallback {
		return nil, fmt.Errorf("%w: model %q, or options of it", ErrUnknown, m.Type)
	}
	if len(m.Vocab) == 0 || len(m.Vocab) > maxVocab {
		return nil, fmt.Errorf("model: vocabulary of %d tokens; must be 1 to %d", len(m.Vocab), maxVocab)
	}
	tokens := newNames(len(m.Vocab))
	ids := make([]uint32, 0, len(m.Vocab))
	for t, id := range m.Vocab {
		tokens.add([]byte(t))
		ids = append(ids, uint32(id))
	}
	merges, err := readHFMerges(m.Merges)
	return &vocabulary{tokens: tokens, ids: ids, merges: merges, wholeWords: m.IgnoreMerges}, err
}

// readHFMerges reads both ways of writing merge rules: "a b" and ["a", "b"].
func readHFMerges(raw []byte) ([][]byte, error) {
	var lines []string
	if json.Unmarshal(raw, &lines) == nil {
		out := make([][]byte, len(lines))
		for i, l := range lines {
			out[i] = []byte(l)
		}
		return out, nil
	}
	var pairs [][2]string
	if err := json.Unmarshal(raw, &pairs); err != nil {
		return nil, fmt.Errorf("model: merges: %w", err)
	}
	out := make([][]byte, len(pairs))
	for i, p := range pairs {
		out[i] = []byte(p[0] + " " + p[1])
	}
	return out, nil
}

// hfConfig is a tokenizer_config.json.
type hfConfig struct {
	Template json.RawMessage `json:"chat_template"`
	BOS      json.RawMessage `json:"bos_token"`
	EOS      json.RawMessage `json:"eos_token"`
}

// readConfig reads what stands beside a tokenizer.json: a template file wins
// over the one in the configuration.
func (s *source) readConfig(folder string) error {
	text, err := regular.Read(filepath.Join(folder, "tokenizer_config.json"), maxBeside)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var c hfConfig
	if len(text) > 0 {
		if err := json.Unmarshal(text, &c); err != nil {
			return fmt.Errorf("tokenizer_config.json: %w", err)
		}
	}
	s.bos, s.eos = tokenText(c.BOS), tokenText(c.EOS)
	s.template = templateText(c.Template)
	jinja, err := regular.Read(filepath.Join(folder, "chat_template.jinja"), maxBeside)
	if err == nil {
		s.template = string(jinja)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// tokenText reads a token that is written as text or as an object.
func tokenText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var object struct {
		Content string `json:"content"`
	}
	_ = json.Unmarshal(raw, &object) // absent or null: no token
	return object.Content
}

// templateText reads a template, or the one named default of several.
func templateText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var named []struct{ Name, Template string }
	_ = json.Unmarshal(raw, &named) // absent or null: no template
	for _, n := range named {
		if n.Name == "default" {
			return n.Template
		}
	}
	return ""
}

// maxBeside is the largest file beside a tokenizer.json, in bytes.
const maxBeside = 8 << 20
