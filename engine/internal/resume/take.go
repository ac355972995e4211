package resume

import (
	"bytes"
	"encoding/json"
)

// Whole returns how many bytes of b are whole events, of which each ends with an empty line.
func Whole(b []byte) int {
	end := 0
	if i := bytes.LastIndex(b, []byte("\n\n")); i >= 0 {
		end = i + 2
	}
	if i := bytes.LastIndex(b, []byte("\r\n\r\n")); i >= 0 {
		end = max(end, i+4)
	}
	return end
}

// Take takes whole events of the first stream, which are delivered as they are.
func (s *Stream) Take(events []byte) {
	if s.why != nil && s.done {
		return
	}
	if s.raw = append(s.raw, events...); len(s.raw) > folded {
		s.fold()
	}
}

// fold takes the text out of events.
func (s *Stream) fold() {
	for data := range dataOf(s.raw) {
		if s.form == Message {
			s.message(data)
		} else {
			s.chunk(data)
		}
	}
	s.raw = s.raw[:0]
}

// dataOf calls yield with the data of each event.
func dataOf(events []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for line := range bytes.Lines(events) {
			if data, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data:")); ok && !yield(bytes.TrimSpace(data)) {
				return
			}
		}
	}
}

// delta is what a chunk adds to a choice.
type delta struct {
	Index int    `json:"index"`
	Text  string `json:"text"`
	Delta struct {
		Content   string          `json:"content"`
		Reasoning string          `json:"reasoning_content"`
		Thoughts  string          `json:"reasoning"` // its newer name
		Calls     json.RawMessage `json:"tool_calls"`
		Refusal   string          `json:"refusal"`
	} `json:"delta"`
	Finish string `json:"finish_reason"`
}

// account is that of an answer, in the forms of both APIs.
type account struct {
	Prompt     uint64 `json:"prompt_tokens"`
	Completion uint64 `json:"completion_tokens"`
	Input      uint64 `json:"input_tokens"`
	Output     uint64 `json:"output_tokens"`
	CacheRead  uint64 `json:"cache_read_input_tokens"`
	CacheMade  uint64 `json:"cache_creation_input_tokens"`
}

// common are the fields that all events of one answer have the same.
var common = []string{"id", "created", "model", "system_fingerprint", "object"}

// chunk takes an event of completions, chat or not.
func (s *Stream) chunk(data []byte) {
	if string(data) == "[DONE]" {
		s.done = true
		return
	}
	var e struct {
		Choices []delta  `json:"choices"`
		Usage   *account `json:"usage"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		s.fail(ErrForm)
		return
	}
	if s.head == nil && len(e.Choices) > 0 {
		var all fields
		_ = json.Unmarshal(data, &all) // it is an object
		s.head = fields{}
		for _, name := range common {
			if v, ok := all[name]; ok {
				s.head[name] = v
			}
		}
	}
	for i := range e.Choices {
		s.grow(&e.Choices[i])
	}
	if e.Usage != nil {
		s.counted(e.Usage)
	}
}

// grow adds to a choice.
func (s *Stream) grow(d *delta) {
	if d.Index < 0 || d.Index >= len(s.choices) {
		s.fail(ErrForm)
		return
	}
	c := s.choices[d.Index]
	c.begun = true
	if s.add(d.Delta.Reasoning+d.Delta.Thoughts, d.Delta.Content+d.Text, c); d.Delta.Refusal != "" {
		s.fail(ErrForm)
	}
	c.called = c.called || len(d.Delta.Calls) > len("null")
	c.finished = c.finished || d.Finish != ""
}

// add keeps text. Reasoning behind content has no place in a prompt.
func (s *Stream) add(reasoning, content string, c *choice) {
	if s.size += len(reasoning) + len(content); s.size > Most {
		s.fail(ErrLong)
		for _, c := range s.choices {
			c.reasoning.Reset()
			c.content.Reset()
		}
		return
	}
	if s.why != nil {
		return
	}
	if reasoning != "" && c.content.Len() > 0 {
		s.fail(ErrForm)
		return
	}
	c.reasoning.WriteString(reasoning)
	c.content.WriteString(content)
}

// counted takes an account: where servers give one to each choice, it is that of one which
// has just finished.
func (s *Stream) counted(a *account) {
	s.prompt = max(s.prompt, a.Prompt, a.Input+a.CacheRead+a.CacheMade)
	for _, c := range s.choices {
		if c.finished && !c.counted {
			c.counted, c.completion = true, max(a.Completion, a.Output)
			return
		}
	}
	if len(s.choices) == 1 {
		s.choices[0].completion = max(s.choices[0].completion, a.Completion, a.Output)
	}
}

func (s *Stream) fail(why error) {
	if s.why == nil {
		s.why = why
	}
}

// event is one of Anthropic's messages.
type event struct {
	Type  string `json:"type"`
	Index int    `json:"index"`
	Block struct {
		Type string `json:"type"`
	} `json:"content_block"`
	Delta struct {
		Text     string  `json:"text"`
		Thinking string  `json:"thinking"`
		Reason   *string `json:"stop_reason"`
	} `json:"delta"`
	Message struct {
		Usage *account `json:"usage"`
	} `json:"message"`
	Usage *account `json:"usage"`
}

// message takes an event of Anthropic's messages.
func (s *Stream) message(data []byte) {
	var e event
	if json.Unmarshal(data, &e) != nil {
		s.fail(ErrForm)
		return
	}
	c := s.choices[0]
	switch e.Type {
	case "message_start":
		c.begun = true
		if u := e.Message.Usage; u != nil {
			s.prompt = max(s.prompt, u.Input+u.CacheRead+u.CacheMade)
		}
	case "content_block_start":
		s.blocks, s.open = s.blocks+1, e.Block.Type
		c.called = c.called || e.Block.Type == "tool_use"
		if e.Block.Type != "text" && e.Block.Type != "thinking" && e.Block.Type != "tool_use" {
			s.fail(ErrForm)
		}
	case "content_block_delta":
		s.add(e.Delta.Thinking, e.Delta.Text, c)
	case "content_block_stop":
		s.open = ""
	case "message_delta":
		c.finished = c.finished || e.Delta.Reason != nil
		if e.Usage != nil {
			s.counted(e.Usage)
		}
	case "message_stop":
		s.done = true
	}
}
