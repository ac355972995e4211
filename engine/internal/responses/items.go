package responses

import (
	"encoding/json"
	"fmt"

	"millrace.dev/millrace/engine/internal/backend"
)

// item is one element of an input that is a list.
type item struct {
	Type      string          `json:"type"`
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	Output    json.RawMessage `json:"output"`
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Arguments string          `json:"arguments"`
}

// part is one part of a content.
type part struct {
	Type     string           `json:"type"`
	Text     *string          `json:"text"`
	Refusal  *string          `json:"refusal"`
	ImageURL *string          `json:"image_url"`
	Detail   *json.RawMessage `json:"detail"`
}

// message is one of chat completions.
type message struct {
	Role      string `json:"role"`
	Content   any    `json:"content,omitempty"`
	Reasoning string `json:"reasoning_content,omitempty"`
	ToolCalls []any  `json:"tool_calls,omitempty"`
	CallID    string `json:"tool_call_id,omitempty"`
}

// conversation makes messages of instructions and input. The items of an assistant
// that follow each other are one message.
func conversation(request fields) ([]*message, *backend.Error) {
	var c chatMessages
	if backend.Given(request, "instructions") {
		var text string
		if json.Unmarshal(request["instructions"], &text) != nil {
			return nil, backend.Refuse("instructions", "must be a string")
		}
		c = append(c, &message{Role: "system", Content: text})
	}
	var text string
	if json.Unmarshal(request["input"], &text) == nil {
		return append(c, &message{Role: "user", Content: text}), nil
	}
	var items []json.RawMessage
	if json.Unmarshal(request["input"], &items) != nil {
		return nil, backend.Refuse("input", "must be a string or a list of items")
	}
	for i, raw := range items {
		at := fmt.Sprintf("input[%d]", i)
		var it item
		if err := json.Unmarshal(raw, &it); err != nil {
			return nil, backend.Refuse(at, "%v", err)
		}
		if fault := c.add(at, &it); fault != nil {
			return nil, fault
		}
	}
	return c, nil
}

type chatMessages []*message

// assistant returns the last message if it is the assistant's, else a new one.
func (c *chatMessages) assistant() *message {
	if n := len(*c); n > 0 && (*c)[n-1].Role == "assistant" {
		return (*c)[n-1]
	}
	m := &message{Role: "assistant"}
	*c = append(*c, m)
	return m
}

func (c *chatMessages) add(at string, it *item) *backend.Error {
	switch {
	case it.Type == "" || it.Type == "message":
		return c.message(at, it)
	case it.Type == "function_call":
		m := c.assistant()
		m.ToolCalls = append(m.ToolCalls, map[string]any{
			"id": it.CallID, "type": "function", "function": map[string]string{"name": it.Name, "arguments": it.Arguments},
		})
	case it.Type == "function_call_output":
		content, fault := parts(at+".output", it.Output)
		if fault != nil {
			return fault
		}
		var text string
		if json.Unmarshal(it.Output, &text) == nil {
			*c = append(*c, &message{Role: "tool", Content: text, CallID: it.CallID})
		} else {
			*c = append(*c, &message{Role: "tool", Content: content, CallID: it.CallID})
		}
	case it.Type == "reasoning":
		c.reasoning(it)
	case it.Type == "item_reference":
		return backend.Refuse(at+".type", "items are not stored here: send the item itself")
	default:
		return backend.Refuse(at+".type", "%.40q; must be message, function_call, function_call_output or reasoning", it.Type)
	}
	return nil
}

func (c *chatMessages) message(at string, it *item) *backend.Error {
	switch it.Role {
	case "user", "system", "developer", "assistant":
	default:
		return backend.Refuse(at+".role", "%.40q; must be user, assistant, system or developer", it.Role)
	}
	content, fault := parts(at+".content", it.Content)
	if fault != nil {
		return fault
	}
	if it.Role != "assistant" {
		*c = append(*c, &message{Role: it.Role, Content: content})
		return nil
	}
	m := c.assistant()
	before, _ := m.Content.([]any)
	m.Content = append(before, content...)
	return nil
}

// reasoning is what the model thought, as far as it can be read: one whose text is
// left out, or encrypted, says nothing to a model.
func (c *chatMessages) reasoning(it *item) {
	var content []part
	if json.Unmarshal(it.Content, &content) != nil || len(content) == 0 {
		return
	}
	m := c.assistant()
	for _, p := range content {
		if p.Text != nil {
			m.Reasoning += *p.Text
		}
	}
	if m.Content == nil {
		m.Content = []any{}
	}
}

// parts makes the parts of a chat message of a content, a string or a list.
func parts(at string, raw json.RawMessage) ([]any, *backend.Error) {
	text := func(s string) any { return map[string]string{"type": "text", "text": s} }
	var whole string
	if json.Unmarshal(raw, &whole) == nil && len(raw) > 0 && raw[0] == '"' {
		return []any{text(whole)}, nil
	}
	var list []part
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &list) != nil {
		return nil, backend.Refuse(at, "must be a string or a list of parts")
	}
	all := make([]any, 0, len(list))
	for i, p := range list {
		switch {
		case (p.Type == "input_text" || p.Type == "output_text" || p.Type == "text") && p.Text != nil:
			all = append(all, text(*p.Text))
		case p.Type == "refusal" && p.Refusal != nil:
			all = append(all, text(*p.Refusal))
		case p.Type == "input_image" && p.ImageURL != nil:
			url := map[string]any{"url": *p.ImageURL}
			if p.Detail != nil {
				url["detail"] = *p.Detail
			}
			all = append(all, map[string]any{"type": "image_url", "image_url": url})
		case p.Type == "input_image":
			return nil, backend.Refuse(fmt.Sprintf("%s[%d].image_url", at, i), "is missing; files are not stored here")
		case p.Type == "input_text" || p.Type == "output_text" || p.Type == "text":
			return nil, backend.Refuse(fmt.Sprintf("%s[%d].text", at, i), "is missing")
		default:
			return nil, backend.Refuse(fmt.Sprintf("%s[%d].type", at, i), "%.40q; must be input_text, output_text, refusal or input_image", p.Type)
		}
	}
	return all, nil
}
