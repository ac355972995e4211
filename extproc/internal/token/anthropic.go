package token

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// anthropicBlock is an element of a content of Anthropic's API.
type anthropicBlock struct {
	Type     string          `json:"type"`
	Text     string          `json:"text"`
	Thinking string          `json:"thinking"`
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Input    json.RawMessage `json:"input"`
	ResultOf string          `json:"tool_use_id"`
	Content  json.RawMessage `json:"content"`
}

// AnthropicMessages turns a message of Anthropic's API whose content is a list of
// blocks into those of a chat completion that llama.cpp makes of it: the texts,
// calls and thoughts are one message, and the result of each tool one of its own
// behind it. Other blocks are passed over: media are to be counted elsewhere.
func AnthropicMessages(raw []byte) ([]Message, error) {
	var in struct {
		Role    string           `json:"role"`
		Content []anthropicBlock `json:"content"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, fmt.Errorf("messages: %w", err)
	}
	turn := chatMessage{Role: in.Role, Content: ""}
	all := []chatMessage{}
	for i := range in.Content {
		b := &in.Content[i]
		switch b.Type {
		case "text":
			turn.parts = append(turn.parts, textPart{Type: b.Type, Text: b.Text})
		case "thinking":
			turn.Reasoning += b.Thinking
		case "tool_use":
			turn.ToolCalls = append(turn.ToolCalls, b.call())
		case "tool_result":
			all = append(all, chatMessage{Role: "tool", CallID: b.ResultOf, Content: b.result()})
		}
	}
	if len(turn.parts) > 0 || len(turn.ToolCalls) > 0 || turn.Reasoning != "" {
		all = append([]chatMessage{turn}, all...)
	}
	out := make([]Message, len(all))
	for i := range all {
		var err error
		if out[i], err = all[i].message(); err != nil {
			return nil, fmt.Errorf("messages: %w", err)
		}
	}
	return out, nil
}

// call is a tool_use as chat completions have it.
func (b *anthropicBlock) call() any {
	var arguments bytes.Buffer
	if json.Compact(&arguments, b.Input) != nil || arguments.Len() == 0 {
		arguments.WriteString("{}")
	}
	return map[string]any{
		"id": b.ID, "type": "function",
		"function": map[string]any{"name": b.Name, "arguments": arguments.String()},
	}
}

// result is the text of a tool_result: a string, or the texts of a list.
func (b *anthropicBlock) result() string {
	var text string
	if json.Unmarshal(b.Content, &text) == nil {
		return text
	}
	var parts []textPart
	if json.Unmarshal(b.Content, &parts) != nil {
		return ""
	}
	var out strings.Builder
	for _, p := range parts {
		if p.Type == "text" {
			out.WriteString(p.Text)
		}
	}
	return out.String()
}

// AnthropicTools gives the tools of Anthropic's API the form of chat completions'.
func AnthropicTools(raw []byte) []byte {
	var tools []struct {
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Schema      json.RawMessage `json:"input_schema"`
	}
	if json.Unmarshal(raw, &tools) != nil || len(tools) == 0 {
		return nil
	}
	out := make([]any, len(tools))
	for i, t := range tools {
		if t.Schema == nil {
			t.Schema = json.RawMessage("{}")
		}
		out[i] = map[string]any{"type": "function", "function": map[string]any{
			"name": t.Name, "description": t.Description, "parameters": t.Schema,
		}}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil
	}
	return text
}
