package messages

import (
	"encoding/json"
	"strings"

	"millrace.dev/millrace/engine/internal/backend"
)

// Form makes the answer of messages of that of chat completions.
type Form struct {
	answer answer
	lines  backend.Lines
	out    []byte // events that were not taken yet

	begun, ended bool
	open         *content // the block that grows; nil: none
	call         int      // the number of the open call in chat completions
	stop         string   // why the model stopped, in chat completions' words
}

// answer is the message of the API.
type answer struct {
	ID       string     `json:"id"`
	Type     string     `json:"type"`
	Role     string     `json:"role"`
	Model    string     `json:"model"`
	Content  []*content `json:"content"`
	Reason   *string    `json:"stop_reason"`
	Sequence *string    `json:"stop_sequence"`
	Usage    usage      `json:"usage"`
}

// usage leaves out of the input what was cached.
type usage struct {
	Input   uint64 `json:"input_tokens"`
	Created uint64 `json:"cache_creation_input_tokens"`
	Cached  uint64 `json:"cache_read_input_tokens"`
	Output  uint64 `json:"output_tokens"`
}

// content is a block of the answer: a text, a reasoning or the use of a tool.
type content struct {
	Type string `json:"type"`
	// Of a text.
	Text *string `json:"text,omitempty"`
	// Of a reasoning. Nobody signs it here.
	Thinking  *string `json:"thinking,omitempty"`
	Signature *string `json:"signature,omitempty"`
	// Of a use.
	ID    string          `json:"id,omitempty"`
	Name  string          `json:"name,omitempty"`
	Input json.RawMessage `json:"input,omitempty"`

	arguments string
}

// The kinds of blocks, as the API names them.
const (
	isText      = "text"
	isReasoning = "thinking"
	isUse       = "tool_use"
)

func newForm(request fields) *Form {
	f := &Form{answer: answer{ID: backend.NewID(idPrefix), Type: "message", Role: "assistant", Content: []*content{}}}
	_ = json.Unmarshal(request["model"], &f.answer.Model) // engine has decoded it
	return f
}

// Unary makes the whole answer: that of its events, which nobody sees.
func (f *Form) Unary(answer []byte) (string, []byte, error) {
	d, err := backend.ChatAnswer(answer)
	if err != nil {
		return "", nil, err
	}
	f.take(&d)
	f.end()
	return backend.JSON, Fill(backend.Encode(f.answer)), nil
}

// Pass makes events of events.
func (f *Form) Pass(p []byte) []byte {
	f.out = f.out[:0]
	f.lines.EachDelta(p, func(d backend.Delta, data string) {
		switch {
		case f.ended:
		case d.Failed:
			f.ended = true
			f.emit("error", map[string]any{"error": map[string]string{"type": "api_error", "message": backend.Message(500, []byte(data))}})
		default:
			f.take(&d)
		}
	})
	return f.out
}

// Rest ends a stream that has come to its end.
func (f *Form) Rest() []byte {
	f.out = f.out[:0]
	f.end()
	return f.out
}

// Fail leaves it to the operation.
func (f *Form) Fail(backend.Error) []byte { return nil }

// take takes an event of chat completions.
func (f *Form) take(d *backend.Delta) {
	if u := d.Account; u != nil {
		f.answer.Usage = usage{Input: u.Prompt - u.Cached, Cached: u.Cached, Output: u.Completion}
	}
	f.begin()
	if d.Reasoning != "" {
		f.grow(isReasoning, d.Reasoning)
	}
	if d.Content != "" {
		f.grow(isText, d.Content)
	}
	for _, call := range d.Calls {
		f.use(call.Index, call.Name, call.Arguments)
	}
	if d.Finish != "" {
		f.stop = d.Finish
	}
}

func (f *Form) begin() {
	if f.begun {
		return
	}
	f.begun = true
	first := f.answer
	first.Usage.Output = 0
	f.emit("message_start", map[string]any{"message": first})
}

// start closes the open block, and opens another.
func (f *Form) start(c *content) {
	f.close()
	f.open = c
	f.answer.Content = append(f.answer.Content, c)
	f.emit("content_block_start", map[string]any{"index": len(f.answer.Content) - 1, "content_block": c})
}

// grow adds to the open block, or opens one of the kind.
func (f *Form) grow(kind, text string) {
	if f.open == nil || f.open.Type != kind {
		c := &content{Type: kind, Text: new(string)}
		if kind == isReasoning {
			c = &content{Type: kind, Thinking: new(string), Signature: new(string)}
		}
		f.start(c)
	}
	if kind == isReasoning {
		*f.open.Thinking += text
		f.grown(map[string]any{"type": "thinking_delta", "thinking": text})
		return
	}
	*f.open.Text += text
	f.grown(map[string]any{"type": "text_delta", "text": text})
}

// use adds to the use of a tool, or opens it.
func (f *Form) use(index int, name, arguments string) {
	if f.open == nil || f.open.Type != isUse || f.call != index {
		f.call = index
		f.start(&content{Type: isUse, ID: backend.NewID("toolu_"), Name: name, Input: json.RawMessage("{}")})
	}
	if arguments != "" {
		f.open.arguments += arguments
		f.grown(map[string]any{"type": "input_json_delta", "partial_json": arguments})
	}
}

func (f *Form) grown(delta any) {
	f.emit("content_block_delta", map[string]any{"index": len(f.answer.Content) - 1, "delta": delta})
}

// close ends the open block. Arguments that a limit has cut are no object: the stream has
// them, the whole answer can't.
func (f *Form) close() {
	c := f.open
	if c == nil {
		return
	}
	f.open = nil
	if c.Type == isUse && strings.HasPrefix(c.arguments, "{") && json.Valid([]byte(c.arguments)) {
		c.Input = json.RawMessage(c.arguments)
	}
	f.emit("content_block_stop", map[string]any{"index": len(f.answer.Content) - 1})
}

// reasons are why a model stops, by chat completions' words.
var reasons = map[string]string{"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}

// end closes what is open and says how it ended.
func (f *Form) end() {
	if f.ended {
		return
	}
	f.begin()
	f.close()
	f.ended = true
	reason, ok := reasons[f.stop]
	if !ok {
		reason = "end_turn"
	}
	f.answer.Reason = &reason
	f.emit("message_delta", map[string]any{"delta": map[string]any{"stop_reason": reason, "stop_sequence": nil}, "usage": f.answer.Usage})
	f.emit("message_stop", map[string]any{})
}

// emit writes an event.
func (f *Form) emit(kind string, v map[string]any) {
	v["type"] = kind
	f.out = backend.Event(f.out, kind, Fill(backend.Encode(v)))
}
