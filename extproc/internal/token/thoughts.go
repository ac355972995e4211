package token

import (
	"millrace.dev/millrace/extproc/internal/jinja"
)

// setThoughts gives a message's reasoning to the template as the engine does.
func (t *template) setThoughts(m *jinja.Dict, role string, b *body) {
	set := func(text *string, names ...string) {
		for _, name := range names {
			if text != nil {
				m.Set(name, *text)
			}
		}
	}
	switch t.habits.thoughts {
	case thoughtsUnclear:
		if b.Reasoning != nil && *b.Reasoning != "" || !t.llama {
			set(b.Reasoning, "reasoning_content")
		}
		return
	case thoughtsOld:
		if role != "user" {
			set(b.Reasoning, "reasoning_content")
		}
		return
	}
	if role != "assistant" {
		return
	}
	switch t.habits.thoughts {
	case thoughtsNew:
		set(b.Thoughts, "reasoning", "reasoning_content")
	case thoughtsEither:
		if b.Thoughts == nil || *b.Thoughts == "" {
			b.Thoughts = b.Reasoning
		}
		set(b.Thoughts, "reasoning", "reasoning_content")
	case thoughtsRenamed:
		if b.Thoughts == nil {
			b.Thoughts = b.Reasoning
		}
		set(b.Thoughts, "reasoning", "reasoning_content")
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
