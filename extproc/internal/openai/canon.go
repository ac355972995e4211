package openai

import (
	"bytes"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"millrace.dev/millrace/internal/apis"
)

// What follows writes JSON in one form, by what an engine renders of it: two prompts that
// are rendered alike have the same bytes here, however they were written. White space,
// escapes, the order of a message's fields, fields that are null and marks for caches are
// not rendered. The order of fields further inside is: templates write tools' parameters
// and calls' arguments as they came.

// passedOver are the fields of messages, parts, calls and tools that no template shows.
var passedOver = map[string]bool{
	"cache_control": true, "refusal": true, "annotations": true, "logprobs": true, "index": true,
}

// passedOverItems are those of items of Responses, beside them. Their id names the item, not
// the call.
var passedOverItems = map[string]bool{"id": true, "status": true}

// apart are the fields of a body that give its prompt another beginning, or a cache of its
// own, in one engine or another.
var apart = map[string]bool{
	"cache_salt": true, "extra_key": true, "lora_path": true, "lora": true, "chat_template": true, "chat_template_kwargs": true,
	"documents": true, "reasoning_effort": true, "add_special_tokens": true, "truncate_prompt_tokens": true, "mm_processor_kwargs": true, "media_io_kwargs": true,
}

// uncounted are those of them that nobody here makes tokens of.
var uncounted = map[string]bool{"chat_template": true, "documents": true, "add_special_tokens": true, "truncate_prompt_tokens": true}

// Bounds of what is written in this form.
const (
	// mostFields is how many fields of an object are put into order: those of one with more
	// stay in theirs.
	mostFields = 24
	// longText is the length from which a text is written as its hash, in bytes.
	longText = 2048
)

// separate takes a field's value into Apart if it separates prompts. The order in which
// such fields come means nothing.
func (r *Request) separate(s *scanner, name []byte) bool {
	start := s.i
	ok := s.skip(1)
	if !ok || s.b[start] == 'n' {
		return ok
	}
	r.Uncounted = r.Uncounted || uncounted[string(name)]
	c := canon{r: r}
	at := len(r.unescaped)
	c.text(name)
	c.fields(&scanner{b: s.b[start:s.i]}, 0)
	r.Apart += xxhash.Sum64(r.unescaped[at:])
	r.unescaped = r.unescaped[:at]
	return true
}

// canonical returns a valid value in the one form: a message, or the list of tools. It lies
// in r's own memory. Of a message without its role and, if it is one text, its content.
func (r *Request) canonical(raw []byte, message, single bool) []byte {
	c := canon{r: r, items: r.API == apis.Responses, message: message, single: single}
	start := len(r.unescaped)
	c.fields(&scanner{b: raw}, 0)
	return r.unescaped[start:len(r.unescaped):len(r.unescaped)]
}

// canon appends values in the one form to the request's unescaped texts.
type canon struct {
	r     *Request
	items bool // of Responses
	// message is whether the outermost object is a message, single whether its content is one
	// text.
	message, single bool
}

func (c *canon) add(b ...byte) { c.r.unescaped = append(c.r.unescaped, b...) }

// text writes a text behind its length.
func (c *canon) text(b []byte) {
	if len(b) > longText {
		c.add('h')
		c.r.unescaped = binary.LittleEndian.AppendUint64(c.r.unescaped, xxhash.Sum64(b))
		return
	}
	c.add('"')
	c.r.unescaped = binary.AppendUvarint(c.r.unescaped, uint64(len(b)))
	c.add(b...)
}

// string writes a string as the text that it stands for.
func (c *canon) string(t text) {
	if !t.escaped {
		c.text(t.raw)
		return
	}
	at := len(c.r.unescaped)
	c.r.unescaped = unescape(c.r.unescaped, t.raw)
	end := len(c.r.unescaped)
	c.text(c.r.unescaped[at:end]) // behind itself, then in its place
	c.r.unescaped = append(c.r.unescaped[:at], c.r.unescaped[end:]...)
}

// unescaped returns the text that a string stands for.
func unescaped(t text) []byte {
	if !t.escaped {
		return t.raw
	}
	return unescape(make([]byte, 0, len(t.raw)), t.raw)
}

// value writes any value, and moves past it. The order of fields is kept.
func (c *canon) value(s *scanner, depth int) {
	switch s.peek() {
	case '"':
		t, _ := s.string()
		c.string(t)
	case '{':
		c.add('{')
		s.object(depth, func(key text) bool {
			c.string(key)
			c.value(s, depth+1)
			return true
		})
		c.add('}')
	case '[':
		c.add('[')
		s.array(depth, func() bool {
			c.value(s, depth+1)
			return true
		})
		c.add(']')
	default:
		start := s.i
		s.skip(depth)
		c.add(s.b[start:s.i]...)
		c.add(',')
	}
}

// entry is a field of an object: what is between from and to is its name and value.
type entry struct{ from, to int }

// fields writes an object's fields in the order of their names, without those that nobody
// renders, and those of the lists and objects that make up a message alike. depth is how
// deep that is.
func (c *canon) fields(s *scanner, depth int) {
	switch s.peek() {
	case '[':
		c.list(s, depth)
		return
	case '{':
	default:
		c.value(s, depth)
		return
	}
	var all [mostFields]entry
	n := 0
	c.add('{')
	s.object(depth, func(key text) bool {
		name := unescaped(key)
		if s.peek() == 'n' || c.skips(s, name, depth) {
			return s.skip(depth + 1)
		}
		from := len(c.r.unescaped)
		c.text(name)
		c.field(s, name, depth+1)
		if n < len(all) {
			all[n] = entry{from, len(c.r.unescaped)}
		}
		n++
		return true
	})
	if n > 1 && n <= len(all) {
		c.sort(all[:n])
	}
	c.add('}')
}

// skips reports whether a field of an object at a depth is nothing that is rendered, or
// is written elsewhere.
func (c *canon) skips(s *scanner, name []byte, depth int) bool {
	switch {
	case passedOver[string(name)], c.items && passedOverItems[string(name)]:
		return true
	case s.peek() == '[' && emptyList(s.b[s.i+1:]):
		return true // no calls, no parts
	case !c.message || depth > 0:
		return false
	case string(name) == "role":
		return true
	case string(name) == "content":
		return c.single
	case string(name) == "type":
		return c.items && bytes.HasPrefix(s.b[s.i:], []byte(`"message"`))
	}
	return false
}

// emptyList reports whether a list ends before it has begun.
func emptyList(rest []byte) bool {
	rest = bytes.TrimLeft(rest, " \t\r\n")
	return len(rest) > 0 && rest[0] == ']'
}

// field writes the value of a field.
func (c *canon) field(s *scanner, name []byte, depth int) {
	switch string(name) {
	case "content", "tool_calls", "function", "function_call", "image_url", "input_audio", "video_url", "source", "file":
		c.fields(s, depth)
	case "arguments":
		c.arguments(s, depth)
	default:
		c.value(s, depth)
	}
}

// list writes a list, of messages' parts, calls or tools.
func (c *canon) list(s *scanner, depth int) {
	c.add('[')
	s.array(depth, func() bool {
		c.fields(s, depth+1)
		return true
	})
	c.add(']')
}

// arguments writes a call's arguments: as the object that they are, also if it is sent as
// a text.
func (c *canon) arguments(s *scanner, depth int) {
	if s.peek() != '"' {
		c.value(s, depth)
		return
	}
	t, _ := s.string()
	raw := unescaped(t)
	inner := &scanner{b: raw}
	inner.space()
	start := inner.i
	ok := inner.peek() == '{' && inner.skip(depth)
	inner.space()
	if !ok || inner.i != len(raw) {
		c.text(raw)
		return
	}
	inner.i = start
	c.value(inner, depth)
}

// sort puts what was written last into the order of its bytes, which begin with the
// fields' names.
func (c *canon) sort(all []entry) {
	b := c.r.unescaped
	sorted := true
	for i := 1; i < len(all); i++ {
		sorted = sorted && bytes.Compare(b[all[i-1].from:all[i-1].to], b[all[i].from:all[i].to]) <= 0
	}
	if sorted {
		return
	}
	from, end := all[0].from, len(b)
	b = append(b, b[from:]...) // what it was, behind itself
	old := b[end:]
	for i := 1; i < len(all); i++ { // few: by insertion
		for j := i; j > 0 && bytes.Compare(old[all[j].from-from:all[j].to-from], old[all[j-1].from-from:all[j-1].to-from]) < 0; j-- {
			all[j], all[j-1] = all[j-1], all[j]
		}
	}
	at := from
	for _, e := range all {
		at += copy(b[at:], old[e.from-from:e.to-from])
	}
	c.r.unescaped = b[:at]
}

// Numbers returns the token ids in one form, without white space.
func (p *Prompt) Numbers() []byte {
	list := bytes.Trim(p.List, "[]")
	if bytes.ContainsAny(list, " \t\r\n") {
		list = bytes.Join(bytes.Fields(list), nil)
	}
	return list
}
