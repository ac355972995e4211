package openai

import (
	"bytes"
)

// Message is one message of a conversation.
type Message struct {
	// Role is who speaks.
	Role string
	// Content is the unescaped text. It is nil if the message is not plain text;
	// where there are media beside text, it is the text.
	Content []byte
	// Raw is the message's JSON, or what stands for it.
	Raw []byte
	// Rest is what is rendered of the message beside its role and, if it is one text, its Content, in
	// a form of its own: two messages are rendered alike if role, Rest and such Content are
	// the same. nil: nothing is.
	Rest []byte
	// Media is whether it holds more than text: see Request.Media.
	Media bool
	// Blocks is whether it holds blocks of Anthropic's API that make messages of
	// their own or a call: tool_use, tool_result, thinking.
	Blocks bool

	data int // bytes of Raw that are media
}

// system decodes what stands before the conversation: the instructions
// of Responses, and Anthropic's system, a text or a list of texts.
func (r *Request) system(s *scanner, name []byte) bool {
	if (!r.API.Row().Items || string(name) != "instructions") && (!r.anthropic() || string(name) != "system") {
		return s.skip(1)
	}
	r.instructions = Message{}
	start := s.i
	var content []byte
	ok := true
	switch {
	case s.peek() == '"':
		ok = r.textField(s, &content)
	case s.peek() == '[' && r.anthropic():
		content, ok = r.joined(s)
	default:
		return s.skip(1)
	}
	r.instructions = Message{Role: "system", Content: content, Raw: s.b[start:s.i]}
	if r.anthropic() {
		r.unbill(&r.instructions)
	}
	return ok
}

// joined reads a list of texts as one text.
func (r *Request) joined(s *scanner) ([]byte, bool) {
	var parts parts
	ok := r.list(s, 1, &parts)
	if len(parts.text) == 0 {
		return []byte{}, ok
	}
	return parts.text, ok
}

// Some clients put a line before the system message that changes from request to
// request, "x-anthropic-billing-header: …; cch=a5145;". The engines that know it
// write billed in its place: else no two requests would begin alike.
var (
	billing = []byte("x-anthropic-billing-header:")
	stamp   = []byte("cch=")
	billed  = []byte("fffff")
)

// unbill makes the line what the engines make of it.
func (r *Request) unbill(m *Message) {
	if !bytes.HasPrefix(m.Content, billing) {
		return
	}
	i := bytes.Index(m.Content, stamp)
	end := i + len(stamp) + len(billed)
	if i < 0 || end >= len(m.Content) || m.Content[end] != ';' {
		return
	}
	start := len(r.unescaped)
	r.unescaped = append(r.unescaped, m.Content...)
	m.Content = r.unescaped[start:len(r.unescaped):len(r.unescaped)]
	copy(m.Content[end-len(billed):], billed)
	m.Raw = m.Content
}

// input reads the input of Responses: a text, or items like messages.
func (r *Request) input(s *scanner) bool {
	if s.peek() != '"' {
		return r.messages(s)
	}
	start := s.i
	t, ok := s.string()
	if ok {
		r.Messages = append(r.Messages[:0], Message{Role: "user", Content: r.unescape(t), Raw: s.b[start:s.i]})
	}
	return ok
}

func (r *Request) messages(s *scanner) bool {
	r.Messages, r.Media = r.Messages[:0], r.Media[:0]
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
	start, media := s.i, len(r.Media)
	given, nothing, more := false, false, false
	ok := s.object(2, func(key text) bool {
		list, name := s.peek() == '[', key.raw
		if key.escaped {
			name = r.unescape(key)
		}
		switch {
		case string(name) == "role":
			var role []byte
			ok := r.textField(s, &role)
			m.Role = roleName(role)
			return ok
		case string(name) == "content" && list:
			r.Media = r.Media[:media]
			parts := parts{between: "\n"}
			ok := r.list(s, 3, &parts)
			parts.settle(&m)
			given, nothing, more = true, parts.kept == 0, true
			return ok
		case string(name) == "content":
			given, nothing, m.Blocks = true, false, false
			return r.textField(s, &m.Content)
		}
		more = more || s.peek() != 'n' && !passedOver[string(name)]
		if string(name) == "output" && list { // of a function, in Responses
			return r.list(s, 3, &parts{})
		}
		return s.skip(3)
	})
	m.Raw = s.b[start:s.i]
	m.Media = len(r.Media) > media
	for i := range r.Media[media:] {
		m.data += r.Media[media+i].Bytes
	}
	if r.anthropic() && (nothing || !given && m.Role == "assistant") {
		return ok // the engines pass over it
	}
	if !r.holds() {
		return ok
	}
	if ok && more {
		if m.Rest = r.canonical(m.Raw, true, m.OneText()); string(m.Rest) == "{}" {
			m.Rest = nil
		}
	}
	r.Messages = append(r.Messages, m)
	return ok
}

// OneText reports whether the content is one text.
func (m *Message) OneText() bool { return m.Content != nil && !m.Media && !m.Blocks }

// parts is what a list of parts came to.
type parts struct {
	texts int    // parts that are text
	kept  int    // parts that the engine does not pass over
	text  []byte // all text, the parts joined by between
	// between stands between two texts.
	between string
	// blocks is whether there are some that Message.Blocks is about, media whether
	// there are some of these.
	blocks, media bool
}

// settle says what the list means for a message. One part of text is the same as
// the text alone; more are left to who renders the template, and so is an empty
// one, which is not the same as an empty text to the engines.
func (p *parts) settle(m *Message) {
	m.Content, m.Blocks = nil, p.blocks
	switch {
	case p.blocks:
	case p.media && p.text == nil:
		m.Content = []byte{}
	case p.media, p.texts == 1 && p.kept == 1 && len(p.text) > 0:
		m.Content = p.text
	}
}

// list reads a list of parts. Media are added to the request's.
func (r *Request) list(s *scanner, depth int, p *parts) bool {
	return s.array(depth, func() bool {
		if s.peek() != '{' {
			p.kept++
			return s.skip(depth + 1)
		}
		one := &r.one[depth/2]
		*one = part{}
		ok := r.part(s, depth+1, one)
		if ok {
			r.take(p, one)
		}
		return ok
	})
}

// take adds a part to the list's.
func (r *Request) take(p *parts, one *part) {
	p.kept++
	switch kind := kindOf(one.kind); kind {
	case textPart:
		r.join(p, one.text)
	case blockPart:
		p.blocks = true
	case otherPart:
		if r.anthropic() {
			p.kept-- // the engines pass over it
		}
	default:
		if kind == File && r.anthropic() {
			p.kept-- // the engines pass over it
			return
		}
		p.media = true
		if r.holds() {
			r.Media = append(r.Media, one.media(kind))
		}
	}
}

// join adds a text to those of a list. A single one is not copied.
func (r *Request) join(p *parts, text []byte) {
	p.texts++
	if p.texts == 1 {
		p.text = text
		return
	}
	start := len(r.unescaped)
	r.unescaped = append(append(append(r.unescaped, p.text...), p.between...), text...)
	p.text = r.unescaped[start:len(r.unescaped):len(r.unescaped)]
}

// part is one element of a content that is a list.
type part struct {
	kind   []byte
	text   []byte // nil: none
	source []byte // of media: a URL, or base64; nil: none
	format []byte // of an audio
	low    bool   // whether an image is wanted in low detail
	bytes  int    // of source as sent
}

// part reads one part of a list.
func (r *Request) part(s *scanner, depth int, p *part) bool {
	return s.object(depth, func(key text) bool {
		switch string(key.raw) {
		case "type":
			return r.textField(s, &p.kind)
		case "text":
			return r.textField(s, &p.text)
		case "image_url", "source", "input_audio", "audio_url", "video_url", "file":
			if s.peek() == '{' {
				return s.object(depth+1, func(key text) bool { return r.source(s, key, depth+2, p) })
			}
			return r.sourceText(s, p)
		case "detail":
			return r.detail(s, p)
		case "content", "output": // of a tool's result
			if s.peek() == '[' && depth <= nested {
				return r.list(s, depth+1, &parts{})
			}
		}
		return s.skip(depth + 1)
	})
}

// nested is how deep in a body lists of parts in parts are looked into.
const nested = 4

// source reads a field of the object that says where media are.
func (r *Request) source(s *scanner, key text, depth int, p *part) bool {
	switch string(key.raw) {
	case "url", "data", "file_data":
		return r.sourceText(s, p)
	case "detail":
		return r.detail(s, p)
	case "format":
		return r.textField(s, &p.format)
	}
	return s.skip(depth)
}

func (r *Request) sourceText(s *scanner, p *part) bool {
	start := s.i
	ok := r.textField(s, &p.source)
	p.bytes = s.i - start
	return ok
}

func (r *Request) detail(s *scanner, p *part) bool {
	var level []byte
	ok := r.textField(s, &level)
	p.low = string(level) == "low"
	return ok
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
