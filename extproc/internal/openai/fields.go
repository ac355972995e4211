package openai

import (
	"bytes"
)

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
