package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// responseBody is what of a /v1/responses request makes its prompt.
type responseBody struct {
	Input        json.RawMessage   `json:"input"`
	Instructions *string           `json:"instructions"`
	Tools        []json.RawMessage `json:"tools"`
	Reasoning    struct {
		Effort string `json:"effort"`
	} `json:"reasoning"`
}

// responseItem is one element of an input that is a list.
type responseItem struct {
	Type    string            `json:"type"`
	Role    string            `json:"role"`
	Content json.RawMessage   `json:"content"`
	Output  json.RawMessage   `json:"output"`
	Summary []json.RawMessage `json:"summary"`
	CallID  string            `json:"call_id"`
	Name    string            `json:"name"`
	Args    string            `json:"arguments"`
}

// chatMessage is a message as chat completions have it.
type chatMessage struct {
	Role      string     `json:"role"`
	Content   any        `json:"content,omitempty"`
	ToolCalls []any      `json:"tool_calls,omitempty"`
	Reasoning string     `json:"reasoning_content,omitempty"`
	CallID    string     `json:"tool_call_id,omitempty"`
	parts     []textPart // of a content that is a list
}

type textPart struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// responsePart is one of a content.
type responsePart struct {
	textPart
	Refusal string `json:"refusal"`
}

// ResponseChat turns the body of a /v1/responses request into the conversation
// that engine makes of it for llama.cpp: instructions become a first system message, an
// input that is a string becomes a user's message, and of a list each item
// becomes a message, an assistant's items in a row one. The error says what
// the backend will refuse.
func ResponseChat(raw []byte) (*Chat, error) {
	var body responseBody
	if err := json.Unmarshal(raw, &body); err != nil {
		return nil, fmt.Errorf("responses: %w", err)
	}
	r := responses{}
	if body.Instructions != nil {
		r.add(chatMessage{Role: "system", Content: *body.Instructions})
	}
	if err := r.input(body.Input); err != nil {
		return nil, fmt.Errorf("responses: input: %w", err)
	}
	chat := &Chat{Raw: withEffort(raw, body.Reasoning.Effort)}
	for i := range r.messages {
		msg, err := r.messages[i].message()
		if err != nil {
			return nil, fmt.Errorf("responses: %w", err)
		}
		chat.Messages = append(chat.Messages, msg)
	}
	chat.Tools = functionTools(body.Tools)
	return chat, nil
}

// withEffort is a body with the effort of reasoning where chat completions have
// it.
func withEffort(raw []byte, effort string) []byte {
	if effort == "" {
		return raw
	}
	var body map[string]json.RawMessage
	_ = json.Unmarshal(raw, &body) // it was valid a moment ago
	body["reasoning_effort"], _ = json.Marshal(effort)
	out, _ := json.Marshal(body)
	return out
}

type responses struct{ messages []chatMessage }

func (r *responses) add(m chatMessage) { r.messages = append(r.messages, m) }

// last returns the message that an assistant's item is merged into, nil if the
// last one isn't the assistant's.
func (r *responses) last() *chatMessage {
	if n := len(r.messages); n > 0 && r.messages[n-1].Role == "assistant" {
		return &r.messages[n-1]
	}
	return nil
}

func (r *responses) input(raw json.RawMessage) error {
	var text string
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return errors.New("missing")
	}
	if json.Unmarshal(raw, &text) == nil {
		r.add(chatMessage{Role: "user", Content: text})
		return nil
	}
	var items []responseItem
	if err := json.Unmarshal(raw, &items); err != nil {
		return err
	}
	for i := range items {
		if err := r.item(&items[i]); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
	}
	return nil
}

func (r *responses) item(it *responseItem) error {
	switch {
	case it.Role == "user" || it.Role == "system" || it.Role == "developer":
		parts, err := textParts(it.Content)
		r.add(chatMessage{Role: it.Role, parts: parts})
		return err
	case it.Role == "assistant" && (it.Type == "message" || it.Type == ""):
		return r.output(it)
	case it.Type == "function_call":
		r.call(it)
		return nil
	case it.Type == "function_call_output":
		return r.result(it)
	case it.Type == "reasoning":
		r.reasoning(it)
		return nil
	}
	return fmt.Errorf("of type %q and role %q is unknown", it.Type, it.Role)
}

func (r *responses) output(it *responseItem) error {
	parts, err := textParts(it.Content)
	if err != nil {
		return err
	}
	if m := r.last(); m != nil {
		m.parts = append(m.parts, parts...)
		return nil
	}
	r.add(chatMessage{Role: "assistant", parts: parts})
	return nil
}

func (r *responses) call(it *responseItem) {
	call := map[string]any{
		"id": it.CallID, "type": "function",
		"function": map[string]any{"name": it.Name, "arguments": it.Args},
	}
	if r.last() == nil {
		r.add(chatMessage{Role: "assistant"})
	}
	m := r.last()
	m.ToolCalls = append(m.ToolCalls, call)
}

func (r *responses) result(it *responseItem) error {
	m := chatMessage{Role: "tool", CallID: it.CallID}
	var text string
	if json.Unmarshal(it.Output, &text) == nil {
		m.Content = text
		r.add(m)
		return nil
	}
	var err error
	m.parts, err = textParts(it.Output)
	r.add(m)
	return err
}

// reasoning without a text, left out or encrypted, says nothing to a model.
func (r *responses) reasoning(it *responseItem) {
	var parts []textPart
	if err := json.Unmarshal(it.Content, &parts); err != nil || len(parts) == 0 {
		return
	}
	if r.last() == nil {
		r.add(chatMessage{Role: "assistant", parts: []textPart{}})
	}
	for _, p := range parts {
		r.last().Reasoning += p.Text
	}
}

// textParts reads a content: a string, or the texts of a list of texts and images.
func textParts(raw json.RawMessage) ([]textPart, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return []textPart{{"text", text}}, nil
	}
	var parts []responsePart
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, err
	}
	texts := []textPart{}
	for _, p := range parts {
		switch p.Type {
		case "input_text", "output_text", "text":
			texts = append(texts, textPart{Type: "text", Text: p.Text})
		case "refusal":
			texts = append(texts, textPart{Type: "text", Text: p.Refusal})
		case "input_image": // to be counted elsewhere
		default:
			return nil, errMedia
		}
	}
	return texts, nil
}

// message is m as CountChat takes it.
func (m *chatMessage) message() (Message, error) {
	out := Message{Role: m.Role}
	if m.parts != nil {
		m.Content = m.parts
	}
	if text, ok := m.Content.(string); ok {
		out.Content = []byte(text)
	}
	var err error
	out.Raw, err = json.Marshal(m)
	return out, err
}

// functionTools gives function tools the form of chat completions'. Others have
// none there and are dropped.
func functionTools(tools []json.RawMessage) []byte {
	var out []any
	for _, raw := range tools {
		var kind struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(raw, &kind) == nil && kind.Type == "function" {
			out = append(out, map[string]any{"type": "function", "function": raw})
		}
	}
	if out == nil {
		return nil
	}
	text, _ := json.Marshal(out) // made of valid JSON
	return text
}
