// Package prompt counts the tokens of requests' prompts, and says which they are, with a
// model's own tokenizer: it is what openai decodes, as token takes it.
//
// fleet loads a Counter for each model, stream asks it through pick. Its one rule: what
// it calls exact is what the engine will count.
package prompt

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"sync"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/token"
	"millrace.dev/millrace/internal/apis"
)

// tokenizer counts the tokens of requests with a model's own tokenizer.
type tokenizer struct {
	model *token.Model
	chats *sync.Pool // of *token.Chat
	// others are the same model as other engines render it that may serve the request:
	// what they don't agree on is an estimate.
	others []*token.Model
	fault  error  // why an engine's settings can't be followed; nil: they can
	sorts  []sort // the engines that it is for, one of each rules
	made   *sorts // nil in those that For returns
}

// sorts are a model's tokenizers by the rules of the engines that they are for: engines with
// the same rules share one, and a request is counted once for all of them.
type sorts struct {
	mu  sync.Mutex
	all map[token.Rules]*token.Model
}

// Load reads a model's tokenizer from a file or folder.
func Load(path string) (pick.Counter, error) {
	m, err := token.Load(path)
	if err != nil {
		return nil, err
	}
	return &tokenizer{model: m, chats: &sync.Pool{New: func() any { return new(token.Chat) }}, made: &sorts{all: map[token.Rules]*token.Model{}}}, nil
}

// For returns the tokenizer for engines. It may take long: the fleet calls it, off the path
// of requests.
func (t *tokenizer) For(engines []pick.Engine) pick.Counter {
	t.made.mu.Lock()
	defer t.made.mu.Unlock()
	of := &tokenizer{model: t.model, chats: t.chats}
	var rules []token.Rules
	for _, e := range engines {
		r := t.model.Rules(token.Engine(e))
		if slices.Contains(rules, r) {
			continue
		}
		rules = append(rules, r)
		m, err := t.made.of(r, t.model, e)
		if err != nil {
			of.fault = err
		}
		of.sorts = append(of.sorts, sort{e, m})
		if len(rules) == 1 {
			of.model = m
		} else if !slices.Contains(of.others, m) {
			of.others = append(of.others, m)
		}
	}
	maps.DeleteFunc(t.made.all, func(r token.Rules, _ *token.Model) bool {
		return len(t.made.all) > mostSorts && !slices.Contains(rules, r)
	})
	return of
}

// of returns the tokenizer of an engine's rules; if they can't be followed, that of none.
func (s *sorts) of(r token.Rules, base *token.Model, e pick.Engine) (*token.Model, error) {
	if m := s.all[r]; m != nil {
		return m, nil
	}
	m, err := base.For(token.Engine(e))
	if err != nil {
		return base, err
	}
	s.all[r] = m
	return m, nil
}

// mostSorts bounds how many are kept that no engine asks for now.
const mostSorts = 32

// Count returns the prompt tokens of a request as the engine will count them.
// Media are estimated.
func (t *tokenizer) Count(r *openai.Request) (n int, doubt string) {
	n, doubt = t.count(r)
	switch {
	case doubt != pick.Certain:
	case t.changed(r, n):
		doubt = string(token.ByFields)
	case t.fault != nil || !t.agreed(r, n):
		doubt = string(token.ByEngine)
	}
	return n, doubt
}

// agreed is whether all engines that may serve a request count the same.
func (t *tokenizer) agreed(r *openai.Request, n int) bool {
	for _, m := range t.others {
		one := tokenizer{model: m, chats: t.chats}
		if other, doubt := one.count(r); other != n || doubt != pick.Certain || one.changed(r, n) {
			return false
		}
	}
	return true
}

func (t *tokenizer) count(r *openai.Request) (n int, doubt string) {
	switch {
	case r.API.Row().Counted != apis.Conversation:
		return t.prompts(r)
	case r.API.Row().Items:
		c, err := token.ResponseChat(r.Raw)
		if err != nil {
			return r.Estimate(), string(token.ByRefusal)
		}
		n, _ = t.model.CountChat(c)
		doubt = string(c.Doubt)
		if harmony, _ := t.model.Harmony(); harmony && doubt == pick.Certain {
			doubt = string(token.ByHarmony) // Responses' items are put into that form by rules of their own
		}
		if doubt == pick.Certain && t.model.AddsToChats() {
			doubt = string(token.ByFields)
		}
		if r.Continues() != nil && doubt == pick.Certain {
			doubt = "previous" // what it continues is not in it
		}
	default:
		n, doubt = t.chat(r)
		n = t.around(r, n, false)
	}
	for i := range r.Media {
		n += t.media(&r.Media[i])
	}
	if len(r.Media) > 0 {
		doubt = string(token.ByMedia)
	}
	return n, doubt
}

// IDs appends the tokens of a request's prompt, none if they are not known: where
// there are media, or several prompts.
func (t *tokenizer) IDs(dst []uint32, r *openai.Request) (ids []uint32, exact bool) {
	start := len(dst)
	ids, exact = t.identify(dst, r)
	if t.fault != nil || t.changed(r, len(ids)-start) {
		return ids, false
	}
	for _, m := range t.others {
		one := tokenizer{model: m, chats: t.chats}
		other, sure := one.identify(nil, r)
		exact = exact && sure && slices.Equal(other, ids[start:])
	}
	return ids, exact
}

func (t *tokenizer) identify(dst []uint32, r *openai.Request) (ids []uint32, exact bool) {
	ids, exact = t.tokens(dst, r)
	if exact {
		ids, exact = t.putAround(ids, len(dst), r)
	}
	return ids, exact
}

// tokens is identify without what the request itself has put around its prompt, or cut of it.
func (t *tokenizer) tokens(dst []uint32, r *openai.Request) (ids []uint32, exact bool) {
	switch {
	case r.API.Row().Counted != apis.Conversation:
		if len(r.Prompts) == 1 && r.Prompts[0].List != nil {
			return numbers(dst, r.Prompts[0].Numbers())
		}
		if len(r.Prompts) != 1 || r.Prompts[0].Text == nil || t.model.Cuts(r.Prompts[0].Text) {
			return dst, false
		}
		return t.model.AppendPrompt(dst, r.Prompts[0].Text), true
	case r.API.Row().Items:
		c, err := token.ResponseChat(r.Raw)
		if err != nil {
			return dst, false
		}
		ids, exact = t.model.AppendChat(dst, c)
		harmony, _ := t.model.Harmony()
		return ids, exact && !harmony && !t.model.AddsToChats()
	default:
		c := t.chats.Get().(*token.Chat)
		defer t.chats.Put(c)
		known := fill(c, r)
		ids, exact = t.model.AppendChat(dst, c)
		empty(c)
		return ids, exact && known
	}
}

// numbers appends ids that the client sent; none if they are not all ids.
func numbers(dst []uint32, list []byte) ([]uint32, bool) {
	start := len(dst)
	for number := range bytes.SplitSeq(list, []byte(",")) {
		id, err := strconv.ParseUint(string(number), 10, 32)
		if err != nil {
			return dst[:start], false
		}
		dst = append(dst, uint32(id))
	}
	return dst, true
}

// media estimates what is not text.
func (t *tokenizer) media(m *openai.Media) int {
	if m.Kind == openai.Image {
		if n, ok := t.model.Image(m.Width, m.Height); ok {
			return n
		}
	}
	return m.Tokens()
}

// chat counts a conversation. The memory of its messages is used again.
func (t *tokenizer) chat(r *openai.Request) (n int, doubt string) {
	c := t.chats.Get().(*token.Chat)
	defer t.chats.Put(c)
	known := fill(c, r)
	n, _ = t.model.CountChat(c)
	doubt = string(c.Doubt)
	empty(c)
	if !known && doubt == pick.Certain {
		doubt = string(token.ByFields)
	}
	return n, doubt
}

// fill makes a chat of a request. It returns false if that can't be done for all of it.
func fill(c *token.Chat, r *openai.Request) bool {
	*c = token.Chat{Messages: c.Messages[:0], Tools: r.Tools, Raw: r.Raw}
	if r.API.Row().Dialect == apis.Anthropic {
		return anthropic(c, r)
	}
	for i := range r.Messages {
		c.Messages = append(c.Messages, message(&r.Messages[i]))
	}
	return true
}

// empty lets go of the request.
func empty(c *token.Chat) {
	clear(c.Messages)
	c.Tools, c.Raw = nil, nil
}

// message is a message as its template may see it: one with media by its text
// alone.
func message(m *openai.Message) token.Message {
	if m.Media {
		return token.Message{Role: m.Role, Content: m.Content}
	}
	return token.Message{Role: m.Role, Content: m.Content, Raw: m.Raw}
}

// anthropic makes a chat of a request of Anthropic's API. It returns false if that
// can't be done for all of it.
func anthropic(c *token.Chat, r *openai.Request) bool {
	known := true
	for i := range r.Messages {
		m := &r.Messages[i]
		if !m.Blocks {
			one := message(m)
			if i == 0 && m.Role == "system" {
				one.Raw = nil // it is no message of its own there
			}
			c.Messages = append(c.Messages, one)
			continue
		}
		all, err := token.AnthropicMessages(m.Raw)
		known = known && err == nil
		c.Messages = append(c.Messages, all...)
	}
	c.Tools, c.Raw = nil, nil
	if r.Tools != nil {
		c.Tools = token.AnthropicTools(r.Tools)
	}
	if r.TemplateArgs != nil { // of the rare fields the only one that the template sees
		c.Raw = append(append([]byte(`{"chat_template_kwargs":`), r.TemplateArgs...), '}')
	}
	return known
}

// prompts counts texts; what came as ids is counted already. Texts that the engine puts
// together by rules of its own, such as a query and a document, are an estimate.
func (t *tokenizer) prompts(r *openai.Request) (n int, doubt string) {
	if len(r.Prompts) == 0 || r.API.Row().Texts != nil {
		doubt = "texts"
	}
	for _, p := range r.Prompts {
		if p.Text == nil {
			n += t.around(r, p.IDs, false)
		} else {
			n += t.around(r, t.model.CountPrompt(p.Text), true)
			if doubt == pick.Certain && t.model.Cuts(p.Text) {
				doubt = string(token.ByWords)
			}
		}
	}
	return n, doubt
}
