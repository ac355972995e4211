package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/harmony"
	"millrace.dev/millrace/extproc/internal/jinja"
)

// inHarmony returns the prompt of a conversation in Harmony's form on a day, and why it may be
// another.
func (m *Model) inHarmony(c *Chat, day string) (pieces []harmony.Piece, doubt Doubt, err error) {
	p := plan{messages: c.Messages}
	if heavy(c, &p) {
		return nil, Certain, errHeavy
	}
	if m.template.habits.harmony != yes {
		p.doubts(ByHarmony)
	}
	f, err := m.fields(c.Raw)
	if err != nil {
		return nil, Certain, err
	}
	wanted := string(bytes.TrimSpace(f.Continue))
	if wanted == "true" && (f.Generate == nil || *f.Generate) {
		return nil, Certain, errRefused
	}
	of := harmony.Conversation{Effort: f.Effort, Day: day}
	if of.Tools, err = m.tools(c, &p); err != nil {
		return nil, Certain, err
	}
	for i := range c.Messages {
		turn, err := m.turn(&c.Messages[i], &p)
		if err != nil {
			return nil, Certain, err
		}
		of.Turns = append(of.Turns, turn)
	}
	switch pieces, err = of.Render(); {
	case errors.Is(err, harmony.ErrLarge):
		return nil, Certain, errHeavy
	case err != nil:
		return nil, Certain, errRefused
	}
	for i := range pieces {
		if !pieces[i].Control && m.bpe.cuts([]byte(pieces[i].Text)) {
			p.doubts(ByWords)
			break
		}
	}
	return pieces, p.doubt, nil
}

// today is the day as Harmony's form has it: of as many tokens whichever it is. The engine's
// may be another, by its time zone or VLLM_SYSTEM_START_DATE.
func today() string { return time.Now().Format(time.DateOnly) }

// tools are those of a request, and what is doubtful of them.
func (m *Model) tools(c *Chat, p *plan) (all []harmony.Tool, err error) {
	if len(c.Tools) == 0 {
		return nil, nil
	}
	v, err := jinja.FromJSON(c.Tools)
	if err != nil {
		return nil, err
	}
	for one := range jinja.Items(v) {
		t, ok := harmony.ToolOf(one)
		if !ok {
			return nil, errRefused
		}
		all = append(all, t)
	}
	if bytes.Contains(c.Raw, []byte(`"tool_choice"`)) && bytes.Contains(c.Raw, []byte(`"none"`)) {
		p.doubts(ByTools) // a server may be set to give none then
	}
	return all, nil
}

// turn is a message as Harmony's form has it.
func (m *Model) turn(msg *Message, p *plan) (t harmony.Turn, err error) {
	t.Role = msg.Role
	b, err := msg.body()
	if err != nil {
		return t, err
	}
	parts, list, err := b.parts()
	if err != nil {
		return t, err
	}
	switch content := bytes.TrimSpace(b.Content); {
	case list && b.itemised(), string(content) == "null" && t.Role != "assistant":
		return t, errRefused
	case len(content) == 0 && t.Role != "assistant":
		p.doubts(ByFields)
	}
	for _, part := range parts {
		t.Texts = append(t.Texts, part.Text)
	}
	if t.CallID = b.ToolCallID; t.Role == "tool" && t.CallID == "" {
		p.doubts(ByTools)
	}
	if t.Role != "assistant" {
		return t, nil
	}
	for _, text := range []*string{b.Reasoning, b.Thoughts} {
		if text != nil {
			t.Thoughts = *text
		}
	}
	if len(b.ToolCalls) > 0 && !ordinary(msg.Raw) {
		p.doubts(ByTools)
	}
	for _, call := range b.ToolCalls {
		var arguments string
		if json.Unmarshal(call.Function.Arguments, &arguments) != nil || strings.Contains(call.Function.Name, "<|") {
			p.doubts(ByTools)
		}
		if call.Function.Name == "" {
			p.doubts(ByTools) // it is no call in Harmony's form then
		}
		t.Calls = append(t.Calls, harmony.Call{ID: call.ID, Name: call.Function.Name, Arguments: arguments})
	}
	return t, nil
}

// countHarmony counts a prompt in Harmony's form.
func (m *Model) countHarmony(c *Chat) (n int, exact bool) {
	pieces, doubt, err := m.inHarmony(c, today())
	if err != nil {
		c.Doubt = doubtOf(err)
		return m.estimate(c), false
	}
	for i := range pieces {
		if pieces[i].Control {
			n++
		} else {
			n += m.tokens([]byte(pieces[i].Text), false)
		}
	}
	c.Doubt = doubt
	return n, doubt == Certain
}

// appendHarmony is countHarmony for ids. They are never exact: the engine's day is not known.
func (m *Model) appendHarmony(dst []uint32, c *Chat, day string) (ids []uint32, exact bool) {
	pieces, doubt, err := m.inHarmony(c, day)
	if err != nil || doubt == ByWords {
		if c.Doubt = doubt; err != nil {
			c.Doubt = doubtOf(err)
		}
		return dst, false
	}
	for i := range pieces {
		dst = m.appendTokens(dst, []byte(pieces[i].Text), pieces[i].Control)
	}
	c.Doubt = doubt
	return dst, false
}

// channels reports whether the tokenizer has the control tokens of Harmony's form.
func (m *Model) channels() bool {
	for _, text := range harmony.Controls {
		if hits := m.specials.find([]byte(text), true); len(hits) != 1 || hits[0].end != len(text) {
			return false
		}
	}
	return true
}
