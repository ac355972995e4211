package openai

import (
	"bytes"
	"encoding/json"
	"maps"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/apis"
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

// whole is a number as a whole one, also if a text holds it.
func whole(v json.RawMessage) (n int, ok bool) {
	text, ok := textOf(v)
	if !ok {
		text = string(v)
	}
	f, ok := new(big.Float).SetString(strings.TrimSpace(text))
	if !ok {
		return 0, false
	}
	i, _ := f.Int64()
	return int(min(max(i, -1), 1<<31-1)), true
}

// naiveTexts are a text, or those of a list of texts or of objects with one.
func naiveTexts(v json.RawMessage) (all []string) {
	if text, ok := textOf(v); ok {
		return []string{text}
	}
	list, _ := elements(v)
	for _, e := range list {
		if text, ok := textOf(e); ok {
			all = append(all, text)
		} else if e[0] == '{' {
			for _, m := range members(e) {
				if text, ok := textOf(m.value); ok && m.key == "text" {
					all = append(all, text)
				}
			}
		}
	}
	return all
}

// naiveRequest reads by encoding/json what Parse reads.
func naiveRequest(api apis.API, body []byte) (s seen) {
	s.MaxTokens, s.Choices = -1, 1
	var system []string // the system message
	limits, choices := map[string]int{}, map[string]int{}
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
			s.Messages = naiveMessages(v, (api.Row().Dialect == apis.Anthropic))
		case "input":
			switch {
			case !api.Row().Items:
				s.Prompts, s.IDs = naivePrompts(v)
			case isText:
				s.Messages = []string{"user=" + text}
			default:
				s.Messages = naiveMessages(v, false)
			}
		case "prompt":
			s.Prompts, s.IDs = naivePrompts(v)
		case "instructions":
			if api.Row().Items {
				system = nil
			}
			if api.Row().Items && isText {
				system = []string{"system=" + text}
			}
		case "system":
			if api.Row().Dialect == apis.Anthropic {
				system = naiveSystem(v)
			}
		case "metadata":
			for _, f := range members(v) {
				if (api.Row().Dialect == apis.Anthropic) && f.key == "user_id" {
					s.User, _ = textOf(f.value)
				}
			}
		case "tools":
			s.Tools = ""
			if v[0] == '[' {
				s.Tools = string(v)
			}
		case "previous_response_id":
			s.Previous = text
		case "conversation":
			if s.Talk = ""; api.Row().Items {
				s.Talk = text
				for _, f := range members(v) {
					if f.key == "id" {
						s.Talk, _ = textOf(f.value)
					}
				}
			}
		case "user":
			s.User = text
		case "max_tokens", "max_output_tokens", "max_completion_tokens", "n_predict":
			delete(limits, m.key)
			if n, ok := whole(v); ok {
				limits[m.key] = n
			}
		case "n", "best_of", "n_cmpl":
			choices[m.key], _ = whole(v)
		case "min_tokens":
			n, _ := whole(v)
			s.MinTokens = max(0, n)
		case "ignore_eos":
			eos = string(v) == "true"
		case "stop", "stop_sequences":
			list, _ := elements(v)
			stop = isText && text != "" || len(list) > 0
		default:
			if slices.Contains(api.Row().Texts, m.key) {
				s.Prompts = append(s.Prompts, naiveTexts(v)...)
			}
		}
	}
	s.Messages = append(system, s.Messages...)
	for name := range limits {
		if slices.Contains(api.Row().Limits, name) {
			s.MaxTokens = slices.Max(slices.Collect(maps.Values(limits)))
		}
	}
	if slices.Contains(slices.Collect(maps.Values(limits)), -1) {
		s.MaxTokens = -1
	}
	for _, n := range choices {
		s.Choices = max(s.Choices, min(n, maxChoices))
	}
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

// naiveSystem is Anthropic's system message: a text, or texts without anything between.
func naiveSystem(v json.RawMessage) []string {
	if text, ok := textOf(v); ok {
		return []string{"system=" + text}
	}
	list, ok := elements(v)
	if !ok {
		return nil
	}
	all := "system="
	for _, e := range list {
		if kind, text := naivePart(e); kind == textPart {
			all += text
		}
	}
	return []string{all}
}

// naiveMessages leaves out what Anthropic's engines pass over.
func naiveMessages(v json.RawMessage, anthropic bool) (all []string) {
	list, _ := elements(v)
	for _, e := range list {
		fields := members(e)
		if fields == nil {
			continue
		}
		role, content, said, nothing := "", "-", false, false
		for _, f := range fields {
			switch f.key {
			case "role":
				role, _ = textOf(f.value)
			case "content":
				said = true
				content, nothing = naiveContent(f.value, anthropic)
			}
		}
		if !anthropic || !nothing && (said || role != "assistant") {
			all = append(all, role+content)
		}
	}
	return all
}

// naivePart is what a part of a list is, and its text.
func naivePart(v json.RawMessage) (k Kind, text string) {
	k = otherPart
	for _, f := range members(v) {
		switch f.key {
		case "type":
			kind, _ := textOf(f.value)
			k = kindOf([]byte(kind))
		case "text":
			text, _ = textOf(f.value)
		}
	}
	return k, text
}

// naiveContent is a message's text behind a "=", or "-" if it has to be rendered.
// nothing is whether it is a list of nothing that counts.
func naiveContent(v json.RawMessage, anthropic bool) (content string, nothing bool) {
	if text, ok := textOf(v); ok {
		return "=" + text, false
	}
	list, ok := elements(v)
	var texts []string
	kept, media, blocks := 0, false, false
	for _, e := range list {
		k, text := naivePart(e)
		if anthropic && e[0] == '{' && (k == otherPart || k == File) {
			continue
		}
		kept++
		blocks = blocks || k == blockPart
		media = media || k < textPart
		if k == textPart {
			texts = append(texts, text)
		}
	}
	if !blocks && (media || kept == 1 && len(texts) == 1 && texts[0] != "") {
		return "=" + strings.Join(texts, "\n"), false
	}
	return "-", ok && kept == 0
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
	if strings.Contains(string(body), string(billing)) {
		return false // see unbill
	}
	for api := apis.Other; api < apis.Len; api++ {
		if r.Parse(api, body) != nil {
			return false
		}
		got := seenOf(r)
		got.Media = nil
		if diff := cmp.Diff(naiveRequest(api, body), got); diff != "" {
			t.Fatalf("Parse(%v, %q) (-twin +got):\n%s", api, body, diff)
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
	kind := g.one(`"text"`, `"text"`, `"input_text"`, `"image_url"`, `"document"`, `"tool_use"`, `"new"`, g.value())
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
		name := g.one("stream", "max_tokens", "max_output_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "n_cmpl", "n_predict", "ignore_eos", "stop",
			"stop_sequences", "tools", "previous_response_id", "user", `\u0075ser`, "instructions", "system", "model", `m\u006fdel`, `max\u005ftokens`, "other", "prompt", "input", "metadata", "query", "documents", "text_1", "queries")
		return g.one(`"documents":`+g.list(4, g.part), `"system":`+g.list(3, g.part), `"input":`+g.list(3, g.message), `"metadata":{"user_id":`+g.value()+`}`, `"`+name+`"`+g.space()+":"+g.space()+g.value(), `"messages":`+g.list(5, g.message), `"prompt":`+g.list(5, g.value), `"`+name+`":`+g.value())
	}) + g.space()
}

// TestParseAgainstItsTwin reads requests of all forms, and with fields of wrong types.
func TestParseAgainstItsTwin(t *testing.T) {
	g := grammar{rand.New(rand.NewPCG(4, 4))}
	var r Request
	compared := 0
	for range 1500 {
		if checkParse(t, &r, []byte(g.body())) {
			compared++
		}
	}
	if compared < 800 {
		t.Errorf("only %d requests were compared", compared)
	}
}

// TestOrdinaryAgainstItsTwin puts an odd byte at each place of texts of all lengths.
func TestOrdinaryAgainstItsTwin(t *testing.T) {
	naive := func(b []byte) int {
		return len(b) - len(bytes.TrimLeftFunc(b, func(r rune) bool { return r >= ' ' && r != '"' && r != '\\' }))
	}
	for n := range 50 {
		for c := range 256 {
			for at := range n {
				b := bytes.Repeat([]byte{'x'}, n)
				b[at] = byte(c)
				b[(at*7+c)%n] = "\"\\\x1f a\x7f!#"[c%8]
				if got, want := ordinary(b), naive(b); got != want {
					t.Fatalf("plain(%q) = %d, want %d", b, got, want)
				}
			}
		}
	}
}
