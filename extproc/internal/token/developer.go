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
