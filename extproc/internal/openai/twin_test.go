package openai

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// member is a field of an object, in the order in which they were sent.
type member struct {
	key   string
	value json.RawMessage
}

// members takes an object apart by encoding/json; nil: it is none.
func members(b []byte) (all []member) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	all = []member{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil
		}
		m := member{key: key.(string)}
		if d.Decode(&m.value) != nil {
			return nil
		}
		all = append(all, m)
	}
	return all
}

// textOf is a value's text; false: it is no string.
func textOf(v json.RawMessage) (s string, ok bool) {
	return s, len(v) > 0 && v[0] == '"' && json.Unmarshal(v, &s) == nil
}

// elements are those of a list; false: it is none.
func elements(v json.RawMessage) (all []json.RawMessage, ok bool) {
	return all, len(v) > 0 && v[0] == '[' && json.Unmarshal(v, &all) == nil
}

// whole is a whole number of a range, or what there was before.
func whole(v json.RawMessage, was, least, most int) int {
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return was
	}
	return min(max(n, least), most)
}

// naiveRequest reads by encoding/json what Parse reads of a request to OpenAI's older
// APIs.
func naiveRequest(body []byte) (s seen) {
	s.MaxTokens, s.Choices = -1, 1
	newer, best := -1, 0
	eos, stop := false, false
	for _, m := range members(body) {
		v := m.value
		text, isText := textOf(v)
		switch m.key {
		case "model":
			s.Model = text
		case "stream":
			s.Stream = string(v) == "true"
		case "messages":
			s.Messages = naiveMessages(v)
		case "prompt", "input":
			s.Prompts, s.IDs = naivePrompts(v)
		case "tools":
			s.Tools = ""
			if v[0] == '[' {
				s.Tools = string(v)
			}
		case "previous_response_id":
			s.Previous = text
		case "user":
			s.User = text
		case "max_tokens", "max_output_tokens":
			s.MaxTokens = whole(v, s.MaxTokens, -1, 1<<31-1)
		case "max_completion_tokens":
			newer = whole(v, newer, -1, 1<<31-1)
		case "min_tokens":
			s.MinTokens = whole(v, s.MinTokens, 0, 1<<31-1)
		case "n":
			s.Choices = whole(v, s.Choices, 1, maxChoices)
		case "best_of":
			best = whole(v, best, 1, maxChoices)
		case "ignore_eos":
			eos = string(v) == "true"
		case "stop", "stop_sequences":
			list, _ := elements(v)
			stop = isText && text != "" || len(list) > 0
		}
	}
	if newer >= 0 {
		s.MaxTokens = newer
	}
	s.Choices = max(s.Choices, best)
	if eos {
		s.Hints = "eos "
	}
	if stop {
		s.Hints += "stop"
	}
	return s
}

func naivePrompts(v json.RawMessage) (texts []string, ids int) {
	if text, ok := textOf(v); ok {
		return []string{text}, 0
	}
	list, _ := elements(v)
	for _, e := range list {
		if text, ok := textOf(e); ok {
			texts = append(texts, text)
		} else if of, ok := elements(e); ok {
			ids += len(of)
		} else {
			ids++
		}
	}
	return texts, ids
}

func naiveMessages(v json.RawMessage) (all []string) {
	list, _ := elements(v)
	for _, e := range list {
		fields := members(e)
		if fields == nil {
			continue
		}
		role, content := "", "-"
		for _, f := range fields {
			switch f.key {
			case "role":
				role, _ = textOf(f.value)
			case "content":
				content = naiveContent(f.value)
			}
		}
		all = append(all, role+content)
	}
	return all
}

// naiveContent is a message's text behind a "=", or "-" if it has to be rendered.
func naiveContent(v json.RawMessage) string {
	if text, ok := textOf(v); ok {
		return "=" + text
	}
	list, _ := elements(v)
	var texts []string
	media := false
	for _, e := range list {
		kind, text := "", ""
		for _, f := range members(e) {
			switch f.key {
			case "type":
				kind, _ = textOf(f.value)
			case "text":
				text, _ = textOf(f.value)
			}
		}
		switch k := kindOf([]byte(kind)); {
		case k == textPart:
			texts = append(texts, text)
		case k == blockPart:
			return "-"
		case k < textPart:
			media = true
		}
	}
	if media || len(list) == 1 && len(texts) == 1 && texts[0] != "" {
		return "=" + strings.Join(texts, "\n")
	}
	return "-"
}

// checkParse compares Parse with its twin, where the twin may be asked.
func checkParse(t *testing.T, r *Request, body []byte) (compared bool) {
	t.Helper()
	if !json.Valid(body) || !validUTF8(body) || tooDeep(body) {
		return false // what is not UTF-8 the engine gets as sent, encoding/json replaces it
	}
	if strings.Contains(string(body), `\u`) && !escapesInValuesOnly(body) {
		return false
	}
	for _, api := range []API{Chat, Completions, Embeddings, Other} {
		if r.Parse(api, body) != nil {
			return false
		}
		got := look(r)
		got.Media = nil
		if diff := cmp.Diff(naiveRequest(body), got); diff != "" {
			t.Fatalf("Parse(%q) (-twin +got):\n%s", body, diff)
		}
	}
	return true
}

// grammar writes JSON that is nearly a request, from the random choices of r.
type grammar struct{ r *rand.Rand }

func (g grammar) one(of ...string) string { return of[g.r.IntN(len(of))] }

func (g grammar) space() string { return g.one("", "", "", " ", "\n\t") }

func (g grammar) list(n int, of func() string) string {
	var all []string
	for range g.r.IntN(n) {
		all = append(all, g.space()+of()+g.space())
	}
	return "[" + strings.Join(all, ",") + "]"
}

func (g grammar) object(n int, field func() string) string {
	l := g.list(n, field)
	return "{" + l[1:len(l)-1] + "}"
}

func (g grammar) text() string {
	return g.one(`"a"`, `""`, `"user"`, `"x\ny"`, `"é\u00e9\ud83d\ude00"`, `"\ud83d"`, `"\\\""`, `"a longer text, of more than sixteen bytes"`)
}

func (g grammar) value() string {
	return g.one(g.text(), g.text(), g.text(), "null", "true", "false", "7", "-1", "0", "300", "2.5", "1e3", "[]", "{}", `["x"]`, "99999999999999999999", `[1,[2],"\u005d"]`, `{"content":"q"}`)
}

func (g grammar) part() string {
	kind := g.one(`"text"`, `"text"`, `"input_text"`, `"image_url"`, `"tool_use"`, `"new"`, g.value())
	return g.one("null", "3", g.object(4, func() string {
		return g.one(`"type":`+kind, `"type":`+kind, `"text":`+g.value(), `"image_url":{"url":`+g.value()+`}`, `"content":`+g.value())
	}), `{"type":`+kind+`,"text":`+g.text()+`}`)
}

func (g grammar) message() string {
	return g.one(g.value(), g.object(5, func() string {
		return g.one(`"role":`+g.value(), `"content":`+g.value(), `"content":`+g.list(4, g.part), `"tool_calls":`+g.value(), `"name":`+g.value())
	}), `{"role":"user","content":`+g.text()+`}`, `{"content":`+g.list(4, g.part)+`,"role":"tool"}`)
}

func (g grammar) body() string {
	return g.space() + g.object(12, func() string {
		name := g.one("stream", "max_tokens", "max_output_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "ignore_eos", "stop",
			"stop_sequences", "tools", "previous_response_id", "user", `\u0075ser`, "model", `m\u006fdel`, `max\u005ftokens`, "other", "prompt", "input", "metadata")
		return g.one(`"`+name+`"`+g.space()+":"+g.space()+g.value(), `"messages":`+g.list(5, g.message), `"prompt":`+g.list(5, g.value), `"`+name+`":`+g.value())
	}) + g.space()
}

// TestParseAgainstItsTwin reads requests of all forms, and with fields of wrong types.
func TestParseAgainstItsTwin(t *testing.T) {
	g := grammar{rand.New(rand.NewPCG(4, 4))}
	var r Request
	compared := 0
	for range 2500 {
		if checkParse(t, &r, []byte(g.body())) {
			compared++
		}
	}
	if compared < 1200 {
		t.Errorf("only %d requests were compared", compared)
	}
}

// TestPlainAgainstItsTwin puts an odd byte at each place of texts of all lengths.
func TestPlainAgainstItsTwin(t *testing.T) {
	naive := func(b []byte) int {
		return len(b) - len(bytes.TrimLeftFunc(b, func(r rune) bool { return r >= ' ' && r != '"' && r != '\\' }))
	}
	for n := range 50 {
		for c := range 256 {
			for at := range n {
				b := bytes.Repeat([]byte{'x'}, n)
				b[at] = byte(c)
				b[(at*7+c)%n] = "\"\\\x1f a\x7f!#"[c%8]
				if got, want := plain(b), naive(b); got != want {
					t.Fatalf("plain(%q) = %d, want %d", b, got, want)
				}
			}
		}
	}
}
