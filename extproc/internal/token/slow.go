package token

import (
	"errors"
	"slices"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// render is the slow way: the whole prompt by the template.
func (m *Model) render(c *Chat, p *plan) ([]byte, error) {
	if heavy(c, p) {
		return nil, errHeavy
	}
	in := &input{extra: p.extra, generate: p.end == ask, at: p.at}
	if m.template.given() {
		in.reads = jinja.DateRead
	}
	defer func() { p.reads = in.reads }()
	var err error
	if in.messages, err = m.slowMessages(p); err != nil {
		return nil, err
	}
	if len(c.Tools) > 0 && m.template.usesTools {
		list := toolList
		if m.template.habits.form == yes {
			list = toolsOfVLLM
		}
		if in.tools, err = list(c.Tools); err != nil {
			return nil, err
		}
	}
	if p.continues {
		return m.continued(in)
	}
	out, err := m.template.render(in)
	if err == nil && p.end == open {
		var asked string
		in.generate = true
		asked, err = m.template.render(in)
		out += opening(out, asked) + string(p.last)
	}
	return []byte(m.template.stripBOS(out)), err
}

// What is rendered at most: messages, and bytes of a request. A template may take a time
// that grows with the square of them.
const (
	mostRendered      = 1024
	mostRenderedBytes = 1 << 20
)

// errHeavy is returned for a conversation that is not rendered.
var errHeavy = errors.New("too long a conversation to be rendered")

func heavy(c *Chat, p *plan) bool {
	size := len(c.Tools)
	for i := range p.messages {
		size += max(len(p.messages[i].Raw), len(p.messages[i].Content))
	}
	return len(p.messages) > mostRendered || size > mostRenderedBytes
}

func (m *Model) slowMessages(p *plan) ([]*jinja.Dict, error) {
	t := m.template
	var out []*jinja.Dict
	developer := false
	for i := range p.messages {
		msg, err := t.full(t.role(p.messages[i].Role), &p.messages[i])
		if err != nil {
			return nil, err
		}
		if d := t.uncertain(msg); d != Certain {
			p.doubts(d)
		}
		if _, calls := msg.Get("tool_calls"); calls && t.habits.form == yes && len(p.messages[i].Raw) > 0 && !ordinary(p.messages[i].Raw) {
			p.doubts(ByTools)
		}
		if d, err := t.doubtful(&p.messages[i]); err != nil {
			return nil, err
		} else if d != Certain {
			p.doubts(d)
		}
		if p.messages[i].Role == "developer" {
			developer = true
		}
		out = append(out, msg)
	}
	if developer && t.habits.developer == yes && !t.mentions(`"developer"`) && !t.mentions("'developer'") {
		out = asSystem(out)
	} else if developer && t.habits.tools == yes {
		giveTools(out)
	}
	if t.llama && t.noSystem {
		out = mergeSystem(out)
	}
	return out, nil
}

// uncertain is why a message may be rendered differently here.
func (t *template) uncertain(msg *jinja.Dict) Doubt {
	if _, calls := msg.Get("tool_calls"); calls && t.habits.form != yes && slices.Contains(t.extras, "tool_calls") {
		return ByTools
	}
	_, isText := contentOf(msg).(string)
	_, reasons := msg.Get("reasoning_content")
	if t.own && (!isText || reasons) {
		return ByFields
	}
	return Certain
}

// role maps a role as llama.cpp does for all templates but gpt-oss'.
func (t *template) role(name string) string {
	if t.llama && name == "developer" && !t.mentions("<|channel|>") {
		return "system"
	}
	return name
}

func contentOf(message *jinja.Dict) any {
	c, _ := message.Get("content")
	return c
}
