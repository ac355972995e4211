// Package responses is OpenAI's Responses API over its chat completions: a request is
// made one for chat completions, and their answer, unary or a stream, is made the
// answer of the Responses API, each event with its numbers.
//
// Used by the kinds of backends whose own Responses API is less than OpenAI's. Its one
// rule: a field is put right or refused by its name, and none is dropped that would
// change the answer.
package responses

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
)

// fields is a JSON object whose values were not decoded.
type fields = map[string]json.RawMessage

// never are the fields that ask for what nobody keeps here: nothing is stored, and
// nothing runs without a client that waits.
var never = map[string]string{
	"previous_response_id": "responses are not stored: send the earlier items in input",
	"conversation":         "conversations are not stored: send the earlier items in input",
	"prompt":               "prompts are not stored: send instructions and input",
	"context_management":   "nothing is taken out of a context here",
	"moderation":           "nothing is moderated here",
}

// included are the values of include that ask for nothing we lack. Reasoning is
// returned in clear text, which can be sent back.
var included = []string{"message.output_text.logprobs", "reasoning.encrypted_content"}

// dropped are the fields of the Responses API that say nothing to the model. That nothing is
// stored stands in the answer.
var dropped = []string{"input", "instructions", "max_output_tokens", "text", "reasoning", "include", "truncation", "background", "store", "max_tool_calls", "stream_options"}

// Chat makes a request for chat completions of one for a response. The answer to it is
// given to the Form.
func Chat(request fields) (fields, *Form, *backend.Error) {
	if fault := check(request); fault != nil {
		return nil, nil, fault
	}
	chat := maps.Clone(request)
	for _, name := range append(dropped, slices.Collect(maps.Keys(never))...) {
		delete(chat, name)
	}
	messages, fault := conversation(request)
	if fault != nil {
		return nil, nil, fault
	}
	chat["messages"] = backend.Encode(messages)
	if backend.Given(request, "max_output_tokens") {
		chat["max_tokens"] = request["max_output_tokens"]
	}
	if fault := format(request, chat); fault != nil {
		return nil, nil, fault
	}
	if fault := tools(request, chat); fault != nil {
		return nil, nil, fault
	}
	return chat, newForm(request), nil
}

func check(request fields) *backend.Error {
	for name, why := range never {
		if backend.Given(request, name) {
			return backend.Refuse(name, "%s", why)
		}
	}
	if string(request["background"]) == "true" {
		return backend.Refuse("background", "nothing runs in the background here")
	}
	if t := request["truncation"]; backend.Given(request, "truncation") && string(t) != `"disabled"` {
		return backend.Refuse("truncation", "%.40s; must be \"disabled\": an input is never cut here", t)
	}
	var include []string
	if backend.Given(request, "include") && json.Unmarshal(request["include"], &include) != nil {
		return backend.Refuse("include", "must be a list of strings")
	}
	for i, name := range include {
		if !slices.Contains(included, name) {
			return backend.Refuse(fmt.Sprintf("include[%d]", i), "%.60q is nothing that is known here", name)
		}
	}
	return nil
}

// format sets the form of the text, the effort and the log probabilities.
func format(request, chat fields) *backend.Error {
	var text struct {
		Format    fields          `json:"format"`
		Verbosity json.RawMessage `json:"verbosity"`
	}
	if backend.Given(request, "text") && json.Unmarshal(request["text"], &text) != nil {
		return backend.Refuse("text", "must be an object, and text.format one")
	}
	if v := string(text.Verbosity); v != "" && v != "null" && v != `"medium"` {
		return backend.Refuse("text.verbosity", "%.40s; this model has none but \"medium\": ask for it in a message", v)
	}
	var kind string
	_ = json.Unmarshal(text.Format["type"], &kind) // no text: refused below
	switch {
	case text.Format == nil || kind == "text":
	case kind == "json_object":
		chat["response_format"] = backend.Encode(map[string]string{"type": kind})
	case kind == "json_schema" && backend.Given(text.Format, "schema"):
		schema := maps.Clone(text.Format)
		delete(schema, "type")
		chat["response_format"] = backend.Encode(map[string]any{"type": kind, kind: schema})
	case kind == "json_schema":
		return backend.Refuse("text.format.schema", "is missing")
	default:
		return backend.Refuse("text.format.type", "%.40q; must be text, json_object or json_schema", kind)
	}
	var reasoning struct {
		Effort *string `json:"effort"`
	}
	if backend.Given(request, "reasoning") && json.Unmarshal(request["reasoning"], &reasoning) != nil {
		return backend.Refuse("reasoning", "must be an object, and reasoning.effort a string")
	}
	if reasoning.Effort != nil {
		chat["reasoning_effort"] = backend.Encode(*reasoning.Effort)
	}
	var include []string
	_ = json.Unmarshal(request["include"], &include) // check has
	if slices.Contains(include, "message.output_text.logprobs") {
		chat["logprobs"] = json.RawMessage("true")
		if !backend.Given(request, "top_logprobs") {
			chat["top_logprobs"] = json.RawMessage("0")
		}
	} else {
		delete(chat, "top_logprobs")
	}
	return nil
}

// tools gives tools and their choice the form of chat completions, where what
// describes a function is within.
func tools(request, chat fields) *backend.Error {
	var all []fields
	if backend.Given(request, "tools") && json.Unmarshal(request["tools"], &all) != nil {
		return backend.Refuse("tools", "must be a list of objects")
	}
	within := make([]map[string]any, len(all))
	for i, tool := range all {
		var kind string
		if _ = json.Unmarshal(tool["type"], &kind); kind != "function" {
			return backend.Refuse(fmt.Sprintf("tools[%d].type", i), "%.40q; only functions can be called here", kind)
		}
		function := maps.Clone(tool)
		delete(function, "type")
		within[i] = map[string]any{"type": "function", "function": function}
	}
	delete(chat, "tools")
	if len(all) > 0 {
		chat["tools"] = backend.Encode(within)
	}
	var choice struct {
		Type  string `json:"type"`
		Name  string `json:"name"`
		Mode  string `json:"mode"`
		Tools []struct {
			Type string `json:"type"`
			Name string `json:"name"`
		} `json:"tools"`
	}
	if raw := request["tool_choice"]; !backend.Given(request, "tool_choice") || raw[0] == '"' {
		return nil // the same in both
	} else if json.Unmarshal(raw, &choice) != nil {
		return backend.Refuse("tool_choice", "must be a string or an object")
	}
	named := func(kind, name string) map[string]any {
		return map[string]any{"type": kind, "function": map[string]string{"name": name}}
	}
	switch choice.Type {
	case "function":
		if !slices.ContainsFunc(all, func(t fields) bool {
			var name string
			return json.Unmarshal(t["name"], &name) == nil && name == choice.Name
		}) {
			return backend.Refuse("tool_choice.name", "there is no tool %.60q", choice.Name)
		}
		chat["tool_choice"] = backend.Encode(named("function", choice.Name))
	case "allowed_tools":
		list := make([]map[string]any, len(choice.Tools))
		for i, t := range choice.Tools {
			list[i] = named(t.Type, t.Name)
		}
		chat["tool_choice"] = backend.Encode(map[string]any{
			"type": "allowed_tools", "allowed_tools": map[string]any{"mode": choice.Mode, "tools": list},
		})
	default:
		return backend.Refuse("tool_choice.type", "%.40q; must be function or allowed_tools", choice.Type)
	}
	return nil
}
