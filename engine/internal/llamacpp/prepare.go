package llamacpp

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/messages"
	"millrace.dev/millrace/engine/internal/responses"
	"millrace.dev/millrace/internal/apis"
)

// fields is a JSON object whose values were not decoded.
type fields = map[string]json.RawMessage

// unknown are the fields of the API, by operation, that the server would pass over
// although they change the answer, and what to do without them.
var unknown = map[apis.API]map[string]string{
	apis.Chat: {
		"functions":          "this model takes tools: describe the functions there",
		"function_call":      "this model takes tool_choice: name the function there",
		"audio":              "this model makes no sound",
		"web_search_options": "this model can't search the web",
		"moderation":         "nothing is moderated here",
		"store":              "answers are not stored here: keep what comes back",
	},
	apis.Completions: {
		"suffix": "this model continues a text, and fills no gap in it",
		"echo":   "the prompt is not repeated: put it before the answer yourself",
	},
	apis.Embeddings: {
		"dimensions": "the embeddings of this model have one size: leave it out",
	},
	apis.Messages: {
		"container":     "nothing runs in a container here",
		"inference_geo": "nobody knows here where that is",
		"mcp_servers":   "no other server is asked from here",
	},
}

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
		w = k.response(r)
	case apis.Messages, apis.CountTokens:
		w = k.messages(r)
	case apis.Embeddings:
		w = embed(a, r)
	default:
		w = unary(r)
	}
	// It closes the connection after a stream, whatever it says in the headers.
	w.Close = r.Stream || w.Answer == backend.Assemble
	return w
}

// known returns why the server can't do what a request asks for.
func known(r backend.Request) *backend.Error {
	for _, name := range slices.Sorted(maps.Keys(unknown[r.API])) {
		if raw := string(r.Fields[name]); backend.Given(r.Fields, name) && raw != "false" && raw != `""` && raw != "{}" {
			return backend.Refuse(name, "%s", unknown[r.API][name])
		}
	}
	switch r.API {
	case apis.Chat:
		if v := string(r.Fields["verbosity"]); backend.Given(r.Fields, "verbosity") && v != `"medium"` {
			return backend.Refuse("verbosity", "%.40s; this model has none but \"medium\": ask for it in a message", v)
		}
		var modalities []string
		if backend.Given(r.Fields, "modalities") && (json.Unmarshal(r.Fields["modalities"], &modalities) != nil || slices.ContainsFunc(modalities, func(m string) bool { return m != "text" })) {
			return backend.Refuse("modalities", "%.60s; this model makes text alone: must be [\"text\"]", r.Fields["modalities"])
		}
	case apis.Completions:
		return bestOf(r.Fields)
	case apis.Messages, apis.CountTokens:
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

// bestOf lets as many completions be made as are returned.
func bestOf(f fields) *backend.Error {
	best, n := 1, 1
	if backend.Given(f, "n") && json.Unmarshal(f["n"], &n) != nil {
		return nil // the server refuses it
	}
	if backend.Given(f, "best_of") && (json.Unmarshal(f["best_of"], &best) != nil || best != 1 && best != n) {
		return backend.Refuse("best_of", "%.40s; as many are made as are returned: must be n, which is %d", f["best_of"], n)
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
	calls, fault := readCalls(r.Fields)
	switch {
	case fault != nil:
		return backend.Way{Refused: fault}
	case calls == nil || calls.mode == never:
		return unary(r)
	case !k.toolless.Load():
		if calls.apply(&r) {
			r.Body = backend.Encode(r.Fields)
		}
		return unary(r)
	}
	form, fault := calls.byGrammar(&r)
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	r.Body, r.Stream = backend.Encode(r.Fields), false
	w := unary(r)
	w.Other, w.Reform = true, form // an account of several was summed
	return w
}

// response prepares a request for a response, which is made one for chat completions:
// the server's own streams lack numbers, and what it does not know it passes over.
func (k *Kind) response(r backend.Request) backend.Way {
	chat, form, fault := responses.Chat(r.Fields)
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	return k.overChat(r, chat, form)
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
		chat, form, fault := messages.Chat(r.Fields)
		if fault != nil {
			return backend.Way{Refused: fault}
		}
		return k.overChat(r, chat, form)
	}
	w := backend.Way{Body: r.Body}
	if r.API == apis.Messages {
		w.Reform = &lines{api: r.API}
	}
	return w
}

// overChat has chat completions answer a request that was made one for them, or count it.
func (k *Kind) overChat(r backend.Request, chat fields, form backend.Reform) backend.Way {
	counts := r.API.Row().OnlyCounts()
	if r.Stream = r.Stream && !counts; r.Stream {
		chat["stream_options"] = json.RawMessage(`{"include_usage":true}`)
	}
	r.Fields, r.Body, r.Completion = chat, backend.Encode(chat), !counts
	w := k.chat(r)
	switch w.Path = apis.Chat.Row().Path; {
	case w.Refused != nil:
	case counts:
		w.Path, w.Reform = w.Path+"/input_tokens", count{r.API}
	default:
		w.Reform = backend.Chain(w.Reform, form)
	}
	return w
}

// count is the answer of an operation that only counts.
type count struct{ api apis.API }

// Unary makes the client's answer of the server's, which is the same for all of them.
func (c count) Unary(answer []byte) (string, []byte, error) {
	var counted struct {
		Tokens *int64 `json:"input_tokens"`
	}
	if err := json.Unmarshal(answer, &counted); err != nil || counted.Tokens == nil {
		return "", nil, fmt.Errorf("a count of tokens: %.80q", answer)
	}
	out := map[string]any{"input_tokens": *counted.Tokens}
	if c.api == apis.InputTokens {
		out["object"] = "response.input_tokens"
	}
	return backend.JSON, backend.Encode(out), nil
}

// Pass, Rest and Fail are for streams, of which there is none.
func (c count) Pass(p []byte) []byte      { return p }
func (c count) Rest() []byte              { return nil }
func (c count) Fail(backend.Error) []byte { return nil }

// readUses reads tools and tool_choice of a message, and reports whether there are tools to
// be called. The server knows no names of tools in tool_choice: the others are taken out,
// and all of them where none is to be called.
func readUses(r *backend.Request) (bool, *backend.Error) {
	var tools []fields
	if backend.Given(r.Fields, "tools") && json.Unmarshal(r.Fields["tools"], &tools) != nil {
		return false, backend.Refuse("tools", "must be a list of objects")
	}
	var choice struct {
		Type string `json:"type"`
		Name string `json:"name"`
	}
	if !backend.Given(r.Fields, "tool_choice") {
		return len(tools) > 0, nil
	}
	if json.Unmarshal(r.Fields["tool_choice"], &choice) != nil {
		return false, backend.Refuse("tool_choice", "must be an object")
	}
	f := maps.Clone(r.Fields)
	switch choice.Type {
	case "auto":
		return len(tools) > 0, nil
	case "none":
		tools = nil
		delete(f, "tools")
		delete(f, "tool_choice")
	case "any":
		if len(tools) == 0 {
			return false, backend.Refuse("tool_choice", "there are no tools")
		}
		return true, nil
	case "tool":
		tools = slices.DeleteFunc(tools, func(t fields) bool {
			var name string
			return json.Unmarshal(t["name"], &name) != nil || name != choice.Name
		})
		if len(tools) == 0 {
			return false, backend.Refuse("tool_choice.name", "there is no tool %.60q", choice.Name)
		}
		f["tools"] = backend.Encode(tools)
	default:
		return false, backend.Refuse("tool_choice.type", "%.40q; must be auto, any, tool or none", choice.Type)
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
