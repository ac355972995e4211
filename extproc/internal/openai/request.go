package openai

import (
	"bytes"
	"math"
	"reflect"
	"slices"

	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/trust"
)

// Request is what the picker knows of one request. Its slices lie in the body
// or in the Request's own memory: they are valid until the next Parse.
type Request struct {
	// API is the operation.
	API apis.API
	// Model is the id of the model asked for; empty: none or no string.
	Model []byte
	// Stream is whether the answer comes as events.
	Stream bool
	// MaxTokens is the most tokens to generate, in whatever engine serves the request;
	// -1: no limit given. MinTokens is the least.
	MaxTokens, MinTokens int
	// IgnoreEOS is whether generation continues to the limit, Stops whether the client
	// named texts that end it.
	IgnoreEOS, Stops bool
	// Choices is how many answers are generated for each prompt, 1 or more.
	Choices int
	// Beyond is how many messages, media and prompts there are beyond MaxEntries.
	Beyond int
	// Truncates is whether the client wants a prompt that is too long cut, Most to how many
	// tokens (truncate_prompt_tokens); 0: to what the engine has room for.
	Truncates bool
	Most      int
	// Side is the first letter of the side from which it says that (truncation_side): 'l' or
	// 'r'; 0: it does not.
	Side byte
	// Previous is the id of the response that this request continues; nil: none.
	Previous []byte
	// Conversation is the id of the conversation that this request is in; nil: none.
	Conversation []byte
	// User is the client's name for who asks: user, or Anthropic's metadata.user_id;
	// nil: none.
	User []byte
	// Messages is the conversation of Chat, Responses and Messages; instructions
	// come first, as a system message.
	Messages []Message
	// Media is all that is not text in them.
	Media []Media
	// Prompts is the texts of all operations without a conversation.
	Prompts []Prompt
	// Tools is the JSON of the tools, ToolsAlike what is rendered of it, in a form that is
	// the same where that is; nil: none.
	Tools, ToolsAlike []byte
	// TemplateArgs is the JSON of chat_template_kwargs; nil: none.
	TemplateArgs []byte
	// Salt is what separates the prompt's cache from others' (cache_salt); empty: nothing.
	Salt []byte
	// Separated is whether something else does, which engines don't name in their reports.
	Separated bool
	// Apart is of what separates prompts that are alike else, such as a salt, an adapter or
	// arguments of the template; 0: there is nothing.
	Apart uint64
	// Special is whether the client wants no tokens put around its prompt where they usually
	// are, or some around a conversation (add_special_tokens).
	Special bool
	// Large is a number that llama.cpp would take for another one.
	Large Large
	// Cut is whether a form was not decoded to its end, and no model was found until there.
	Cut bool
	// Raw is the whole body.
	Raw []byte

	instructions Message
	limits       [len(apis.Limits)]given
	choices      [len(apis.Choices)]given
	named        span   // where Raw has the value of model
	form         bool   // whether Raw is a multipart form
	unescaped    []byte // texts that held escapes, or were joined
	one          [nested/2 + 1]part
}

// given is a number that a field may have.
type given struct {
	n  int
	is bool
}

// span is a part of a body; the zero span is none.
type span struct{ from, to int }

// Prompt is one text.
type Prompt struct {
	// Text is unescaped; nil if the client sent token ids.
	Text []byte
	// IDs is the number of token ids sent instead of a text, List their JSON.
	IDs  int
	List []byte
}

// Parse decodes a JSON body, which must stay unchanged while r is in use.
//
// A mark that the text is UTF-8 (apis.Unmarked) is no part of Raw.
func (r *Request) Parse(api apis.API, body []byte) *Error {
	body = apis.Unmarked(body)
	r.reset(api, body)
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
	r.MaxTokens = r.limit()
	for _, c := range r.choices {
		r.Choices = max(r.Choices, c.n)
	}
	return nil
}

// limit is the most that any engine makes of the fields that bound the answer. Only the
// operation's own are sure to be one: another alone says nothing, beside them it may be
// the one that counts. Below 0 means no limit to those engines that don't refuse it.
func (r *Request) limit() int {
	most, bounded := 0, false
	for i, l := range r.limits {
		if !l.is {
			continue
		}
		if l.n < 0 {
			return -1
		}
		most = max(most, l.n)
		bounded = bounded || slices.Contains(r.API.Row().Limits, apis.Limits[i])
	}
	if !bounded {
		return -1
	}
	return most
}

// reset makes r that of a body of which nothing is decoded yet.
func (r *Request) reset(api apis.API, body []byte) {
	*r = Request{
		API: api, Raw: body, MaxTokens: -1, Choices: 1,
		Messages: r.Messages[:0], Media: r.Media[:0], Prompts: r.Prompts[:0], unescaped: r.unescaped[:0],
	}
}

// Forget lets go of the body, so that r can wait for the next one.
func (r *Request) Forget() {
	messages, media, prompts, unescaped := r.Messages, r.Media, r.Prompts, r.unescaped
	if cap(messages) > keepEntries {
		messages = nil
	}
	if cap(media) > keepEntries {
		media = nil
	}
	if cap(prompts) > keepEntries {
		prompts = nil
	}
	if cap(unescaped) > keepText {
		unescaped = nil
	}
	clear(messages)
	clear(prompts)
	*r = Request{Messages: messages[:0], Media: media[:0], Prompts: prompts[:0], unescaped: unescaped[:0]}
}

// MaxEntries is how many messages, media and prompts together are kept of a body: an empty
// message takes three bytes of that, and a hundred here.
const MaxEntries = 1 << 16

// holds reports whether one more message, medium or prompt is kept, and counts it if not.
func (r *Request) holds() bool {
	if len(r.Messages)+len(r.Media)+len(r.Prompts) < MaxEntries {
		return true
	}
	r.Beyond++
	return false
}

// Bytes is what the decoded parts take of memory, beside the body itself.
func (r *Request) Bytes() int64 {
	return int64(cap(r.unescaped)) + int64(len(r.Messages))*messageBytes + int64(len(r.Media))*mediaBytes + int64(len(r.Prompts))*promptBytes
}

var (
	messageBytes = int64(reflect.TypeFor[Message]().Size())
	mediaBytes   = int64(reflect.TypeFor[Media]().Size())
	promptBytes  = int64(reflect.TypeFor[Prompt]().Size())
)

// What Forget keeps at most for the next body: messages or prompts, and bytes
// of text.
const (
	keepEntries = 4096
	keepText    = 1 << 20
)

// field reads one field of the body. The last of several with the same name
// counts, as it does in the engines.
func (r *Request) field(s *scanner, key text) bool {
	name := r.unescape(key)
	r.Large.see(s, name)
	if apart[string(name)] {
		mark := *s
		if !r.separate(s, name) {
			return false
		}
		*s = mark
	}
	switch string(name) {
	case "model":
		start := s.i
		ok := r.textField(s, &r.Model)
		r.named = span{start, s.i}
		return ok
	case "stream":
		r.Stream = s.peek() == 't'
	case "messages":
		return r.messages(s)
	case "input":
		if r.API.Row().Items {
			return r.input(s)
		}
		return r.prompts(s)
	case "prompt":
		return r.prompts(s)
	case "instructions", "system":
		return r.system(s, name)
	case "tools":
		ok := s.raw(&r.Tools, '[')
		if ok && r.Tools != nil {
			r.ToolsAlike = r.canonical(r.Tools, false, false)
		}
		return ok
	case "chat_template_kwargs":
		return s.raw(&r.TemplateArgs, '{')
	case "previous_response_id":
		return r.textField(s, &r.Previous)
	case "conversation":
		return r.conversation(s)
	case "user":
		return r.textField(s, &r.User)
	case "metadata":
		return r.metadata(s)
	default:
		return r.length(s, name)
	}
	return s.skip(1)
}

// metadata looks for the user where Anthropic's API has it.
func (r *Request) metadata(s *scanner) bool {
	if !r.anthropic() || s.peek() != '{' {
		return s.skip(1)
	}
	return s.object(1, func(key text) bool {
		if string(r.unescape(key)) == "user_id" {
			return r.textField(s, &r.User)
		}
		return s.skip(2)
	})
}

// length reads a field that says how long the answer will be.
func (r *Request) length(s *scanner, name []byte) bool {
	if i := slices.Index(apis.Limits[:], string(name)); i >= 0 {
		return r.quantity(s, &r.limits[i])
	}
	if i := slices.Index(apis.Choices[:], string(name)); i >= 0 {
		ok := r.quantity(s, &r.choices[i])
		r.choices[i].n = min(r.choices[i].n, maxChoices)
		return ok
	}
	switch string(name) {
	case "min_tokens":
		var least given
		ok := r.quantity(s, &least)
		r.MinTokens = max(0, least.n)
		return ok
	case "ignore_eos":
		r.IgnoreEOS = s.peek() == 't'
	case "truncation_side":
		if s.peek() == '"' && s.i+1 < len(s.b) {
			r.Side = s.b[s.i+1]
		}
	case "truncation":
		r.Truncates = r.Truncates || bytes.HasPrefix(s.b[s.i:], []byte(`"auto"`))
	case "cache_salt":
		return r.salt(s)
	case "extra_key", "lora_path", "lora":
		r.Separated = r.Separated || s.peek() != 'n'
	case "stop", "stop_sequences":
		return r.stops(s)
	default:
		if slices.Contains(r.API.Row().Texts, string(name)) {
			return r.texts(s)
		}
	}
	return s.skip(1)
}

// salt reads cache_salt. SGLang takes a list of them, too.
func (r *Request) salt(s *scanner) bool {
	if s.peek() != '"' {
		r.Salt, r.Separated = nil, r.Separated || s.peek() != 'n'
		return s.skip(1)
	}
	return r.textField(s, &r.Salt)
}

// stops reads a text or a list of texts; any other value names none.
func (r *Request) stops(s *scanner) bool {
	if s.peek() == '[' {
		n, ok := s.count(1)
		r.Stops = n > 0
		return ok
	}
	start := s.i
	ok := s.skip(1)
	r.Stops = ok && s.b[start] == '"' && s.i-start > len(`""`)
	return ok
}

// maxChoices bounds what is believed of how many answers a request wants: no engine
// makes more of one.
const maxChoices = 1 << 14

// unescape returns the text that t stands for.
func (r *Request) unescape(t text) []byte {
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
		*dst = r.unescape(t)
	}
	return ok
}

// conversation reads the id of a conversation, or an object with it, of operations that have one.
func (r *Request) conversation(s *scanner) bool {
	r.Conversation = nil
	switch {
	case !r.API.Row().Items:
		return s.skip(1)
	case s.peek() != '{':
		return r.textField(s, &r.Conversation)
	}
	return s.object(1, func(key text) bool {
		if string(r.unescape(key)) == "id" {
			return r.textField(s, &r.Conversation)
		}
		return s.skip(2)
	})
}

// Continues is the id of what the request continues, whose items are not in it; nil: nothing.
func (r *Request) Continues() []byte {
	if r.Previous != nil {
		return r.Previous
	}
	return r.Conversation
}

// quantity reads a number as the most lenient engine does: a fraction is cut off, and a
// text may hold one. Any other value is none.
func (r *Request) quantity(s *scanner, dst *given) bool {
	*dst = given{}
	start := s.i
	var v, text []byte
	if !r.textField(s, &text) {
		return false
	}
	if v = s.b[start:s.i]; text != nil {
		v = bytes.TrimSpace(text)
	}
	if len(v) > longestNumber {
		return true
	}
	if n, ok := trust.Nearest(string(v), -1, math.MaxInt32); ok {
		*dst = given{int(n), true}
	}
	return true
}

// longestNumber is the most digits of a number, in bytes.
const longestNumber = 400

// raw takes a value's JSON into dst if it begins with the byte; any other value
// leaves dst nil.
func (s *scanner) raw(dst *[]byte, first byte) bool {
	start := s.i
	ok := s.skip(1)
	*dst = nil
	if ok && s.b[start] == first {
		*dst = s.b[start:s.i]
	}
	return ok
}

// prompts reads a text, a list of texts, token ids, or a list of lists of ids.
func (r *Request) prompts(s *scanner) bool {
	r.Prompts = r.Prompts[:0]
	if s.peek() != '[' {
		return r.prompt(s, 1)
	}
	ids, list := 0, s.i
	ok := s.array(1, func() bool {
		switch c := s.peek(); {
		case c == '"':
			return r.prompt(s, 2)
		case c == '[':
			start := s.i
			n, ok := s.count(2)
			if r.holds() {
				r.Prompts = append(r.Prompts, Prompt{IDs: n, List: s.b[start:s.i]})
			}
			return ok
		default:
			ids++
			return s.skip(2)
		}
	})
	if ids > 0 {
		r.Prompts = append(r.Prompts, Prompt{IDs: ids, List: s.b[list:s.i]})
	}
	return ok
}

// texts adds a text, or those of a list of texts or of objects with one, to the prompts.
func (r *Request) texts(s *scanner) bool {
	if s.peek() != '[' {
		return r.prompt(s, 1)
	}
	return s.array(1, func() bool {
		if s.peek() != '{' {
			return r.prompt(s, 2)
		}
		return s.object(2, func(key text) bool {
			if string(r.unescape(key)) == "text" {
				return r.prompt(s, 3)
			}
			return s.skip(3)
		})
	})
}

func (r *Request) prompt(s *scanner, depth int) bool {
	if s.peek() != '"' {
		return s.skip(depth)
	}
	t, ok := s.string()
	if ok && r.holds() {
		r.Prompts = append(r.Prompts, Prompt{Text: r.unescape(t)})
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

// Estimate guesses the number of prompt tokens: four bytes each, and four
// tokens around every message. It serves where the model's own tokenizer doesn't.
func (r *Request) Estimate() int {
	n := len(r.Tools) / 4
	for i := range r.Messages {
		m := &r.Messages[i]
		size := len(m.Content)
		if m.Content == nil {
			size = max(0, len(m.Raw)-m.data)
		}
		n += 4 + (size+3)/4
	}
	for i := range r.Media {
		n += r.Media[i].Tokens()
	}
	for _, p := range r.Prompts {
		n += p.IDs + (len(p.Text)+3)/4
	}
	return n
}
