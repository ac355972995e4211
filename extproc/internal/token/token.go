// Package token counts the tokens of prompts exactly as a model's own tokenizer
// and chat template make them. extproc calls it once per request.
//
// Its one rule: a count is what the backend's usage will say, or it is marked
// as an estimate, with why. Tokenizers that it doesn't have it refuses at Load;
// a template that package jinja doesn't render makes estimates.
//
// # What to call for which path
//
//   - /v1/chat/completions: CountChat.
//   - /v1/completions: CountPrompt for each prompt string. Prompts given as lists
//     of numbers are tokens already: count the numbers.
//   - /v1/embeddings: CountPrompt for each input string, likewise. The backend
//     reports the sum of all inputs.
//   - /v1/responses: ResponseChat turns the body into a conversation for CountChat.
//   - /v1/messages: AnthropicMessages and AnthropicTools turn what is not as in chat
//     completions into what CountChat takes.
//
// Images are in none of these counts: Image estimates them.
package token

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/text/unicode/norm"

	"millrace.dev/millrace/internal/regular"
)

// ErrUnknown is in the error of a tokenizer that this package doesn't have. The
// caller estimates then.
var ErrUnknown = errors.New("unknown tokenizer")

// Model counts tokens for one model. Any number of goroutines may use it.
type Model struct {
	bpe      *bpe
	specials *specials
	template *template                // nil if the model's can't be rendered here
	broken   error                    // why template is nil
	form     atomic.Pointer[compiled] // nil if the template has none
	memo     *memo
	ids      *idMemo
	added    int        // tokens that the backend puts around a completion's prompt
	addedTo  int        // the same for a chat
	bos, eos []uint32   // those of added that come before and after
	nfc      bool       // whether text is normalized to NFC first
	images   *imageRule // nil: not known
}

// Load reads a tokenizer and its chat template: a GGUF file, or a tokenizer.json
// with tokenizer_config.json or chat_template.jinja beside it. Of a GGUF file
// only the head is read. The template's form is worked out here, off the path
// of requests.
func Load(path string) (*Model, error) {
	m, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %s: %w", path, err)
	}
	return m, nil
}

func load(path string) (*Model, error) {
	file, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if strings.EqualFold(filepath.Ext(path), ".json") {
		m, err := loadHF(file, filepath.Dir(path))
		if err == nil {
			m.images = imagesOf(filepath.Dir(path))
		}
		return m, err
	}
	return loadGGUF(file)
}

func loadGGUF(r io.Reader) (*Model, error) {
	meta, err := readGGUF(r)
	if err != nil {
		return nil, err
	}
	return meta.build()
}

// source is what is needed to build a Model.
type source struct {
	vocabulary *vocabulary
	splitter   splitter
	specials   []special
	template   string // Jinja; "" = ChatML
	bos, eos   string
	begin, end []uint32 // what the backend puts around each prompt
	llama      bool     // whether llama.cpp serves the model
	nfc        bool
}

func (s *source) model() (*Model, error) {
	if len(s.specials) > maxSpecials {
		return nil, fmt.Errorf("%d special tokens; at most %d", len(s.specials), maxSpecials)
	}
	b, err := newBPE(s.vocabulary, s.splitter)
	if err != nil {
		return nil, err
	}
	m := &Model{bpe: b, specials: newSpecials(s.specials), memo: newMemo(), ids: new(idMemo), nfc: s.nfc}
	m.bos, m.eos = s.begin, s.end
	m.added = len(m.bos) + len(m.eos)
	if s.llama {
		m.addedTo = m.added // a transformers template writes these tokens itself
	}
	m.setTemplate(s)
	return m, nil
}

func (m *Model) setTemplate(s *source) {
	t, err := newTemplate(s.template, s.bos, s.eos, s.llama)
	if err != nil {
		m.broken = err
		return
	}
	t.addBOS, t.addEOS = s.llama && len(s.begin) > 0, s.llama && len(s.end) > 0
	t.learn()
	m.template = t
	m.form.Store(formOf(t, m, time.Now()))
}

// TemplateError returns why conversations are only estimated: the chat template
// uses what cannot be rendered here. It is nil if they are counted.
func (m *Model) TemplateError() error { return m.broken }

// AddsToChats reports whether some backends put tokens of their own around a rendered
// conversation where others don't: vLLM does in Responses, not in chats.
func (m *Model) AddsToChats() bool { return m.added > 0 && m.addedTo == 0 }

// FollowsAround reports whether the engine is one that does with add_special_tokens and
// truncate_prompt_tokens what vLLM does.
func (m *Model) FollowsAround() bool {
	return m.template != nil && !m.template.llama && m.template.vllm && !m.template.harmony // which is never cut
}

// FollowsSides reports whether it is one that does the same with truncation_side.
func (m *Model) FollowsSides() bool { return m.FollowsAround() && m.template.habits.form == yes }

// Around returns the tokens that the backend puts before and after a text. They must not be
// changed.
func (m *Model) Around() (before, after []uint32) { return m.bos, m.eos }

// Count returns the tokens of plain text. Special tokens in it are text.
func (m *Model) Count(text []byte) int { return m.tokens(text, false) }

// CountPrompt returns the tokens of a completion's prompt or of an embedding's
// input: special tokens count as such, and the tokens that the backend adds
// (BOS, EOS) are in.
func (m *Model) CountPrompt(prompt []byte) int { return m.tokens(prompt, true) + m.added }

// Cuts reports whether words of a text are so long that its count is an estimate.
func (m *Model) Cuts(text []byte) bool { return m.bpe.cuts(text) }

// tokens counts text. With control, control tokens are found in it.
func (m *Model) tokens(text []byte, control bool) (n int) {
	text = m.normalize(text)
	at := 0
	for _, h := range m.specials.find(text, control) {
		s := &m.specials.all[h.token]
		n += m.bpe.count(s.trimLeft(text[min(at, h.start):h.start])) + 1
		at = h.end + s.eats(text[h.end:])
	}
	return n + m.bpe.count(text[min(at, len(text)):])
}

func (m *Model) normalize(text []byte) []byte {
	text = clean(text)
	if m.nfc && !norm.NFC.IsNormal(text) {
		return norm.NFC.Bytes(text)
	}
	return text
}
