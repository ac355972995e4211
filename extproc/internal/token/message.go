package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// body is what of a message's own JSON a template may see. What else clients
// send is dropped by the backends.
type body struct {
	Content    json.RawMessage `json:"content"`
	ToolCalls  []toolCall      `json:"tool_calls"`
	Reasoning  *string         `json:"reasoning_content"`
	Thoughts   *string         `json:"reasoning"` // the same, as newer clients write it
	Name       string          `json:"name"`
	ToolCallID string          `json:"tool_call_id"`
	Tools      json.RawMessage `json:"tools"` // of a developer's message
}

type toolCall struct {
	ID       string `json:"id,omitempty"`
	Type     string `json:"type"`
	Function struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	} `json:"function"`
}

// contentPart is an element of a content that is a list.
type contentPart struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

var (
	errMedia   = errors.New("content that is not text")
	errRefused = errors.New("the backend refuses such a conversation")
)

// parts decodes a content that is a list; a string is a list of one. Parts of
// responses ("input_text", "output_text") count as text.
func (b *body) parts() (parts []contentPart, list bool, err error) {
	raw := bytes.TrimSpace(b.Content)
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, false, nil
	}
	if raw[0] == '"' {
		var s string
		err := json.Unmarshal(raw, &s)
		return []contentPart{{Type: "text", Text: s}}, false, err
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, false, err
	}
	for i := range parts {
		switch parts[i].Type {
		case "text", "input_text", "output_text":
			parts[i].Type = "text"
		default:
			return nil, false, errMedia
		}
	}
	return parts, true, nil
}

// itemised is whether parts have the types of Responses' items, which vLLM refuses in chat
// completions.
func (b *body) itemised() bool {
	return bytes.Contains(b.Content, []byte(`"input_text"`)) || bytes.Contains(b.Content, []byte(`"output_text"`))
}

// empty is whether a message has neither content nor calls, which llama.cpp refuses.
func (b *body) empty() bool { return len(b.Content) == 0 && len(b.ToolCalls) == 0 }

// kept is the parts that the backend joins to one text: vLLM drops empty ones.
func (t *template) kept(parts []contentPart) []contentPart {
	if t.llama {
		return parts
	}
	return slices.DeleteFunc(slices.Clone(parts), func(p contentPart) bool { return p.Text == "" })
}

// join makes one text of a list's parts. Like the backend it forgets parts that
// are empty before the first that isn't.
func join(parts []contentPart, separator string) string {
	var out strings.Builder
	for _, p := range parts {
		if out.Len() > 0 {
			out.WriteString(separator)
		}
		out.WriteString(p.Text)
	}
	return out.String()
}

// asLists is whether contents of a role are given to the template as lists, whatever they
// are in the request.
func (t *template) asLists(role string) bool {
	switch {
	case t.llama || !t.known:
		return t.onlyTyped
	case t.vllm:
		return t.keepsLists(role)
	}
	return false
}

// keepsLists is whether an engine that is known gives the template lists of a role as they are.
func (t *template) keepsLists(role string) bool {
	return t.lists == yes && !(role == "tool" && t.habits.results == resultsJoined)
}

// flat is the text that the engine makes of a list of texts.
func (t *template) flat(parts []contentPart) string {
	if t.llama || t.habits.join != " " {
		return join(t.kept(parts), "\n")
	}
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.Text
	}
	return strings.Join(texts, " ")
}

// message is how a plain message is given to the template.
func (t *template) message(role, content string) *jinja.Dict {
	if t.asLists(role) {
		return object("role", role, "content", typed([]contentPart{{Type: "text", Text: content}}))
	}
	return object("role", role, "content", content)
}

// object makes a dictionary of keys and values in turn.
func object(pairs ...any) *jinja.Dict {
	d := jinja.NewDict(len(pairs) / 2)
	for i := 0; i < len(pairs); i += 2 {
		d.Set(pairs[i].(string), pairs[i+1])
	}
	return d
}

func typed(parts []contentPart) any {
	out := make([]any, len(parts))
	for i, p := range parts {
		out[i] = object("type", p.Type, "text", p.Text)
	}
	return jinja.NewList(out...)
}

// full is how a message with all its parts is given to the template.
func (t *template) full(role string, msg *Message) (*jinja.Dict, error) {
	b, err := msg.body()
	if err != nil {
		return nil, err
	}
	if t.llama && b.empty() {
		return nil, errRefused
	}
	parts, list, err := b.parts()
	if err != nil {
		return nil, err
	}
	m := t.message(role, t.flat(parts))
	switch {
	case t.llama || !t.known:
		if list && (t.typed || t.onlyTyped) {
			m.Set("content", typed(parts))
		}
	case t.asLists(role), list && t.keepsLists(role):
		m.Set("content", typed(parts)) // of no content the empty list
	}
	t.setThoughts(m, role, b)
	if b.Name != "" && (role != "user" || t.habits.join != " ") {
		m.Set("name", b.Name)
	}
	if b.ToolCallID != "" && (role == "tool" || !t.vllm) {
		m.Set("tool_call_id", b.ToolCallID)
	}
	if len(b.ToolCalls) > 0 && (role == "assistant" || !t.vllm) {
		m.Set("tool_calls", t.calls(b.ToolCalls))
	}
	return m, nil
}

func (t *template) calls(calls []toolCall) any {
	var out []any
	for _, c := range calls {
		if t.habits.form == yes {
			f := object("arguments", t.arguments(c.Function.Arguments), "name", c.Function.Name)
			out = append(out, object("id", c.ID, "function", f, "type", "function"))
			continue
		}
		call := object(
			"type", "function",
			"function", object("name", c.Function.Name, "arguments", t.arguments(c.Function.Arguments)),
		)
		if c.ID != "" {
			call.Set("id", c.ID)
		}
		out = append(out, call)
	}
	return jinja.NewList(out...)
}

// ordinary is whether calls have all fields that vLLM knows and no others, which it would
// keep, and arguments that are texts.
func ordinary(raw []byte) bool {
	var m struct {
		Calls []map[string]json.RawMessage `json:"tool_calls"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return false
	}
	for _, c := range m.Calls {
		var f map[string]*string // all are texts
		if len(c) != 3 || c["id"] == nil || c["type"] == nil || json.Unmarshal(c["function"], &f) != nil || len(f) != 2 || f["name"] == nil || f["arguments"] == nil {
			return false
		}
	}
	return true
}

// arguments of a call come as JSON in a string. Templates that can handle an
// object get one.
func (t *template) arguments(raw json.RawMessage) any {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	if t.habits.form == yes { // what is no object becomes an empty one
		if v, err := jinja.FromJSON([]byte(text)); err == nil {
			if _, ok := v.(*jinja.Dict); ok {
				return v
			}
		}
		return jinja.NewDict(0)
	}
	if t.objectArguments {
		if v, err := jinja.FromJSON([]byte(text)); err == nil {
			return v
		}
	}
	return text
}

// body decodes a message's own JSON. Content wins over what that says.
func (m *Message) body() (*body, error) {
	b := &body{}
	if len(m.Raw) > 0 {
		if err := json.Unmarshal(m.Raw, b); err != nil {
			return nil, err
		}
	}
	if m.Content != nil {
		b.Content, _ = json.Marshal(string(m.Content))
	}
	return b, nil
}

// toolList is how a request's tools are given to the template: llama.cpp keeps
// three fields of each.
func toolList(raw []byte) (any, error) {
	var tools []struct {
		Function struct {
			Name        string          `json:"name"`
			Description string          `json:"description"`
			Parameters  json.RawMessage `json:"parameters"`
		} `json:"function"`
	}
	if err := json.Unmarshal(raw, &tools); err != nil {
		return nil, err
	}
	if len(tools) == 0 {
		return nil, nil
	}
	out := make([]any, len(tools))
	for i, t := range tools {
		var parameters any = jinja.NewDict(0)
		if raw := t.Function.Parameters; len(raw) > 0 && string(raw) != "null" {
			var err error
			if parameters, err = jinja.FromJSON(raw); err != nil {
				return nil, err
			}
		}
		out[i] = object("type", "function", "function", object(
			"name", t.Function.Name, "description", t.Function.Description, "parameters", parameters,
		))
	}
	return jinja.NewList(out...), nil
}

// toolsOfVLLM is how vLLM gives a request's tools to the template: the fields that it knows,
// in its order, null where there are none but for the last two.
func toolsOfVLLM(raw []byte) (any, error) {
	var tools []struct {
		Function map[string]json.RawMessage `json:"function"`
		Defer    json.RawMessage            `json:"defer_loading"`
	}
	if err := json.Unmarshal(raw, &tools); err != nil {
		return nil, err
	}
	out := make([]any, len(tools))
	for i, t := range tools {
		f := jinja.NewDict(4)
		for _, name := range [...]string{"name", "description", "parameters", "strict", "defer_loading"} {
			v, err := valueOf(t.Function[name])
			if err != nil {
				return nil, err
			}
			if v != nil || name != "strict" && name != "defer_loading" {
				f.Set(name, v)
			}
		}
		out[i] = object("type", "function", "function", f)
		if given(t.Defer) {
			return nil, errRefused // it goes to two places
		}
	}
	if len(out) == 0 {
		return nil, errRefused
	}
	return jinja.NewList(out...), nil
}

// valueOf decodes a field; nil: there is none.
func valueOf(raw json.RawMessage) (any, error) {
	if !given(raw) {
		return nil, nil
	}
	return jinja.FromJSON(raw)
}

// learn finds out by rendering what kind of messages the template takes.
func (t *template) learn() {
	const mark = "Zq0xW"
	one := func(content any) string {
		out, _ := t.render(&input{messages: []*jinja.Dict{object("role", "user", "content", content)}})
		return out
	}
	asText, asList := one(mark), one(typed([]contentPart{{Type: "text", Text: mark}}))
	t.onlyTyped = !strings.Contains(asText, mark) && strings.Contains(asList, mark)
	t.typed = strings.Contains(asText, mark) && asText == asList
	out, err := t.render(&input{messages: []*jinja.Dict{t.message("system", mark), t.message("user", "x")}})
	t.noSystem = err != nil || !strings.Contains(out, mark)
	t.objectArguments = t.takesObjects()
	t.usesTools = t.mentions("tools")
	t.own = t.llama && t.handledApart()
	t.extras = slices.DeleteFunc([]string{"tool_calls", "reasoning", "name", "tool_call_id"}, func(key string) bool {
		if key == "reasoning" {
			return !t.own && !t.mentions(key)
		}
		return !t.mentions("."+key) && !t.mentions("'"+key+"'") && !t.mentions(`"`+key+`"`)
	})
}

// takesObjects says whether a call's arguments may be an object.
func (t *template) takesObjects() bool {
	if !t.mentions("tool_calls") {
		return false
	}
	const mark = "Zq1xW"
	call := object("id", "call00001", "type", "function", "function", object("name", "f", "arguments", object("k", mark)))
	m := t.message("assistant", "")
	m.Set("tool_calls", jinja.NewList(call))
	out, err := t.render(&input{messages: []*jinja.Dict{t.message("user", "x"), m, t.message("user", "y")}})
	return err == nil && strings.Contains(out, mark)
}

// stripBOS removes the token that the backend itself puts first.
func (t *template) stripBOS(prompt string) string {
	if t.addBOS {
		prompt = strings.TrimPrefix(prompt, t.bos)
	}
	if t.addEOS {
		prompt = strings.TrimSuffix(prompt, t.eos)
	}
	return prompt
}

// trim takes white space off as the template's engine does.
func (t *template) trim(s string) string {
	if t.llama {
		return strings.Trim(s, " \t\n\v\f\r")
	}
	return strings.TrimFunc(s, jinja.IsSpace)
}

// apart lists marks of templates that llama.cpp has code of its own for, beside
// rendering them: each entry is a set of texts that occur together.
var apart = [][]string{
	{"[SYSTEM_PROMPT]", "[TOOL_CALLS]", "[ARGS]"}, {"<|channel|>"}, {"<atem:function_calls>"}, {">>>all"},
	{"<|tool_calls_section_begin|>"}, {"<|open|>", "<|close|>"}, {"<|ifm|im_start|>"}, {"<role>ASSISTANT</role>"},
	{"<|START_TEXT|>"}, {"<|tool_list_start|>"}, {"List of tools: ["}, {"<|role_sep|>", "<|message_sep|>"},
	{"]<]minimax[>["}, {"dsml_token"}, {"'<|tool_call>call:'"}, {"Tool usage guidelines:", "<param name="},
	{"[source_lang_code]"}, {"<tool_call>", "<function=", "<parameter="},
}

func (t *template) handledApart() bool {
	for _, marks := range apart {
		if !slices.ContainsFunc(marks, func(mark string) bool { return !t.mentions(mark) }) {
			return true
		}
	}
	return false
}
