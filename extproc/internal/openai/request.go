package openai

import (
	"math"
	"slices"
	"strconv"
)

// Request is what the picker knows of one request. Its slices lie in the body
// or in the Request's own memory: they are valid until the next Parse.
type Request struct {
	// API is the operation.
	API API
	// Model is the id of the model asked for; empty: none or no string.
	Model []byte
	// Stream is whether the answer comes as events.
	Stream bool
	// MaxTokens is the most tokens to generate; -1: no limit given.
	MaxTokens int
	// Choices is how many answers are generated, 1 or more.
	Choices int
	// Messages is the conversation of Chat and Responses; instructions come
	// first, as a system message.
	Messages []Message
	// Prompts is what Completions and Embeddings work on.
	Prompts []Prompt
	// Tools is the JSON of the tools; nil: none.
	Tools []byte
	// Raw is the whole body.
	Raw []byte

	instructions Message
	unescaped    []byte // texts that held escapes
}

// Message is one message of a conversation.
type Message struct {
	// Role is who speaks.
	Role string
	// Content is the unescaped text; nil if the message is not plain text.
	Content []byte
	// Raw is the message's JSON.
	Raw []byte
}

// Prompt is one text of Completions or Embeddings.
type Prompt struct {
	// Text is unescaped; nil if the client sent token ids.
	Text []byte
	// IDs is the number of token ids sent instead of a text.
	IDs int
}

// Parse reads body, which must stay unchanged while r is in use.
func (r *Request) Parse(api API, body []byte) *Error {
	*r = Request{
		API: api, Raw: body, MaxTokens: -1, Choices: 1,
		Messages: r.Messages[:0], Prompts: r.Prompts[:0], unescaped: r.unescaped[:0],
	}
	s := &scanner{b: body}
	s.space()
	ok := s.object(0, func(key text) bool { return r.field(s, key) })
	s.space()
	if !ok || s.i != len(body) {
		return NotJSON(s.i)
	}
	if r.instructions.Content != nil {
		r.Messages = slices.Insert(r.Messages, 0, r.instructions)
	}
	return nil
}

// Forget lets go of the body, so that r can wait for the next one.
func (r *Request) Forget() {
	messages, prompts, unescaped := r.Messages, r.Prompts, r.unescaped
	if cap(messages) > keepEntries {
		messages = nil
	}
	if cap(prompts) > keepEntries {
		prompts = nil
	}
	if cap(unescaped) > keepText {
		unescaped = nil
	}
	clear(messages)
	clear(prompts)
	*r = Request{Messages: messages[:0], Prompts: prompts[:0], unescaped: unescaped[:0]}
}

// What Forget keeps at most for the next body: messages or prompts, and bytes
// of text.
const (
	keepEntries = 4096
	keepText    = 1 << 20
)

// field reads one field of the body. The last of several with the same name
// counts, as it does in the engines.
func (r *Request) field(s *scanner, key text) bool {
	switch string(r.plain(key)) {
	case "model":
		return r.textField(s, &r.Model)
	case "stream":
		r.Stream = s.peek() == 't'
	case "max_tokens", "max_completion_tokens", "max_output_tokens":
		return s.integer(&r.MaxTokens, -1, math.MaxInt32)
	case "n":
		return s.integer(&r.Choices, 1, 128)
	case "tools":
		return r.tools(s)
	case "messages":
		return r.messages(s)
	case "input":
		if r.API == Responses {
			return r.input(s)
		}
		return r.prompts(s)
	case "prompt":
		return r.prompts(s)
	case "instructions":
		return r.system(s)
	}
	return s.skip(1)
}

// plain returns the text that t stands for.
func (r *Request) plain(t text) []byte {
	if !t.escaped {
		return t.raw
	}
	start := len(r.unescaped)
	r.unescaped = unescape(r.unescaped, t.raw)
	return r.unescaped[start:len(r.unescaped):len(r.unescaped)]
}

// textField reads a string into dst; any other value leaves dst nil.
func (r *Request) textField(s *scanner, dst *[]byte) bool {
	*dst = nil
	if s.peek() != '"' {
		return s.skip(1)
	}
	t, ok := s.string()
	if ok {
		*dst = r.plain(t)
	}
	return ok
}

// integer reads a number into dst if it is a whole one of the range; any other
// value is left to the engine.
func (s *scanner) integer(dst *int, least, most int) bool {
	start := s.i
	if !s.skip(1) {
		return false
	}
	if n, err := strconv.Atoi(string(s.b[start:s.i])); err == nil {
		*dst = min(max(n, least), most)
	}
	return true
}

func (r *Request) tools(s *scanner) bool {
	start := s.i
	ok := s.skip(1)
	r.Tools = nil
	if ok && s.b[start] == '[' {
		r.Tools = s.b[start:s.i]
	}
	return ok
}

// system reads the instructions of Responses.
func (r *Request) system(s *scanner) bool {
	r.instructions = Message{}
	start := s.i
	if r.API != Responses || s.peek() != '"' {
		return s.skip(1)
	}
	t, ok := s.string()
	if ok {
		r.instructions = Message{Role: "system", Content: r.plain(t), Raw: s.b[start:s.i]}
	}
	return ok
}

// input reads the input of Responses: a text, or items like messages.
func (r *Request) input(s *scanner) bool {
	if s.peek() != '"' {
		return r.messages(s)
	}
	start := s.i
	t, ok := s.string()
	if ok {
		r.Messages = append(r.Messages[:0], Message{Role: "user", Content: r.plain(t), Raw: s.b[start:s.i]})
	}
	return ok
}

func (r *Request) messages(s *scanner) bool {
	r.Messages = r.Messages[:0]
	if s.peek() != '[' {
		return s.skip(1)
	}
	return s.array(1, func() bool {
		if s.peek() != '{' {
			return s.skip(2)
		}
		return r.message(s)
	})
}

func (r *Request) message(s *scanner) bool {
	var m Message
	start := s.i
	ok := s.object(2, func(key text) bool {
		switch {
		case string(key.raw) == "role":
			var role []byte
			ok := r.textField(s, &role)
			m.Role = roleName(role)
			return ok
		case string(key.raw) == "content" && s.peek() == '[':
			return r.parts(s, &m.Content)
		case string(key.raw) == "content":
			return r.textField(s, &m.Content)
		default:
			return s.skip(3)
		}
	})
	m.Raw = s.b[start:s.i]
	r.Messages = append(r.Messages, m)
	return ok
}

// parts reads content that is a list. One part of text is the same as the text
// alone; anything more is left to who renders the template.
func (r *Request) parts(s *scanner, content *[]byte) bool {
	n, found := 0, []byte(nil)
	ok := s.array(3, func() bool {
		n++
		if s.peek() != '{' {
			return s.skip(4)
		}
		return r.part(s, &found)
	})
	*content = nil
	if n == 1 {
		*content = found
	}
	return ok
}

// part reads one part of a content list; found is its text if it is one.
func (r *Request) part(s *scanner, found *[]byte) bool {
	textual := false
	ok := s.object(4, func(key text) bool {
		switch string(key.raw) {
		case "text":
			return r.textField(s, found)
		case "type":
			var kind []byte
			ok := r.textField(s, &kind)
			textual = string(kind) == "text" || string(kind) == "input_text" || string(kind) == "output_text"
			return ok
		default:
			return s.skip(5)
		}
	})
	if !textual {
		*found = nil
	}
	return ok
}

// prompts reads a text, a list of texts, token ids, or a list of lists of ids.
func (r *Request) prompts(s *scanner) bool {
	r.Prompts = r.Prompts[:0]
	if s.peek() != '[' {
		return r.prompt(s, 1)
	}
	ids := 0
	ok := s.array(1, func() bool {
		switch c := s.peek(); {
		case c == '"':
			return r.prompt(s, 2)
		case c == '[':
			n, ok := s.count(2)
			r.Prompts = append(r.Prompts, Prompt{IDs: n})
			return ok
		default:
			ids++
			return s.skip(2)
		}
	})
	if ids > 0 {
		r.Prompts = append(r.Prompts, Prompt{IDs: ids})
	}
	return ok
}

func (r *Request) prompt(s *scanner, depth int) bool {
	if s.peek() != '"' {
		return s.skip(depth)
	}
	t, ok := s.string()
	if ok {
		r.Prompts = append(r.Prompts, Prompt{Text: r.plain(t)})
	}
	return ok
}

// count moves past an array and returns its length.
func (s *scanner) count(depth int) (int, bool) {
	n := 0
	ok := s.array(depth, func() bool {
		n++
		return s.skip(depth + 1)
	})
	return n, ok
}

// roleName returns the role without allocating for the usual ones.
func roleName(b []byte) string {
	switch string(b) {
	case "user":
		return "user"
	case "assistant":
		return "assistant"
	case "system":
		return "system"
	case "tool":
		return "tool"
	case "developer":
		return "developer"
	default:
		return string(b)
	}
}

// Estimate guesses the number of prompt tokens: four bytes each, and four
// tokens around every message. It serves until the model's own tokenizer does.
func (r *Request) Estimate() int {
	n := len(r.Tools) / 4
	for _, m := range r.Messages {
		text := m.Content
		if text == nil {
			text = m.Raw
		}
		n += 4 + (len(text)+3)/4
	}
	for _, p := range r.Prompts {
		n += p.IDs + (len(p.Text)+3)/4
	}
	return n
}
