// Package messages is Anthropic's messages over OpenAI's chat completions: a request is made
// one for chat completions, and their answer, unary or a stream, is made that of messages.
//
// Used by the kinds of backends whose own messages can't do what a request asks for. Its one
// rule: a field is put right or refused by its name, and none is dropped that would change
// the answer.
package messages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"

	"millrace.dev/millrace/engine/internal/backend"
)

// fields is a JSON object whose values were not decoded.
type fields = map[string]json.RawMessage

// dropped are the fields of messages that chat completions have elsewhere, or that say
// nothing to the model.
var dropped = []string{
	"system", "output_config", "output_format", "thinking", "metadata", "cache_control", "service_tier", "stop_sequences",
	"inference_geo", "diagnostics", "speed", "user_profile_id", "workspace_id",
}

// Chat makes a request for chat completions of one for a message. The answer to it is given
// to the Form.
func Chat(request fields) (fields, *Form, *backend.Error) {
	chat := maps.Clone(request)
	for _, name := range dropped {
		delete(chat, name)
	}
	if backend.Given(request, "stop_sequences") && string(request["stop_sequences"]) != "[]" {
		// Chat completions don't say which of them it was.
		return nil, nil, backend.Refuse("stop_sequences", "an answer that is bound to a form ends by itself: leave it out")
	}
	messages, fault := conversation(request)
	if fault != nil {
		return nil, nil, fault
	}
	chat["messages"] = backend.Encode(messages)
	for _, set := range []func(request, chat fields) *backend.Error{output, tools, choose} {
		if fault := set(request, chat); fault != nil {
			return nil, nil, fault
		}
	}
	return chat, newForm(request), nil
}

// Bound reports whether a request wants more of an answer than text: a form, or an effort.
func Bound(request fields) bool {
	return backend.Given(request, "output_config") || backend.Given(request, "output_format")
}

// output sets the form of the text and the effort.
func output(request, chat fields) *backend.Error {
	var config struct {
		Format fields  `json:"format"`
		Effort *string `json:"effort"`
	}
	if backend.Given(request, "output_config") && json.Unmarshal(request["output_config"], &config) != nil {
		return backend.Refuse("output_config", "must be an object, its format an object, its effort a string")
	}
	at := "output_config.format"
	if config.Format == nil && backend.Given(request, "output_format") { // its older name
		at = "output_format"
		if json.Unmarshal(request["output_format"], &config.Format) != nil {
			return backend.Refuse(at, "must be an object")
		}
	}
	if config.Effort != nil {
		chat["reasoning_effort"] = backend.Encode(*config.Effort)
	}
	if config.Format == nil {
		return nil
	}
	var kind string
	if _ = json.Unmarshal(config.Format["type"], &kind); kind != "json_schema" {
		return backend.Refuse(at+".type", "%.40q; must be json_schema", kind)
	}
	if !backend.Given(config.Format, "schema") {
		return backend.Refuse(at+".schema", "is missing")
	}
	chat["response_format"] = backend.Encode(map[string]any{
		"type": kind, kind: map[string]any{"name": "answer", "strict": true, "schema": config.Format["schema"]},
	})
	return nil
}

// tools gives tools the form of chat completions, where what describes a function is within.
func tools(request, chat fields) *backend.Error {
	if !backend.Given(request, "tools") {
		return nil
	}
	var all []struct {
		Type        string          `json:"type"`
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Schema      json.RawMessage `json:"input_schema"`
	}
	if json.Unmarshal(request["tools"], &all) != nil {
		return backend.Refuse("tools", "must be a list of objects")
	}
	delete(chat, "tools")
	if len(all) == 0 {
		return nil
	}
	made := make([]any, len(all))
	for i, t := range all {
		switch at := fmt.Sprintf("tools[%d]", i); {
		case t.Type != "" && t.Type != "custom":
			return backend.Refuse(at+".type", "%.40q; only tools of the client's own can be called here", t.Type)
		case t.Name == "":
			return backend.Refuse(at+".name", "is missing")
		}
		if len(t.Schema) == 0 || isNull(t.Schema) {
			t.Schema = json.RawMessage("{}")
		}
		made[i] = map[string]any{"type": "function", "function": map[string]any{"name": t.Name, "description": t.Description, "parameters": t.Schema}}
	}
	chat["tools"] = backend.Encode(made)
	return nil
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// choice is the value of tool_choice.
type choice struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	Alone bool   `json:"disable_parallel_tool_use"`
}

// Chosen returns what is wrong with a request's tool_choice: what must be called has to be
// there.
func Chosen(request fields) *backend.Error {
	var c choice
	var all []struct {
		Name string `json:"name"`
	}
	switch {
	case backend.Given(request, "tools") && json.Unmarshal(request["tools"], &all) != nil:
		return backend.Refuse("tools", "must be a list of objects")
	case !backend.Given(request, "tool_choice"):
		return nil
	case json.Unmarshal(request["tool_choice"], &c) != nil:
		return backend.Refuse("tool_choice", "must be an object")
	}
	switch c.Type {
	case "auto", "none":
	case "any":
		if len(all) == 0 {
			return backend.Refuse("tool_choice", "there are no tools")
		}
	case "tool":
		for _, t := range all {
			if t.Name == c.Name {
				return nil
			}
		}
		return backend.Refuse("tool_choice.name", "there is no tool %.60q", c.Name)
	default:
		return backend.Refuse("tool_choice.type", "%.40q; must be auto, any, tool or none", c.Type)
	}
	return nil
}

// choose says which tools may be called, and whether one must be.
func choose(request, chat fields) *backend.Error {
	if fault := Chosen(request); fault != nil {
		return fault
	}
	var c choice
	if !backend.Given(request, "tool_choice") || json.Unmarshal(request["tool_choice"], &c) != nil {
		return nil
	}
	if c.Alone {
		chat["parallel_tool_calls"] = json.RawMessage("false")
	}
	switch c.Type {
	case "any":
		chat["tool_choice"] = backend.Encode("required")
	case "tool":
		chat["tool_choice"] = backend.Encode(map[string]any{"type": "function", "function": map[string]string{"name": c.Name}})
	default:
		chat["tool_choice"] = backend.Encode(c.Type)
	}
	return nil
}

// message is one of chat completions.
type message struct {
	Role      string `json:"role"`
	Content   any    `json:"content"`
	Reasoning string `json:"reasoning_content,omitempty"`
	ToolCalls []any  `json:"tool_calls,omitempty"`
	CallID    string `json:"tool_call_id,omitempty"`
}

// block is a block of a content.
type block struct {
	Type     string          `json:"type"`
	Text     string          `json:"text"`
	Thinking string          `json:"thinking"`
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Input    json.RawMessage `json:"input"`
	ResultOf string          `json:"tool_use_id"`
	Content  json.RawMessage `json:"content"`
	Source   struct {
		Type  string `json:"type"`
		Media string `json:"media_type"`
		Data  string `json:"data"`
		URL   string `json:"url"`
	} `json:"source"`
}

// conversation makes messages of system and messages, as extproc counts them: the texts,
// calls and thoughts of one are one message, the result of each tool one behind it.
func conversation(request fields) ([]*message, *backend.Error) {
	all := []*message{}
	if backend.Given(request, "system") {
		text, fault := texts("system", request["system"])
		if fault != nil {
			return nil, fault
		}
		all = append(all, &message{Role: "system", Content: text})
	}
	var list []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(request["messages"], &list) != nil {
		return nil, backend.Refuse("messages", "must be a list of objects with role and content")
	}
	for i, m := range list {
		at := fmt.Sprintf("messages[%d].content", i)
		var text string
		if isNull(m.Content) {
			return nil, backend.Refuse(at, "is missing")
		}
		if json.Unmarshal(m.Content, &text) == nil {
			all = append(all, &message{Role: m.Role, Content: text})
			continue
		}
		var blocks []block
		if json.Unmarshal(m.Content, &blocks) != nil {
			return nil, backend.Refuse(at, "must be a string or a list of blocks")
		}
		made, fault := turn(at, m.Role, blocks)
		if fault != nil {
			return nil, fault
		}
		all = append(all, made...)
	}
	return all, nil
}

// turn makes messages of the blocks of one.
func turn(at, role string, blocks []block) ([]*message, *backend.Error) {
	one, parts, results := &message{Role: role}, []any{}, []*message{}
	for i := range blocks {
		b, at := &blocks[i], fmt.Sprintf("%s[%d]", at, i)
		switch b.Type {
		case "text":
			parts = append(parts, map[string]string{"type": "text", "text": b.Text})
		case "image":
			url := b.Source.URL
			if b.Source.Type == "base64" {
				url = "data:" + b.Source.Media + ";base64," + b.Source.Data
			}
			if url == "" {
				return nil, backend.Refuse(at+".source", "must be base64 or url; files are not stored here")
			}
			parts = append(parts, map[string]any{"type": "image_url", "image_url": map[string]string{"url": url}})
		case "thinking":
			one.Reasoning += b.Thinking
		case "redacted_thinking": // nobody can read it
		case "tool_use":
			one.ToolCalls = append(one.ToolCalls, b.call())
		case "tool_result":
			text, fault := texts(at+".content", b.Content)
			if fault != nil {
				return nil, fault
			}
			results = append(results, &message{Role: "tool", Content: text, CallID: b.ResultOf})
		default:
			return nil, backend.Refuse(at+".type", "%.40q can't be read by this model", b.Type)
		}
	}
	if len(parts) == 0 && len(one.ToolCalls) == 0 && one.Reasoning == "" {
		return results, nil
	}
	if one.Content = parts; len(parts) == 0 {
		one.Content = ""
	}
	return append([]*message{one}, results...), nil
}

// call is a tool_use as chat completions have it.
func (b *block) call() any {
	var arguments bytes.Buffer
	if json.Compact(&arguments, b.Input) != nil || arguments.Len() == 0 {
		arguments.Reset()
		arguments.WriteString("{}")
	}
	return map[string]any{"id": b.ID, "type": "function", "function": map[string]string{"name": b.Name, "arguments": arguments.String()}}
}

// texts is a text, or the texts of a list, one behind the other.
func texts(at string, raw json.RawMessage) (string, *backend.Error) {
	var text string
	if len(raw) == 0 || json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var parts []block
	if json.Unmarshal(raw, &parts) != nil {
		return "", backend.Refuse(at, "must be a string or a list of texts")
	}
	for i, p := range parts {
		if p.Type != "text" {
			return "", backend.Refuse(fmt.Sprintf("%s[%d].type", at, i), "%.40q can't be read by this model here: must be text", p.Type)
		}
		text += p.Text
	}
	return text, nil
}
