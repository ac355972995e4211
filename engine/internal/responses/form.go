package responses

import (
	"encoding/json"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
)

// Form makes the answer of the Responses API of that of chat completions.
type Form struct {
	answer response
	lines  backend.Lines
	out    []byte // events that were not taken yet

	sequence int
	begun    bool
	open     *output // the item that grows; nil: none
	finish   string  // why the model stopped
	ended    bool
}

// response is the object of the API. What a client asked for comes back in it.
type response struct {
	ID          string          `json:"id"`
	Object      string          `json:"object"`
	Created     int64           `json:"created_at"`
	Completed   *int64          `json:"completed_at"`
	Status      string          `json:"status"`
	Background  bool            `json:"background"`
	Error       *fault          `json:"error"`
	Incomplete  *incomplete     `json:"incomplete_details"`
	Asked       json.RawMessage `json:"instructions"`
	Limit       json.RawMessage `json:"max_output_tokens"`
	Model       string          `json:"model"`
	Output      []*output       `json:"output"`
	Parallel    json.RawMessage `json:"parallel_tool_calls"`
	Previous    json.RawMessage `json:"previous_response_id"`
	Reasoning   json.RawMessage `json:"reasoning"`
	Store       bool            `json:"store"`
	Temperature json.RawMessage `json:"temperature"`
	Text        json.RawMessage `json:"text"`
	Choice      json.RawMessage `json:"tool_choice"`
	Tools       json.RawMessage `json:"tools"`
	TopP        json.RawMessage `json:"top_p"`
	Truncation  string          `json:"truncation"`
	Usage       *usage          `json:"usage,omitempty"`
	Metadata    json.RawMessage `json:"metadata"`
}

type fault struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type incomplete struct {
	Reason string `json:"reason"`
}

type usage struct {
	Input     uint64 `json:"input_tokens"`
	InDetails struct {
		Cached uint64 `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	Output     uint64 `json:"output_tokens"`
	OutDetails struct {
		Reasoning uint64 `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	Total uint64 `json:"total_tokens"`
}

// output is an item of the answer: a message, a reasoning or the call of a function.
type output struct {
	Type   string `json:"type"`
	ID     string `json:"id"`
	Status string `json:"status"`
	// Of a message.
	Role    string     `json:"role,omitempty"`
	Content *[]content `json:"content,omitempty"`
	// Of a reasoning, always empty.
	Summary *[]string `json:"summary,omitempty"`
	// Of a call.
	CallID    string  `json:"call_id,omitempty"`
	Name      string  `json:"name,omitempty"`
	Arguments *string `json:"arguments,omitempty"`

	index int
	call  int // the number of the call in chat completions
}

type content struct {
	Type        string             `json:"type"`
	Text        string             `json:"text"`
	Annotations *[]string          `json:"annotations,omitempty"`
	Logprobs    *[]json.RawMessage `json:"logprobs,omitempty"`
}

// The kinds of items, as the API names them.
const (
	isMessage   = "message"
	isReasoning = "reasoning"
	isCall      = "function_call"
)

// Statuses of a response and of its items.
const (
	inProgress   = "in_progress"
	completed    = "completed"
	isIncomplete = "incomplete"
	failed       = "failed"
)

func newForm(request fields) *Form {
	or := func(name, other string) json.RawMessage {
		if backend.Given(request, name) {
			return request[name]
		}
		return json.RawMessage(other)
	}
	f := &Form{answer: response{
		ID: backend.NewID("resp_"), Object: "response", Created: time.Now().Unix(), Status: inProgress, Output: []*output{},
		Asked: or("instructions", "null"), Limit: or("max_output_tokens", "null"),
		Parallel: or("parallel_tool_calls", "true"), Previous: json.RawMessage("null"),
		Reasoning: or("reasoning", `{"effort":null,"summary":null}`), Temperature: or("temperature", "1"),
		Text: or("text", `{"format":{"type":"text"}}`), Choice: or("tool_choice", `"auto"`), Tools: described(request),
		TopP: or("top_p", "1"), Truncation: "disabled", Metadata: or("metadata", "{}"),
	}}
	_ = json.Unmarshal(request["model"], &f.answer.Model) // engine has decoded it
	return f
}

// described are the tools with all that describes a function: a client need not say it all.
func described(request fields) json.RawMessage {
	var tools []fields
	_ = json.Unmarshal(request["tools"], &tools) // the request was taken
	for _, t := range tools {
		for name, value := range map[string]string{"parameters": "null", "strict": "true"} {
			if _, ok := t[name]; !ok {
				t[name] = json.RawMessage(value)
			}
		}
	}
	if tools == nil {
		return json.RawMessage("[]")
	}
	return backend.Encode(tools)
}

// Unary makes the whole answer: that of its events, which nobody sees.
func (f *Form) Unary(answer []byte) (string, []byte, error) {
	d, err := backend.ChatAnswer(answer)
	if err != nil {
		return "", nil, err
	}
	f.take(&d)
	f.end()
	return backend.JSON, backend.Encode(f.answer), nil
}

// Pass makes events of events.
func (f *Form) Pass(p []byte) []byte {
	f.out = f.out[:0]
	f.lines.EachDelta(p, func(d backend.Delta, data string) {
		if d.Failed {
			f.fail(backend.Message(500, []byte(data)))
			return
		}
		f.take(&d)
	})
	return f.out
}

// Rest ends a stream that has come to its end.
func (f *Form) Rest() []byte {
	f.out = f.out[:0]
	f.end()
	return f.out
}

// Fail ends a stream whose backend was lost.
func (f *Form) Fail(e backend.Error) []byte {
	f.out = f.out[:0]
	f.fail(e.Message)
	return f.out
}

func (f *Form) fail(message string) {
	if f.ended {
		return
	}
	f.begin()
	f.ended = true
	f.answer.Status, f.answer.Error = failed, &fault{Code: "server_error", Message: message}
	f.emit("error", map[string]any{"code": "server_error", "message": message, "param": nil})
	f.emit("response.failed", map[string]any{"response": f.answer})
}

// end closes what is open and says how it ended.
func (f *Form) end() {
	if f.ended {
		return
	}
	f.begin()
	f.ended = true
	f.answer.Status = completed
	if f.finish == "length" {
		f.answer.Status, f.answer.Incomplete = isIncomplete, &incomplete{Reason: "max_output_tokens"}
	}
	f.close(f.answer.Status)
	if f.answer.Status == completed {
		now := time.Now().Unix()
		f.answer.Completed = &now
	}
	f.emit("response."+f.answer.Status, map[string]any{"response": f.answer})
}

func (f *Form) begin() {
	if f.begun {
		return
	}
	f.begun = true
	f.emit("response.created", map[string]any{"response": f.answer})
	f.emit("response.in_progress", map[string]any{"response": f.answer})
}

// take takes an event of chat completions.
func (f *Form) take(d *backend.Delta) {
	f.begin()
	if u := d.Account; u != nil {
		f.answer.Usage = &usage{Input: u.Prompt, Output: u.Completion, Total: u.Prompt + u.Completion}
		f.answer.Usage.InDetails.Cached = u.Cached
	}
	if d.Reasoning != "" {
		f.grow(isReasoning, d.Reasoning, nil)
	}
	if d.Content != "" {
		f.grow(isMessage, d.Content, d.Logprobs)
	}
	for _, call := range d.Calls {
		f.call(call.Index, call.ID, call.Name, call.Arguments)
	}
	if d.Finish != "" {
		f.finish = d.Finish
	}
}

// grow adds text to the open item, or opens one of the kind.
func (f *Form) grow(kind, text string, logprobs []json.RawMessage) {
	if f.open == nil || f.open.Type != kind {
		f.start(kind)
	}
	o := f.open
	c := &(*o.Content)[0]
	c.Text += text
	if kind == isReasoning {
		f.emit("response.reasoning_text.delta", map[string]any{"item_id": o.ID, "output_index": o.index, "content_index": 0, "delta": text})
		return
	}
	*c.Logprobs = append(*c.Logprobs, logprobs...)
	if logprobs == nil {
		logprobs = []json.RawMessage{}
	}
	f.emit("response.output_text.delta", map[string]any{
		"item_id": o.ID, "output_index": o.index, "content_index": 0, "delta": text, "logprobs": logprobs,
	})
}

// start opens a message or a reasoning.
func (f *Form) start(kind string) {
	f.close(completed)
	o := &output{Type: kind, Status: inProgress, Content: &[]content{}, index: len(f.answer.Output)}
	first := content{Type: "output_text", Annotations: &[]string{}, Logprobs: &[]json.RawMessage{}}
	if o.ID, o.Role = backend.NewID("msg_"), "assistant"; kind == isReasoning {
		o.ID, o.Role, o.Summary, first = backend.NewID("rs_"), "", &[]string{}, content{Type: "reasoning_text"}
	}
	f.added(o)
	f.emit("response.content_part.added", map[string]any{"item_id": o.ID, "output_index": o.index, "content_index": 0, "part": first})
	*o.Content = append(*o.Content, first)
}

func (f *Form) added(o *output) {
	f.emit("response.output_item.added", map[string]any{"output_index": o.index, "item": o})
	f.open = o
	f.answer.Output = append(f.answer.Output, o)
}

// call adds to the call of a function, or opens it.
func (f *Form) call(index int, id, name, arguments string) {
	if f.open == nil || f.open.Type != isCall || f.open.call != index {
		f.close(completed)
		if id == "" {
			id = backend.NewID("call_")
		}
		f.added(&output{
			Type: isCall, ID: backend.NewID("fc_"), Status: inProgress, CallID: id, Name: name, Arguments: new(string),
			index: len(f.answer.Output), call: index,
		})
	}
	if o := f.open; arguments != "" {
		*o.Arguments += arguments
		f.emit("response.function_call_arguments.delta", map[string]any{"item_id": o.ID, "output_index": o.index, "delta": arguments})
	}
}

// close ends the open item.
func (f *Form) close(status string) {
	o := f.open
	if o == nil {
		return
	}
	f.open, o.Status = nil, status
	at := func(more map[string]any) map[string]any {
		more["item_id"], more["output_index"] = o.ID, o.index
		if o.Type != isCall {
			more["content_index"] = 0
		}
		return more
	}
	switch o.Type {
	case isCall:
		f.emit("response.function_call_arguments.done", at(map[string]any{"name": o.Name, "arguments": *o.Arguments}))
	case isReasoning:
		f.emit("response.reasoning_text.done", at(map[string]any{"text": (*o.Content)[0].Text}))
	default:
		c := (*o.Content)[0]
		f.emit("response.output_text.done", at(map[string]any{"text": c.Text, "logprobs": *c.Logprobs}))
	}
	if o.Type != isCall {
		f.emit("response.content_part.done", at(map[string]any{"part": (*o.Content)[0]}))
	}
	f.emit("response.output_item.done", map[string]any{"output_index": o.index, "item": o})
}

// emit writes an event, with its number.
func (f *Form) emit(kind string, v map[string]any) {
	v["type"], v["sequence_number"] = kind, f.sequence
	f.sequence++
	f.out = backend.Event(f.out, kind, backend.Encode(v))
}
