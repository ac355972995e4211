package token

import (
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// continuedTag is put behind the message that is continued, and cut off with all that follows it.
const continuedTag = "CONTINUE_FINAL_MESSAGE_TAG "

// continued renders a conversation whose last message is continued, as transformers'
// continue_final_message has it (transformers/utils/chat_template_utils.py).
func (m *Model) continued(in *input) ([]byte, error) {
	last := in.messages[len(in.messages)-1]
	final, ok := contentOf(last).(string)
	if ok {
		last.Set("content", final+continuedTag)
	} else if final, ok = lastText(contentOf(last)); !ok {
		return nil, errRefused
	}
	out, err := m.template.render(in)
	if err != nil {
		return nil, err
	}
	at := strings.LastIndex(out, strings.TrimSpace(continuedTag))
	if at < 0 || !strings.Contains(out, strings.TrimFunc(final, jinja.IsSpace)) || !m.template.mentions("content") {
		return nil, errRefused
	}
	if !strings.HasPrefix(out[at:], continuedTag) {
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
		last.Set("text", text+continuedTag)
	}
	return text, ok
}
