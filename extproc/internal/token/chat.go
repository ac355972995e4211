package token

import (
	"bytes"
	"encoding/json"

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
	messages []Message // without the one that is continued
	last     []byte    // the text to continue, if end is open
	end      ending
	extra    *jinja.Dict
	doubt    Doubt
	slow     bool // whether the form won't do
	cut      bool // whether words of it are estimated
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
	c.Doubt = slow.doubt
	return m.tokens(prompt, true) + m.addedTo, slow.doubt == Certain
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
	f, err := m.fields(c.Raw)
	if err != nil {
		return p, err
	}
	if len(c.Tools) > 0 && m.template.usesTools {
		p.slow = true
		p.doubts(ByTools)
	}
	if m.template.own && (f.Format != nil || f.Schema != nil) {
		p.doubts(ByFields) // some templates' handlers give the model the schema
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

// planExtra finds the variables that the request itself gives the template.
func (m *Model) planExtra(p *plan, f *fields) error {
	if len(f.Kwargs) == 0 && f.Effort == "" {
		return nil
	}
	all := jinja.NewDict(2)
	if len(f.Kwargs) > mostKwargs {
		return errHeavy
	}
	if raw := bytes.TrimSpace(f.Kwargs); len(raw) > 0 && string(raw) != "null" {
		given, err := jinja.FromJSON(raw)
		if err != nil {
			return err
		}
		var ok bool
		if all, ok = given.(*jinja.Dict); !ok {
			return errRefused
		}
	}
	if f.Effort == "none" {
		all.Set("enable_thinking", false)
	} else if f.Effort != "" {
		all.Set("reasoning_effort", f.Effort)
	}
	extra := jinja.NewDict(all.Len())
	for name, v := range all.All() {
		if m.template.mentions(name) {
			extra.Set(name, v)
		}
	}
	if extra.Len() > 0 {
		p.extra, p.slow = extra, true
	}
	return nil
}

// planEnd decides whether the last message is continued.
func (m *Model) planEnd(p *plan, f *fields) error {
	last := len(p.messages) - 1
	wanted := string(bytes.TrimSpace(f.Continue))
	explicit := wanted != "" && wanted != "null" && wanted != "false"
	if !m.template.llama {
		if explicit {
			p.slow = true
			p.doubts(ByFields)
		}
		return nil
	}
	if last < 0 {
		return nil
	}
	if !explicit && p.messages[last].Role != "assistant" {
		return nil
	}
	if !explicit && last > 0 && p.messages[last-1].Role == "assistant" || explicit && p.end != shut {
		return errRefused
	}
	return m.planOpen(p, wanted)
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
	bare := b.Reasoning == "" && b.Name == "" && b.ToolCallID == ""
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
