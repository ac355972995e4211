package main

import (
	"sync"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/token"
)

// tokenizer counts the tokens of requests with a model's own tokenizer.
type tokenizer struct {
	model *token.Model
	chats sync.Pool // of *token.Chat
}

// loadTokenizer reads a tokenizer for fleet.
func loadTokenizer(path string) (pick.Counter, error) {
	m, err := token.Load(path)
	if err != nil {
		return nil, err
	}
	return &tokenizer{model: m, chats: sync.Pool{New: func() any { return new(token.Chat) }}}, nil
}

// Count returns the prompt tokens of a request as the engine will count them.
func (t *tokenizer) Count(r *openai.Request) (n int, exact bool) {
	switch r.API {
	case openai.Chat:
		return t.chat(r)
	case openai.Responses:
		c, err := token.ResponseChat(r.Raw)
		if err != nil {
			return r.Estimate(), false // the engine will refuse it
		}
		return t.model.CountChat(c)
	default:
		return t.prompts(r)
	}
}

// chat counts a conversation. The memory of its messages is used again.
func (t *tokenizer) chat(r *openai.Request) (int, bool) {
	c := t.chats.Get().(*token.Chat)
	*c = token.Chat{Messages: c.Messages[:0], Tools: r.Tools, Raw: r.Raw}
	for i := range r.Messages {
		c.Messages = append(c.Messages, token.Message(r.Messages[i]))
	}
	n, exact := t.model.CountChat(c)
	clear(c.Messages)
	c.Tools, c.Raw = nil, nil
	t.chats.Put(c)
	return n, exact
}

// prompts counts texts; what came as ids is counted already.
func (t *tokenizer) prompts(r *openai.Request) (n int, exact bool) {
	for _, p := range r.Prompts {
		n += p.IDs
		if p.Text != nil {
			n += t.model.CountPrompt(p.Text)
		}
	}
	return n, len(r.Prompts) > 0
}
