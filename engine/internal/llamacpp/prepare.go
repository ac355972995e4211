package llamacpp

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/dialect"
	"millrace.dev/millrace/engine/internal/messages"
	"millrace.dev/millrace/internal/apis"
)

// fields is a JSON object whose values were not decoded.
type fields = map[string]json.RawMessage

// Prepare puts right what the server has otherwise than the API, and asks for a stream
// where a unary answer could not be cancelled.
func (k *Kind) Prepare(a *enginepb.Assignment, r backend.Request) backend.Way {
	if fault := known(r); fault != nil {
		return backend.Way{Refused: fault}
	}
	var w backend.Way
	switch r.API {
	case apis.Chat:
		w = k.chat(r)
	case apis.Responses, apis.InputTokens:
		w = k.overChat(r)
	case apis.Messages, apis.CountTokens:
		w = k.messages(r)
	case apis.Embeddings:
		w = embed(a, r)
	default:
		w = unary(r)
	}
	// It closes the connection after a stream, whatever it says in the headers.
	w.Close = r.Stream || w.Answer == backend.Assemble
	if r.Stream && w.Answer == backend.AsIs {
		w.Continue = k.continues(r, w)
	}
	return w
}

// unknown are the fields that this server would pass over although they change the answer.
var unknown = dialect.Fields{
	apis.Completions: {
		"suffix": "this model continues a text, and fills no gap in it",
		"echo":   "the prompt is not repeated: put it before the answer yourself",
	},
	apis.Embeddings: {
		"dimensions": "the embeddings of this model have one size: leave it out",
	},
}

// bounds are this server's: it tries each alternative of a grammar with each word of its
// vocabulary, and works on prompts in the order in which they came.
var bounds = dialect.Bounds{Choices: 512, Answers: 256}

// known returns why the server can't do what a request asks for.
func known(r backend.Request) *backend.Error {
	if fault := unknown.Refused(r); fault != nil {
		return fault
	}
	if fault := dialect.Unknown(r); fault != nil {
		return fault
	}
	if fault := bounds.Heavy(r); fault != nil {
		return fault
	}
	if r.API == apis.Messages || r.API == apis.CountTokens {
		return knownBlocks(r.Fields)
	}
	return nil
}

// contents are the types of a message's contents that the server reads; it passes over all
// others. Thinking that is redacted can be read by nobody.
var contents = []string{"text", "thinking", "redacted_thinking", "image", "tool_use", "tool_result"}

// knownBlocks returns what of Anthropic's messages the server would pass over.
func knownBlocks(f fields) *backend.Error {
	var tools []struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(f["tools"], &tools) // the server refuses what are none
	for i, t := range tools {
		if t.Type != "" && t.Type != "custom" {
			return backend.Refuse(fmt.Sprintf("tools[%d].type", i), "%.40q; only tools of the client's own can be called here", t.Type)
		}
	}
	var messages []struct {
		Content json.RawMessage `json:"content"`
	}
	_ = json.Unmarshal(f["messages"], &messages)
	for i, m := range messages {
		var content []struct {
			Type string `json:"type"`
		}
		_ = json.Unmarshal(m.Content, &content) // a text is one
		for j, b := range content {
			if !slices.Contains(contents, b.Type) {
				return backend.Refuse(fmt.Sprintf("messages[%d].content[%d].type", i, j), "%.40q can't be read by this model", b.Type)
			}
		}
	}
	return nil
}

// shortAnswer is up to how many tokens an answer may have for a client that leaves
// to save nothing: it ends before the server would notice. To put it together from
// a stream costs more than the rest of the engine's work.
const shortAnswer = 16

// unary asks for a stream where that can be put together.
func unary(r backend.Request) backend.Way {
	w := backend.Way{Body: r.Body}
	n, several := choices(r)
	l := &lines{api: r.API, n: n, several: several}
	// A stream of one chat is what clients expect.
	if several || r.API == apis.Completions || r.API == apis.Chat && !r.Stream {
		w.Reform = l
	}
	switch {
	case several && r.Stream:
		var options struct {
			Usage bool `json:"include_usage"`
		}
		_ = json.Unmarshal(r.Fields["stream_options"], &options) // the server refuses what is none
		l.account = options.Usage
		w.Body, _ = backend.AskUsage(r)
		return w
	case several: // the server's own account is that of one choice
		w.Body, w.Answer, w.Choices = appendStream(r.Body), backend.Assemble, n
		return w
	}
	if long := r.Limit == 0 || r.Limit > shortAnswer; long && r.Completion && !r.Stream && streamable(r.Fields) {
		w.Body, w.Answer = appendStream(r.Body), backend.Assemble
	}
	return w
}

// choices is how many choices a request wants of one prompt, and whether it gets several
// in all.
func choices(r backend.Request) (n int, several bool) {
	n = 1
	if !r.Completion {
		return n, false
	}
	for _, name := range []string{"n_cmpl", "n"} { // as the server takes them
		if backend.Given(r.Fields, name) {
			if json.Unmarshal(r.Fields[name], &n) != nil {
				return 1, false
			}
			break
		}
	}
	var prompts []json.RawMessage
	if r.API == apis.Completions {
		_ = json.Unmarshal(r.Fields["prompt"], &prompts) // one that is no list is one
	}
	lists := len(prompts) > 1 && (prompts[0][0] == '"' || prompts[0][0] == '[')
	return n, n > 1 || lists
}

// chat prepares a request for chat completions.
func (k *Kind) chat(r backend.Request) backend.Way {
	calls, fault := dialect.ReadCalls(r.Fields)
	switch {
	case fault != nil:
		return backend.Way{Refused: fault}
	case calls == nil || calls.Mode == dialect.Never:
		return unary(r)
	case !k.toolless.Load():
		if calls.Apply(&r) {
			r.Body = backend.Encode(r.Fields)
		}
		return unary(r)
	}
	form, fault := byGrammar(calls, &r)
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	r.Body, r.Stream = backend.Encode(r.Fields), false
	w := unary(r)
	w.Other, w.Reform = true, form // an account of several was summed
	return w
}

// messages prepares a request in Anthropic's form. The server makes it one for chat
// completions, as we do where it would pass over what is asked for: tools where the
// model's template has none, and the form of an answer.
func (k *Kind) messages(r backend.Request) backend.Way {
	calls, fault := readUses(&r)
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	if calls && k.toolless.Load() || messages.Bound(r.Fields) {
		return k.overChat(r)
	}
	w := backend.Way{Body: r.Body}
	if r.API == apis.Messages {
		w.Reform = &lines{api: r.API}
	}
	return w
}

// overChat has chat completions answer a request of another API, or count it: the server's
// own streams of responses lack numbers, and what it does not know it passes over.
func (k *Kind) overChat(r backend.Request) backend.Way {
	chat, form, fault := dialect.OverChat(r, "input_tokens")
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	w := k.chat(chat)
	switch w.Path = apis.Chat.Row().Path; {
	case w.Refused != nil:
	case r.API.Row().OnlyCounts():
		w.Path, w.Reform = w.Path+"/input_tokens", form
	default:
		w.Reform = backend.Chain(w.Reform, form)
	}
	return w
}

// readUses reads tools and tool_choice of a message, and reports whether there are tools to
// be called. The server knows no names of tools in tool_choice: the others are taken out,
// and all of them where none is to be called.
func readUses(r *backend.Request) (bool, *backend.Error) {
	if fault := messages.Chosen(r.Fields); fault != nil {
		return false, fault
	}
	var tools []fields
	var choice struct {
		Type string `json:"type"`
		Name string `json:"name"`
	}
	_ = json.Unmarshal(r.Fields["tools"], &tools) // absent: none
	_ = json.Unmarshal(r.Fields["tool_choice"], &choice)
	f := maps.Clone(r.Fields)
	switch choice.Type {
	case "none":
		tools = nil
		delete(f, "tools")
		delete(f, "tool_choice")
	case "tool":
		tools = slices.DeleteFunc(tools, func(t fields) bool {
			var name string
			return json.Unmarshal(t["name"], &name) != nil || name != choice.Name
		})
		f["tools"] = backend.Encode(tools)
	default:
		return len(tools) > 0, nil
	}
	r.Fields, r.Body = f, backend.Encode(f)
	return len(tools) > 0, nil
}

// template asks the server what the model's template knows.
func (k *Kind) template(reply []byte) error {
	var props struct {
		Caps map[string]bool `json:"chat_template_caps"`
	}
	if err := json.Unmarshal(reply, &props); err != nil {
		return fmt.Errorf("props: %w", err)
	}
	tools, known := props.Caps["supports_tools"]
	k.toolless.Store(known && !tools)
	return nil
}
