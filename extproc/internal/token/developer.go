package token

import (
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// asSystem is what vLLM makes of a conversation with developer's messages for a template
// that knows no such role: they become system's, and all of these one, in front.
func asSystem(messages []*jinja.Dict) []*jinja.Dict {
	var rest []*jinja.Dict
	var texts []string
	moves := false
	for i, m := range messages {
		role, _ := m.Get("role")
		if role != any("developer") && role != any("system") {
			rest = append(rest, m)
			continue
		}
		m.Set("role", "system")
		moves = moves || i > 0
		if text := textOf(contentOf(m)); text != "" {
			texts = append(texts, text)
		}
	}
	if !moves {
		return messages
	}
	return append([]*jinja.Dict{object("role", "system", "content", strings.Join(texts, "\n\n"))}, rest...)
}

// textOf is the text of a content that is one, or a list of parts.
func textOf(content any) string {
	if text, ok := content.(string); ok {
		return text
	}
	var texts []string
	for part := range jinja.Items(content) {
		if d, ok := part.(*jinja.Dict); ok {
			if text, ok := d.Get("text"); ok {
				texts = append(texts, text.(string))
			}
		}
	}
	return strings.Join(texts, "\n")
}

// giveTools gives developer's messages the tools that they don't have.
func giveTools(messages []*jinja.Dict) {
	for _, m := range messages {
		if role, _ := m.Get("role"); role == any("developer") {
			m.Set("tools", nil)
		}
	}
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
