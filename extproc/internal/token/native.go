package token

import (
	"bytes"
	"reflect"
	"sync"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// countNative counts with the form, if the conversation fits it.
func (m *Model) countNative(p *plan) (int, bool) {
	f := m.currentForm()
	if f == nil {
		return 0, false
	}
	n, ok := m.countBy(f, p)
	for _, other := range f.others {
		if !ok || p.doubt != Certain {
			break
		}
		if of, fits := m.countBy(other, p); !fits || of != n {
			p.doubts(ByClock)
		}
	}
	return n, ok
}

// countBy counts by a form; nil fits nothing.
func (m *Model) countBy(f *compiled, p *plan) (int, bool) {
	if f == nil {
		return 0, false
	}
	k := counters.Get().(*counter)
	defer counters.Put(k)
	k.reset(m, f)
	ok := k.conversation(p)
	clear(k.pieces)
	return k.n + m.addedTo, ok
}

// currentForm returns the form, newly made if it is of other days.
func (m *Model) currentForm() *compiled {
	f := m.form.Load()
	if f == nil || f.days == (days{}) {
		return f
	}
	now := time.Now()
	if f.days == daysOf(now) {
		return f
	}
	f = formOf(m.template, m, now)
	m.form.Store(f)
	return f
}

// formOf returns a template's form of the day here, with those of the other days that an engine
// may have; nil: it has none.
func formOf(t *template, m *Model, now time.Time) *compiled {
	f := newForm(t, now)
	c := compile(f, m)
	if c == nil || f.reads == jinja.NotRead {
		return c
	}
	c.days = daysOf(now)
	for _, at := range c.days.elsewhere() {
		other := newForm(t, at)
		if other == nil || !reflect.DeepEqual(f, other) {
			c.others = append(c.others, compile(other, m))
		}
	}
	return c
}

// counter adds up a prompt from texts. Text between two special tokens is
// counted in one piece, since words may span what the template and the client
// wrote.
type counter struct {
	m *Model
	f *compiled
	n int
	// pieces are the text since the last special token. They lie in the request
	// and in the form.
	pieces [][]byte
	few    [8][]byte // where pieces begins
	buf    []byte    // memory to join them in
	// collects is whether ids collects the tokens, too.
	collects bool
	ids      []uint32
}

var counters = sync.Pool{New: func() any { return new(counter) }}

// maxKept is the most memory in bytes that a counter keeps for the next use.
const maxKept = 1 << 20

func (k *counter) reset(m *Model, f *compiled) {
	if cap(k.buf) > maxKept {
		k.buf = nil
	}
	*k = counter{m: m, f: f, buf: k.buf}
	k.pieces = k.few[:0]
}

// conversation adds up a whole prompt. It returns false if the form doesn't fit.
func (k *counter) conversation(p *plan) bool {
	ends := [...]*[roles]segment{ask: &k.f.ask, shut: &k.f.shut, open: &k.f.open}
	before := unknown
	for i := range p.messages {
		r, text, ok := k.f.fit(&p.messages[i])
		if !ok || !k.f.follows(before, r, len(p.messages)-i) {
			return false
		}
		if !k.add(k.f.before(before, r)) || !k.content(r, text) {
			return false
		}
		before = r
	}
	end := &k.f.empty[p.end]
	if before != unknown {
		end = &ends[p.end][before]
	}
	if !k.add(end) {
		return false
	}
	if p.end == open {
		k.put(p.last)
	}
	k.flush()
	return true
}

func (k *counter) content(r role, text []byte) bool {
	for _, s := range k.f.trips {
		if bytes.Contains(text, s) {
			return false
		}
	}
	if k.f.trim[r] {
		text = k.f.template.trimBytes(text)
	}
	if k.f.noEmpty || k.f.noEdges {
		bare := bytes.TrimFunc(text, jinja.IsSpace)
		if k.f.noEmpty && len(bare) == 0 || k.f.noEdges && len(bare) != len(text) {
			return false
		}
	}
	k.put(text)
	return true
}

func (t *template) trimBytes(b []byte) []byte {
	if t.llama {
		return bytes.Trim(b, " \t\n\v\f\r")
	}
	return bytes.TrimFunc(b, jinja.IsSpace)
}

func (k *counter) add(s *segment) bool {
	if !s.ok {
		return false
	}
	k.put(s.left)
	if s.cuts {
		k.flush()
		k.n += len(s.tokens)
		if k.collects {
			k.ids = append(k.ids, s.tokens...)
		}
		k.put(s.right)
	}
	return true
}

func (k *counter) flush() {
	if len(k.pieces) == 0 {
		return
	}
	if k.collects {
		k.ids, k.buf = k.m.memoizedIDs(k.ids, k.pieces, k.buf)
	} else {
		var n int
		n, k.buf = k.m.memoized(k.pieces, k.buf)
		k.n += n
	}
	clear(k.pieces)
	k.pieces = k.pieces[:0]
}

func (k *counter) put(text []byte) {
	if len(text) > 0 {
		k.pieces = append(k.pieces, text)
	}
}

// compiled is a form with its texts tokenized as far as they can be.
type compiled struct {
	template        *template
	head            [roles]segment
	mid             [roles][roles]segment
	ask, shut, open [roles]segment
	empty           [3]segment // by ending
	trim            [roles]bool
	trips           [][]byte
	strict, tools   bool
	ends            bool
	noSystem        bool
	noEmpty         bool
	noEdges         bool
	days            days        // that it and others are of; zero: it does not depend on the day
	others          []*compiled // of those days that make another form; nil: there is none then
}

// segment is a fixed text. Where it has special tokens, cuts is set: left is
// what stands before the first, right what stands after the last, and tokens
// are all between.
type segment struct {
	ok, cuts    bool
	left, right []byte
	tokens      []uint32
}

func compile(f *form, m *Model) *compiled {
	if f == nil {
		return nil
	}
	c := &compiled{template: m.template, trim: f.trim, trips: f.trips, strict: f.strict, tools: f.tools, ends: f.ends,
		noSystem: f.noSystem, noEmpty: f.noEmpty, noEdges: f.noEdges}
	for r := range roles {
		c.head[r] = m.segment(f.head[r])
		c.ask[r], c.shut[r], c.open[r] = m.segment(f.ask[r]), m.segment(f.shut[r]), m.segment(f.open[r])
		for next := range roles {
			c.mid[r][next] = m.segment(f.mid[r][next])
		}
	}
	c.empty = [...]segment{ask: m.segment(f.empty[emptyAsk]), shut: m.segment(f.empty[emptyShut]), open: m.segment(f.empty[emptyOpen])}
	return c
}

func (m *Model) segment(f fragment) segment {
	text := []byte(f.text)
	s := segment{ok: f.ok, left: text}
	hits := m.specials.find(text, true)
	if len(hits) == 0 {
		return s
	}
	first, last := hits[0], hits[len(hits)-1]
	if !m.specials.stands(first.token) || !m.specials.stands(last.token) {
		return s // what clients write could change where tokens begin: count in one piece
	}
	s.cuts = true
	s.left, s.right = text[:first.start], text[last.end:]
	s.tokens = m.appendTokens(nil, text[first.start:last.end], true)
	return s
}

// before returns the text between two messages, or before the first.
func (f *compiled) before(last, next role) *segment {
	if last == unknown {
		return &f.head[next]
	}
	return &f.mid[last][next]
}

// fit returns a message's role and text if they are all that the template looks
// at.
func (f *compiled) fit(msg *Message) (role, []byte, bool) {
	r := roleOf(f.template.role(msg.Role))
	if r == unknown || r == tool && !f.tools || r == system && f.noSystem {
		return r, nil, false
	}
	for _, key := range f.template.extras {
		if bytes.Contains(msg.Raw, []byte(key)) {
			return r, nil, false
		}
	}
	if msg.Content != nil || len(msg.Raw) == 0 {
		return r, msg.Content, true
	}
	b, err := msg.body()
	if err != nil {
		return r, nil, false
	}
	if f.template.llama && b.empty() {
		return r, nil, false
	}
	parts, list, err := b.parts()
	if err != nil || list && (!f.template.native(parts) || f.template.vllm && b.itemised()) || !list && parts == nil && f.template.asLists(msg.Role) {
		return r, nil, false
	}
	return r, []byte(f.template.flat(parts)), true
}

// native reports whether a list of texts is for the template what a text is.
func (t *template) native(parts []contentPart) bool {
	switch {
	case t.llama:
		return !t.typed || len(parts) == 1
	case !t.known:
		return len(parts) == 1
	case t.lists != no:
		return t.vllm && len(parts) == 1
	}
	return true
}

// follows says whether the form is known to hold for a role at this place;
// left is how many messages there are from here on.
func (f *compiled) follows(last, next role, left int) bool {
	if next == tool && last != assistant && last != tool || last == tool && next == system {
		return false // no client writes such a thing, no probe tries it
	}
	if next == assistant && left == 1 && !f.ends {
		return false
	}
	if !f.strict {
		return true
	}
	switch next {
	case system:
		return last == unknown && left > 1
	case user:
		return last != user
	case assistant:
		return last == user && left > 1
	}
	return false
}
