package token

import (
	"bytes"
	"encoding/json"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Message is one message of a conversation.
type Message struct {
	Role string
	// Content is the text, unescaped. It is nil where the body has none, null,
	// or a list of parts: then Raw is read.
	Content []byte
	// Raw is the message's own JSON. It is searched for parts, tool calls, names
	// and reasoning, and only if the template does; nil means there are none.
	Raw []byte
}

// Chat is a request for a chat completion.
type Chat struct {
	Messages []Message
	// Tools is the request's list of tools as JSON, nil if it has none.
	Tools []byte
	// Raw is the whole request body. It is searched for the rare fields that
	// change the prompt, such as add_generation_prompt. Nil means there are none.
	Raw []byte
	// Doubt is set by CountChat and AppendChat: why what they return is an estimate.
	Doubt Doubt
}

// fields are those of a request that change its prompt.
type fields struct {
	Generate *bool           `json:"add_generation_prompt"`
	Continue json.RawMessage `json:"continue_final_message"`
	Kwargs   json.RawMessage `json:"chat_template_kwargs"`
	Effort   string          `json:"reasoning_effort"`
	Format   json.RawMessage `json:"response_format"`
	Schema   json.RawMessage `json:"json_schema"`
	// Documents are for the template, Template is one of the request's own.
	Documents json.RawMessage `json:"documents"`
	Template  json.RawMessage `json:"chat_template"`
}

// mostKwargs bounds a template's own fields, in bytes: decoded they take thirty times as
// much. A conversation with more is estimated.
const mostKwargs = 64 << 10

// ending is how a prompt ends.
type ending int8

const (
	ask  ending = iota // with the generation prompt
	shut               // without
	open               // amid the last message, which the model continues
)

// plan is a request made ready for counting.
type plan struct {
	messages  []Message // without the one that is continued
	last      []byte    // the text to continue, if end is open
	end       ending
	extra     *jinja.Dict
	doubt     Doubt
	slow      bool          // whether the form won't do
	continues bool          // whether the last of messages is continued, as transformers does it
	cut       bool          // whether words of it are estimated
	at        time.Time     // by the engine's clock; zero: now
	reads     jinja.Reading // of the clock, found by rendering
}

// CountChat returns the prompt tokens of a chat completion as the backend's own
// usage will say, and whether that is certain. It isn't where tools or tool
// calls are rendered (the order of keys is lost), where messages hold more than
// text, and where the backend will refuse the request: then n is an estimate.
func (m *Model) CountChat(c *Chat) (n int, exact bool) {
	if m.template == nil {
		c.Doubt = ByTemplate
		return m.estimate(c), false
	}
	if m.template.channels {
		return m.countHarmony(c)
	}
	p, err := m.plan(c)
	if err != nil {
		c.Doubt = doubtOf(err)
		return m.estimate(c), false
	}
	if !p.slow {
		if n, ok := m.countNative(&p); ok {
			c.Doubt = p.doubt
			return n, p.doubt == Certain
		}
	}
	slow := p // it escapes: only here
	prompt, err := m.render(c, &slow)
	if err != nil {
		c.Doubt = doubtOf(err)
		return m.estimate(c), false
	}
	if m.bpe.cuts(prompt) {
		slow.doubts(ByWords)
	}
	n = m.tokens(prompt, true)
	if m.clocked(c, p, &slow, func(other []byte) bool { return m.tokens(other, true) == n }) {
		slow.doubts(ByClock)
	}
	c.Doubt = slow.doubt
	return n + m.addedTo, slow.doubt == Certain
}

// perMessage is about how many tokens a template spends on a message.
const perMessage = 5

func (m *Model) estimate(c *Chat) int {
	n := m.addedTo + perMessage + m.tokens(c.Tools, false)
	for i := range c.Messages {
		text := c.Messages[i].Content
		if text == nil {
			text = c.Messages[i].Raw
		}
		n += perMessage + m.tokens(text, false)
	}
	return n
}

func (m *Model) plan(c *Chat) (p plan, err error) {
	p = plan{messages: c.Messages}
	for i := range c.Messages {
		text := c.Messages[i].Content
		if text == nil {
			text = c.Messages[i].Raw
		}
		p.cut = p.cut || m.bpe.cuts(text)
		if m.template.llama && m.template.typed && m.template.role(c.Messages[i].Role) == "system" {
			p.doubts(ByFields) // llama.cpp gives such templates lists, and loses some system messages (Gemma 3)
		}
	}
	if p.cut {
		p.doubts(ByWords)
	}
	if m.template.harmony {
		p.doubts(ByHarmony) // the tokenizer has no tokens for that form
	}
	if !m.template.llama && m.template.vllm && m.template.lists == absent {
		p.doubts(ByEngine) // versions differ in whether they give this template texts or lists
	}
	f, err := m.fields(c.Raw)
	if err != nil {
		return p, err
	}
	if len(c.Tools) > 0 && m.template.usesTools {
		p.slow = true
		if m.template.habits.form != yes || bytes.Contains(c.Raw, []byte(`"tool_choice"`)) && bytes.Contains(c.Raw, []byte(`"none"`)) {
			p.doubts(ByTools) // a server may be set to give no tools to requests that want none called
		}
	}
	if m.template.own && (f.Format != nil || f.Schema != nil) {
		p.doubts(ByFields) // some templates' handlers give the model the schema
	}
	if given(f.Template) {
		p.doubts(ByFields) // refused, followed or passed over, as the engine was started
	}
	if err := m.planDocuments(&p, &f); err != nil {
		return p, err
	}
	if err := m.planExtra(&p, &f); err != nil {
		return p, err
	}
	if f.Generate != nil && !*f.Generate {
		p.end = shut
	}
	return p, m.planEnd(&p, &f)
}

// fields reads what of a body changes its prompt. Bodies with none of that,
// nearly all, are only looked over for their keys.
func (m *Model) fields(raw []byte) (fields, error) {
	if !hasRare(raw) {
		return fields{}, nil
	}
	var f fields
	err := json.Unmarshal(raw, &f)
	return f, err
}

// planEnd decides whether the last message is continued.
func (m *Model) planEnd(p *plan, f *fields) error {
	last := len(p.messages) - 1
	wanted := string(bytes.TrimSpace(f.Continue))
	explicit := wanted != "" && wanted != "null" && wanted != "false"
	if last < 0 {
		return nil
	}
	if !m.template.llama {
		return m.template.planLast(p, explicit)
	}
	if !explicit && p.messages[last].Role != "assistant" {
		return nil
	}
	if !explicit && last > 0 && p.messages[last-1].Role == "assistant" || explicit && p.end != shut {
		return errRefused
	}
	return m.planOpen(p, wanted)
}

// planLast decides what becomes of a last message of the assistant's where transformers
// renders: explicit is whether the request wants it continued.
func (t *template) planLast(p *plan, explicit bool) error {
	last := &p.messages[len(p.messages)-1]
	switch {
	case explicit && !t.vllm:
		p.slow = true
		p.doubts(ByFields)
	case explicit && p.end != shut:
		return errRefused
	case explicit:
		p.slow, p.continues = true, true
	case p.end == shut && t.known && !t.vllm:
		p.doubts(ByFields) // SGLang has begun to follow add_generation_prompt at some time
	case last.Role != "assistant" || t.habits.last == lastStays:
	case t.habits.last == lastAsked:
		return p.ask(last)
	default:
		p.doubts(ByEngine)
	}
	return nil
}

// ask makes the last message the user's, as SGLang does if its content is a text.
func (p *plan) ask(last *Message) error {
	text := last.Content
	if text == nil {
		b, err := last.body()
		if err != nil {
			return err
		}
		if parts, list, err := b.parts(); list || err != nil {
			return err
		} else if len(parts) > 0 {
			text = []byte(parts[0].Text)
		}
	}
	p.messages = append(append([]Message{}, p.messages[:len(p.messages)-1]...), Message{Role: "user", Content: append([]byte{}, text...)})
	return nil
}

// planOpen splits off the message that is continued. Its text is put after the
// generation prompt as it is; one without anything does not even open a turn.
func (m *Model) planOpen(p *plan, wanted string) error {
	last := len(p.messages) - 1
	b, err := p.messages[last].body()
	if err != nil {
		return err
	}
	parts, list, err := b.parts()
	if err != nil {
		return err
	}
	if len(b.ToolCalls) > 0 && p.messages[last].Role == "assistant" {
		return errRefused
	}
	p.messages, p.end = p.messages[:last], open
	p.last = []byte(join(parts, "\n\n"))
	if wanted == `"reasoning_content"` {
		p.last = nil
		p.doubts(ByFields)
	}
	bare := (b.Reasoning == nil || *b.Reasoning == "") && b.Name == "" && b.ToolCallID == ""
	if len(p.last) == 0 && !(list && len(parts) > 0) && bare {
		p.end = shut
	}
	if m.template.own || m.template.thinks() {
		p.doubts(ByFields) // what a template does about thinking there varies
	}
	return nil
}

// thinks says whether the template has to do with reasoning.
func (t *template) thinks() bool {
	for _, s := range []string{"think", "reasoning", "THINK", "<|channel|>"} {
		if t.mentions(s) {
			return true
		}
	}
	return false
}
