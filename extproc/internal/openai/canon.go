package openai

import (
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

// uncounted are those of them that package token does not read.
var uncounted = map[string]bool{"add_special_tokens": true, "truncate_prompt_tokens": true}

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
