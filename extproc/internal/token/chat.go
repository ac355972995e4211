package token

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"
)

// Message is one message of a conversation.
type Message struct {
	Role string
	// Content is the text, unescaped. It is nil where the body has none, null,
	// or a list of parts: then Raw is read.
	Content []byte
	// Raw is the message's own JSON. It is looked at for parts, tool calls, names
	// and reasoning, and only if the template does; nil means there are none.
	Raw []byte
}

// Chat is a request for a chat completion.
type Chat struct {
	Messages []Message
	// Tools is the request's list of tools as JSON, nil if it has none.
	Tools []byte
	// Raw is the whole request body. It is looked at for the rare fields that
	// change the prompt, such as add_generation_prompt. Nil means there are none.
	Raw []byte
}

// fields are those of a request that change its prompt.
type fields struct {
	Generate *bool           `json:"add_generation_prompt"`
	Continue json.RawMessage `json:"continue_final_message"`
	Kwargs   map[string]any  `json:"chat_template_kwargs"`
	Effort   string          `json:"reasoning_effort"`
}

// ending is how a prompt ends.
type ending int8

const (
	ask  ending = iota // with the generation prompt
	shut               // without
	open               // amid the last message, which the model continues
)

// plan is a request made ready for counting.
type plan struct {
	messages []Message // without the one that is continued
	last     []byte    // the text to continue, if end is open
	end      ending
	extra    map[string]any
	exact    bool
	slow     bool // whether the form won't do
}

// CountChat returns the prompt tokens of a chat completion as the backend's own
// usage will say, and whether that is certain. It isn't where tools or tool
// calls are rendered (the order of keys is lost), where messages hold more than
// text, and where the backend will refuse the request: then n is an estimate.
func (m *Model) CountChat(c *Chat) (n int, exact bool) {
	p, err := m.plan(c)
	if err != nil {
		return m.estimate(c), false
	}
	if !p.slow {
		if n, ok := m.countNative(p); ok {
			return n, p.exact
		}
	}
	prompt, err := m.render(c, p)
	if err != nil {
		return m.estimate(c), false
	}
	return m.tokens(prompt, true) + m.addedTo, p.exact
}

// perMessage is about how many tokens a template spends on a message.
const perMessage = 5

func (m *Model) estimate(c *Chat) int {
	n := m.addedTo + perMessage + m.tokens(c.Tools, false)
	for i := range c.Messages {
		text := c.Messages[i].Content
		if text == nil {
			text = c.Messages[i].Raw
		}
		n += perMessage + m.tokens(text, false)
	}
	return n
}

func (m *Model) plan(c *Chat) (*plan, error) {
	p := &plan{messages: c.Messages, exact: true}
	f, err := m.fields(c.Raw)
	if err != nil {
		return nil, err
	}
	if len(c.Tools) > 0 && m.template.usesTools {
		p.slow, p.exact = true, false
	}
	m.planExtra(p, f)
	if f.Generate != nil && !*f.Generate {
		p.end = shut
	}
	return p, m.planEnd(p, f)
}

// rare are parts of the names of the fields that change a prompt. Bodies with
// none of them, nearly all, are not parsed here.
var rare = [][]byte{[]byte("_generation_prompt"), []byte("_final_message"), []byte("template_kwargs"), []byte("_effort")}

func (m *Model) fields(raw []byte) (*fields, error) {
	f := &fields{}
	for _, name := range rare {
		if bytes.Contains(raw, name) {
			return f, json.Unmarshal(raw, f)
		}
	}
	return f, nil
}

func (m *Model) planExtra(p *plan, f *fields) {
	extra := map[string]any{}
	for k, v := range f.Kwargs {
		if m.template.mentions(k) {
			extra[k] = v
		}
	}
	if f.Effort == "none" {
		extra["enable_thinking"] = false
	} else if f.Effort != "" {
		extra["reasoning_effort"] = f.Effort
	}
	for k := range extra {
		if !m.template.mentions(k) {
			delete(extra, k)
		}
	}
	if len(extra) > 0 {
		p.extra, p.slow = extra, true
	}
}

// planEnd decides whether the last message is continued.
func (m *Model) planEnd(p *plan, f *fields) error {
	last := len(p.messages) - 1
	wanted := string(bytes.TrimSpace(f.Continue))
	explicit := wanted != "" && wanted != "null" && wanted != "false"
	if !m.template.llama {
		if explicit {
			p.slow, p.exact = true, false
		}
		return nil
	}
	if last < 0 {
		return nil
	}
	if !explicit && p.messages[last].Role != "assistant" {
		return nil
	}
	if !explicit && last > 0 && p.messages[last-1].Role == "assistant" || explicit && p.end != shut {
		return errRefused
	}
	return m.planOpen(p, wanted)
}

// planOpen splits off the message that is continued. Its text is put after the
// generation prompt as it is; one without anything does not even open a turn.
func (m *Model) planOpen(p *plan, wanted string) error {
	last := len(p.messages) - 1
	b, err := p.messages[last].body()
	if err != nil {
		return err
	}
	parts, list, err := b.parts()
	if err != nil {
		return err
	}
	if len(b.ToolCalls) > 0 && p.messages[last].Role == "assistant" {
		return errRefused
	}
	p.messages, p.end = p.messages[:last], open
	p.last = []byte(join(parts, "\n\n"))
	if wanted == `"reasoning_content"` {
		p.last, p.exact = nil, false
	}
	bare := b.Reasoning == "" && b.Name == "" && b.ToolCallID == ""
	if len(p.last) == 0 && !(list && len(parts) > 0) && bare {
		p.end = shut
	}
	if m.template.thinks() {
		p.exact = false // what a template does about thinking there varies
	}
	return nil
}

// thinks says whether the template has to do with reasoning.
func (t *template) thinks() bool {
	for _, s := range []string{"think", "reasoning", "THINK", "<|channel|>"} {
		if t.mentions(s) {
			return true
		}
	}
	return false
}

// countNative counts with the form, if the conversation fits it.
func (m *Model) countNative(p *plan) (int, bool) {
	f := m.currentForm()
	if f == nil {
		return 0, false
	}
	k := counters.Get().(*counter)
	defer counters.Put(k)
	k.reset(m, f)
	ok := k.conversation(p)
	return k.n + m.addedTo, ok
}

// currentForm returns the form, newly made if it holds the date of another day.
func (m *Model) currentForm() *compiled {
	f := m.form.Load()
	if f == nil || f.day == 0 || f.day == time.Now().YearDay() {
		return f
	}
	f = compile(newForm(m.template), m)
	m.form.Store(f)
	return f
}

// render is the slow way: the whole prompt by the template.
func (m *Model) render(c *Chat, p *plan) ([]byte, error) {
	in := &input{extra: p.extra, generate: p.end == ask}
	var err error
	if in.messages, err = m.slowMessages(p); err != nil {
		return nil, err
	}
	if len(c.Tools) > 0 && m.template.usesTools {
		if in.tools, err = toolList(c.Tools); err != nil {
			return nil, err
		}
	}
	out, err := m.template.render(in)
	if err == nil && p.end == open {
		var asked string
		in.generate = true
		asked, err = m.template.render(in)
		out += opening(out, asked) + string(p.last)
	}
	return []byte(m.template.stripBOS(out)), err
}

func (m *Model) slowMessages(p *plan) ([]any, error) {
	t := m.template
	var out []any
	for i := range p.messages {
		msg, err := t.full(t.role(p.messages[i].Role), &p.messages[i])
		if err != nil {
			return nil, err
		}
		if _, ok := msg["tool_calls"]; ok && slices.Contains(t.extras, "tool_calls") {
			p.exact = false
		}
		out = append(out, msg)
	}
	if t.llama && t.noSystem {
		out = mergeSystem(out)
	}
	return out, nil
}

// role maps a role as llama.cpp does for all templates but gpt-oss'.
func (t *template) role(name string) string {
	if t.llama && name == "developer" && !t.mentions("<|channel|>") {
		return "system"
	}
	return name
}

// mergeSystem puts a leading system message into the next one, for templates
// that have no place for it.
func mergeSystem(messages []any) []any {
	if len(messages) == 0 {
		return messages
	}
	first := messages[0].(map[string]any)
	if first["role"] != "system" {
		return messages
	}
	if len(messages) > 1 {
		second := messages[1].(map[string]any)
		a, ok := first["content"].(string)
		b, ok2 := second["content"].(string)
		if ok && ok2 {
			second["content"] = a + "\n" + b
		}
	}
	return messages[1:]
}

// counter adds up a prompt from texts. Text between two special tokens is
// counted in one piece, since words may span what the template and the client
// wrote.
type counter struct {
	m   *Model
	f   *compiled
	n   int
	buf []byte // text since the last special token
}

var counters = sync.Pool{New: func() any { return new(counter) }}

// maxKept is the most memory in bytes that a counter keeps for the next use.
const maxKept = 1 << 20

func (k *counter) reset(m *Model, f *compiled) {
	if cap(k.buf) > maxKept {
		k.buf = nil
	}
	*k = counter{m: m, f: f, buf: k.buf[:0]}
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
		k.buf = append(k.buf, p.last...)
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
	k.buf = append(k.buf, text...)
	return true
}

func (t *template) trimBytes(b []byte) []byte {
	if t.llama {
		return bytes.Trim(b, " \t\n\v\f\r")
	}
	return bytes.TrimSpace(b)
}

func (k *counter) add(s *segment) bool {
	if !s.ok {
		return false
	}
	k.buf = append(k.buf, s.left...)
	if s.cuts {
		k.flush()
		k.n += s.tokens
		k.buf = append(k.buf, s.right...)
	}
	return true
}

func (k *counter) flush() {
	k.n += k.m.memoized(k.buf)
	k.buf = k.buf[:0]
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
	day             int
}

// segment is a fixed text. Where it has special tokens, cuts is set: left is
// what stands before the first, right what stands after the last, and tokens
// counts all between.
type segment struct {
	ok, cuts    bool
	left, right []byte
	tokens      int
}

func compile(f *form, m *Model) *compiled {
	if f == nil {
		return nil
	}
	c := &compiled{template: m.template, trim: f.trim, trips: f.trips, strict: f.strict, tools: f.tools, day: f.day}
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
	s.tokens = m.tokens(text[first.start:last.end], true)
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
	if r == unknown || r == tool && !f.tools || r == system && f.template.noSystem {
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
	parts, list, err := b.parts()
	if err != nil || list && f.template.typed && len(parts) != 1 {
		return r, nil, false
	}
	return r, []byte(join(parts, "\n")), true
}

// follows says whether the form is known to hold for a role at this place;
// left is how many messages there are from here on.
func (f *compiled) follows(last, next role, left int) bool {
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

// promptText is what tests compare with the backend's own rendering.
func (m *Model) promptText(c *Chat) (string, error) {
	p, err := m.plan(c)
	if err != nil {
		return "", err
	}
	out, err := m.render(c, p)
	return strings.Clone(string(out)), err
}
