package token

import (
	"errors"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// render is the slow way: the whole prompt by the template.
func (m *Model) render(c *Chat, p *plan) ([]byte, error) {
	if heavy(c, p) {
		return nil, errHeavy
	}
	in := &input{extra: p.extra, generate: p.end == ask}
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
	if p.goesOn {
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

// giveTools gives developer's messages the tools that they don't have.
func giveTools(messages []*jinja.Dict) {
	for _, m := range messages {
		if role, _ := m.Get("role"); role == any("developer") {
			m.Set("tools", nil)
		}
	}
}

// doubtful is why engines may prepare a message otherwise than we do.
func (t *template) doubtful(msg *Message) (Doubt, error) {
	if t.llama {
		return Certain, nil
	}
	b, err := msg.body()
	if err != nil {
		return Certain, err
	}
	return t.differs(msg.Role, b), nil
}

// goOnTag is put behind the message that is continued, and cut off with all that follows it.
const goOnTag = "CONTINUE_FINAL_MESSAGE_TAG "

// continued renders a conversation whose last message is continued, as transformers'
// continue_final_message has it (transformers/utils/chat_template_utils.py).
func (m *Model) continued(in *input) ([]byte, error) {
	last := in.messages[len(in.messages)-1]
	final, ok := contentOf(last).(string)
	if ok {
		last.Set("content", final+goOnTag)
	} else if final, ok = lastText(contentOf(last)); !ok {
		return nil, errRefused
	}
	out, err := m.template.render(in)
	if err != nil {
		return nil, err
	}
	at := strings.LastIndex(out, strings.TrimSpace(goOnTag))
	if at < 0 || !strings.Contains(out, strings.TrimFunc(final, jinja.IsSpace)) || !m.template.mentions("content") {
		return nil, errRefused
	}
	if !strings.HasPrefix(out[at:], goOnTag) {
		return []byte(strings.TrimRightFunc(out[:at], jinja.IsSpace)), nil
	}
	return []byte(out[:at]), nil
}

// lastText tags the last text of a list of parts and returns what it was.
func lastText(content any) (text string, ok bool) {
	var last *jinja.Dict
	for part := range jinja.Items(content) {
		if d, is := part.(*jinja.Dict); is {
			last = d
		}
	}
	if last == nil {
		return "", false
	}
	v, _ := last.Get("text")
	if text, ok = v.(string); ok {
		last.Set("text", text+goOnTag)
	}
	return text, ok
}

// role maps a role as llama.cpp does for all templates but gpt-oss'.
func (t *template) role(name string) string {
	if t.llama && name == "developer" && !t.mentions("<|channel|>") {
		return "system"
	}
	return name
}

// mergeSystem puts a leading system message into the next one, for templates
// that have no place for it.
func mergeSystem(messages []*jinja.Dict) []*jinja.Dict {
	if len(messages) == 0 {
		return messages
	}
	if role, _ := messages[0].Get("role"); role != "system" {
		return messages
	}
	if len(messages) > 1 {
		a, ok := contentOf(messages[0]).(string)
		b, ok2 := contentOf(messages[1]).(string)
		if ok && ok2 {
			messages[1].Set("content", a+"\n"+b)
		}
	}
	return messages[1:]
}

func contentOf(message *jinja.Dict) any {
	c, _ := message.Get("content")
	return c
}
