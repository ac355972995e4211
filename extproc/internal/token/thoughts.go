package token

import (
	"millrace.dev/millrace/extproc/internal/jinja"
)

// setThoughts gives a message's reasoning to the template as the engine does.
func (t *template) setThoughts(m *jinja.Dict, role string, b *body) {
	text, names := b.Thoughts, []string{"reasoning", "reasoning_content"}
	gives := role == "assistant"
	switch t.habits.thoughts {
	case thoughtsUnclear:
		text, names = b.Reasoning, names[1:]
		gives = !t.llama || text != nil && *text != ""
	case thoughtsOld:
		text, names = b.Reasoning, names[1:]
		gives = role != "user"
	case thoughtsDropped:
		gives = false
	case thoughtsEither:
		if text == nil || *text == "" {
			text = b.Reasoning
		}
	case thoughtsRenamed:
		if text == nil {
			text = b.Reasoning
		}
	}
	if !gives || text == nil {
		return
	}
	for _, name := range names {
		m.Set(name, *text)
	}
}

// differs is why engines may prepare a message otherwise than the one that is not known.
func (t *template) differs(role string, b *body) Doubt {
	parts, list, _ := b.parts()
	reasons := b.Reasoning != nil && *b.Reasoning != "" || b.Thoughts != nil && *b.Thoughts != ""
	switch {
	case t.llama:
	case reasons && t.habits.thoughts == thoughtsUnclear && t.mentions("reasoning"):
		return ByEngine
	case list && len(parts) > 1 && !t.known, list && t.known && t.lists == absent:
		return ByEngine
	case list && role == "tool" && t.lists == yes && t.habits.results == resultsUnclear:
		return ByEngine
	case role == "developer" && t.habits.developer == absent:
		return ByEngine
	case role == "developer" && len(b.Tools) > 0:
		return ByTools
	case list && t.vllm && b.itemised():
		return ByRefusal
	}
	return Certain
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
