package llamacpp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/dialect"
)

// ask describes them to a model whose template has no tools.
const ask = "You can call functions. These are the functions, with the JSON Schema of their parameters:\n%s\n" +
	"To call one, answer with a JSON object and nothing else: {\"name\": \"the function's name\", \"arguments\": {the arguments}}"

// orAnswer follows it where the model need not call any.
const orAnswer = "\nTo answer without a call, write the JSON object {\"response\": the answer}"

// byGrammar has the model call a function where its template has none: the functions
// are described in a system message, and a schema lets the model write nothing but a
// call or, where it need not call, an answer.
func byGrammar(c *dialect.Calls, r *backend.Request) (*called, *backend.Error) {
	f := maps.Clone(r.Fields)
	form := &called{stream: r.Stream, must: c.Mode == dialect.Required}
	if form.stream {
		var options struct {
			Usage bool `json:"include_usage"`
		}
		_ = json.Unmarshal(f["stream_options"], &options) // not said
		form.usage = options.Usage
	}
	answer := json.RawMessage(`{"type":"string"}`)
	if backend.Given(f, "response_format") {
		var asked struct {
			Type   string `json:"type"`
			Schema struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"json_schema"`
		}
		if json.Unmarshal(f["response_format"], &asked) != nil {
			return nil, backend.Refuse("response_format", "must be an object")
		}
		switch asked.Type {
		case "json_object":
			answer = json.RawMessage(`{"type":"object"}`)
		case "json_schema":
			answer = asked.Schema.Schema
		}
	}
	text := fmt.Sprintf(ask, backend.Encode(c.Functions))
	if !form.must {
		text += orAnswer
	}
	messages, fault := instruct(f["messages"], text)
	if fault != nil {
		return nil, fault
	}
	f["messages"] = messages
	f["response_format"] = backend.Encode(map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": "call", "schema": schema(c, form.must, answer)}})
	for _, name := range []string{"tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options"} {
		delete(f, name)
	}
	r.Fields = f
	return form, nil
}

// schema is that of a call, or of an answer.
func schema(c *dialect.Calls, must bool, answer json.RawMessage) any {
	object := func(properties map[string]any) map[string]any {
		return map[string]any{
			"type": "object", "properties": properties, "required": slices.Sorted(maps.Keys(properties)), "additionalProperties": false,
		}
	}
	within, choices := map[string]json.RawMessage{}, []any{}
	for i, f := range c.Functions {
		name := fmt.Sprintf("arguments%d", i)
		within[name] = json.RawMessage(`{"type":"object"}`)
		if len(f.Parameters) > 0 && string(f.Parameters) != "null" {
			within[name] = moved(f.Parameters, name)
		}
		// Sorted by name, the arguments would come first.
		choices = append(choices, map[string]any{
			"type": "object", "required": []string{"name", "arguments"}, "additionalProperties": false,
			"properties": json.RawMessage(fmt.Sprintf(`{"name":{"const":%s},"arguments":{"$ref":"#/$defs/%s"}}`, backend.Encode(f.Name), name)),
		})
	}
	if !must {
		within["answer"] = moved(answer, "answer")
		choices = append(choices, object(map[string]any{"response": map[string]string{"$ref": "#/$defs/answer"}}))
	}
	return map[string]any{"anyOf": choices, "$defs": within}
}

// moved is a schema that lies below $defs, with its references to itself.
func moved(schema json.RawMessage, name string) json.RawMessage {
	var v any
	if json.Unmarshal(schema, &v) != nil || !bytes.Contains(schema, []byte(`"$ref"`)) {
		return schema
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok && strings.HasPrefix(ref, "#") {
				v["$ref"] = "#/$defs/" + name + strings.TrimPrefix(ref, "#")
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(v)
	return backend.Encode(v)
}

// instruct adds to the system message, or makes one, and writes earlier calls as the
// model is to write them.
func instruct(raw json.RawMessage, text string) (json.RawMessage, *backend.Error) {
	var messages []fields
	if json.Unmarshal(raw, &messages) != nil {
		return nil, backend.Refuse("messages", "must be a list of objects")
	}
	for _, m := range messages {
		var made []struct {
			Function struct {
				Name      string `json:"name"`
				Arguments string `json:"arguments"`
			} `json:"function"`
		}
		if !backend.Given(m, "tool_calls") || json.Unmarshal(m["tool_calls"], &made) != nil {
			continue
		}
		var content string
		_ = json.Unmarshal(m["content"], &content) // null: nothing
		for _, c := range made {
			arguments := json.RawMessage(c.Function.Arguments)
			if !json.Valid(arguments) {
				arguments = backend.Encode(c.Function.Arguments)
			}
			content += string(fmt.Appendf(nil, `{"name": %s, "arguments": %s}`, backend.Encode(c.Function.Name), arguments))
		}
		m["content"] = backend.Encode(content)
		delete(m, "tool_calls")
	}
	if len(messages) > 0 {
		var role, content string
		_ = json.Unmarshal(messages[0]["role"], &role) // no text: another role
		if (role == "system" || role == "developer") && json.Unmarshal(messages[0]["content"], &content) == nil {
			messages[0]["content"] = backend.Encode(content + "\n\n" + text)
			return backend.Encode(messages), nil
		}
	}
	system := fields{"role": json.RawMessage(`"system"`), "content": backend.Encode(text)}
	return backend.Encode(append([]fields{system}, messages...)), nil
}

// called makes calls of what the model wrote.
type called struct {
	stream bool // whether the client wants a stream
	usage  bool // whether that ends with an account
	must   bool // whether it had to call
}

// Unary makes the client's answer. As a stream it has one event for each choice.
func (c *called) Unary(answer []byte) (string, []byte, error) {
	var whole fields
	var choices []fields
	if err := json.Unmarshal(answer, &whole); err != nil {
		return "", nil, fmt.Errorf("an answer of chat completions: %w", err)
	}
	if err := json.Unmarshal(whole["choices"], &choices); err != nil {
		return "", nil, fmt.Errorf("the choices of an answer: %w", err)
	}
	for _, choice := range choices {
		c.read(choice)
	}
	if !c.stream {
		whole["choices"] = backend.Encode(choices)
		return backend.JSON, backend.Encode(whole), nil
	}
	return backend.Events, c.events(whole, choices), nil
}

// read makes a call of a choice's text.
func (c *called) read(choice fields) {
	var message fields
	var text string
	if json.Unmarshal(choice["message"], &message) != nil || json.Unmarshal(message["content"], &text) != nil {
		return
	}
	var made struct {
		Name      *string         `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
		Response  json.RawMessage `json:"response"`
	}
	whole := json.Unmarshal([]byte(text), &made) == nil
	switch {
	case !whole: // cut by a limit
		made.Name, made.Arguments = begun(text)
	case made.Response != nil:
		if made.Response[0] != '"' || json.Unmarshal(made.Response, &text) != nil {
			text = string(made.Response) // in the form that was asked for
		}
		message["content"] = backend.Encode(text)
	}
	if made.Name != nil {
		message["content"] = json.RawMessage("null")
		message["tool_calls"] = backend.Encode([]any{map[string]any{
			"id": backend.NewID("call_"), "type": "function",
			"function": map[string]any{"name": *made.Name, "arguments": compact(made.Arguments)},
		}})
		if string(choice["finish_reason"]) == `"stop"` {
			choice["finish_reason"] = json.RawMessage(`"tool_calls"`)
		}
	} else if !whole {
		message["content"] = backend.Encode(unfinished(text))
	}
	for name, object := range map[string]fields{"refusal": message, "logprobs": choice} {
		if _, ok := object[name]; !ok {
			object[name] = json.RawMessage("null")
		}
	}
	choice["message"] = backend.Encode(message)
}

// compact is JSON without blanks between its parts; what is not whole stays as it is.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}

// begun reads a call that has not come to its end.
func begun(text string) (*string, json.RawMessage) {
	dec := json.NewDecoder(strings.NewReader(text))
	for _, want := range []any{json.Delim('{'), "name"} {
		if t, err := dec.Token(); err != nil || t != want {
			return nil, nil
		}
	}
	t, err := dec.Token()
	name, ok := t.(string)
	if err != nil || !ok {
		return nil, nil
	}
	if t, err = dec.Token(); err != nil || t != "arguments" {
		return &name, nil
	}
	rest := strings.TrimLeft(text[dec.InputOffset():], " \n")
	return &name, json.RawMessage(strings.TrimLeft(strings.TrimPrefix(rest, ":"), " \n"))
}

// unfinished reads an answer that has not come to its end.
func unfinished(text string) string {
	_, value, ok := strings.Cut(text, `"response":`)
	value = strings.TrimLeft(value, " \n")
	if !ok || !strings.HasPrefix(value, `"`) {
		return value
	}
	for cut := len(value); cut > 0; cut-- { // an escape may have been cut, too
		var content string
		if json.Unmarshal([]byte(value[:cut]+`"`), &content) == nil {
			return content
		}
	}
	return ""
}

// events is a whole answer as a stream.
func (c *called) events(whole fields, choices []fields) []byte {
	base := fields{}
	for _, name := range []string{"id", "created", "model", "system_fingerprint"} {
		if raw, ok := whole[name]; ok {
			base[name] = raw
		}
	}
	base["object"] = json.RawMessage(`"chat.completion.chunk"`)
	var out []byte
	emit := func(name string, v any) {
		event := maps.Clone(base)
		event["choices"] = json.RawMessage("[]")
		event[name] = backend.Encode(v)
		out = append(append(append(out, "data: "...), backend.Encode(event)...), "\n\n"...)
	}
	for i, choice := range choices {
		var message fields
		_ = json.Unmarshal(choice["message"], &message) // read has
		var calls []map[string]any
		if json.Unmarshal(message["tool_calls"], &calls) == nil && calls != nil {
			for j := range calls {
				calls[j]["index"] = j
			}
			message["tool_calls"] = backend.Encode(calls)
		}
		emit("choices", []any{map[string]any{"index": i, "delta": message, "finish_reason": nil}})
		emit("choices", []any{map[string]any{"index": i, "delta": map[string]any{}, "finish_reason": choice["finish_reason"]}})
	}
	if c.usage {
		emit("usage", whole["usage"])
	}
	return append(out, "data: [DONE]\n\n"...)
}

// Pass, Rest and Fail are for streams, of which there is none: the backend's is put
// together first.
func (c *called) Pass(p []byte) []byte      { return p }
func (c *called) Rest() []byte              { return nil }
func (c *called) Fail(backend.Error) []byte { return nil }
