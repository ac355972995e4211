package llamacpp

import (
	"bytes"
	"encoding/json"
	"maps"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/messages"
	"millrace.dev/millrace/internal/apis"
)

// lines puts an answer right line by line: ids have the letters of their operation,
// completions their own form of log probabilities, and several choices one account.
type lines struct {
	api     apis.API
	n       int  // choices of one prompt
	several bool // whether there are several choices
	account bool // whether the client wants a stream to end with an account
	// Of a stream.
	rest, out []byte
	open      bool // whether an event has begun that has not ended
	accounts  []map[string]json.RawMessage
}

// ids of completions begin as those of chats do; a quote within a text would be escaped.
var (
	chatID       = []byte(`"id":"chatcmpl-`)
	completionID = []byte(`"id":"cmpl-`)
)

// A message that a sequence has stopped says so by its reason, too.
var (
	stoppedAs  = []byte(`"stop_reason":"end_turn","stop_sequence":"`)
	stoppedOut = []byte(`"stop_reason":"stop_sequence","stop_sequence":"`)
)

// Unary puts a whole answer right.
func (l *lines) Unary(answer []byte) (string, []byte, error) {
	return backend.JSON, l.edit(answer), nil
}

// edit puts one object right.
func (l *lines) edit(object []byte) []byte {
	if l.api == apis.Completions {
		object = bytes.Replace(object, chatID, completionID, 1)
	}
	switch {
	case l.api == apis.Chat:
		return chatFields(object)
	case l.api == apis.Messages:
		return messages.Fill(bytes.Replace(object, stoppedAs, stoppedOut, 1))
	case l.api == apis.Completions && bytes.Contains(object, []byte(`"logprobs":{`)):
		return legacy(object)
	}
	return object
}

// The server leaves out what clients are promised of a chat's choice, if it is null.
var (
	aMessage = []byte(`"message":{"role":"assistant",`)
	allOfIt  = []byte(`"logprobs":null,"message":{"refusal":null,"role":"assistant",`)
	probed   = []byte(`"message":{"refusal":null,"role":"assistant",`)

	someLogprobs = []byte(`"logprobs":{"content":`)
	allLogprobs  = []byte(`"logprobs":{"refusal":null,"content":`)
)

func chatFields(object []byte) []byte {
	with := allOfIt
	if bytes.Contains(object, []byte(`"logprobs":{`)) {
		with = probed
	}
	object = bytes.ReplaceAll(object, someLogprobs, allLogprobs)
	return bytes.ReplaceAll(object, aMessage, with)
}

// Pass puts the lines of a stream right.
func (l *lines) Pass(p []byte) []byte {
	l.rest = append(l.rest, p...)
	l.out = l.out[:0]
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return l.out
		}
		l.line(l.rest[:i+1])
		l.rest = l.rest[i+1:]
	}
}

func (l *lines) line(line []byte) {
	data, ok := bytes.CutPrefix(line, []byte("data: "))
	if !ok {
		// Of an event that was left out, the empty line is, too.
		if empty := len(bytes.TrimSpace(line)) == 0; !empty || l.open {
			l.out, l.open = append(l.out, line...), !empty
		}
		return
	}
	if data = bytes.TrimSpace(data); l.several {
		data = l.tally(data)
	}
	if len(data) > 0 {
		l.out, l.open = append(append(append(l.out, "data: "...), l.edit(data)...), '\n'), true
	}
}

var eventEnd = []byte("\n\n")

// tally takes the accounts of several choices out of a stream, and gives one at its end.
func (l *lines) tally(data []byte) []byte {
	if string(data) == "null" {
		return nil // a further prompt has begun
	}
	if string(data) == "[DONE]" {
		if l.account && len(l.accounts) > 0 {
			event := maps.Clone(l.accounts[len(l.accounts)-1])
			event["choices"], event["usage"] = json.RawMessage("[]"), backend.Encode(backend.SumUsage(l.usages(), l.n))
			l.out = append(append(append(l.out, "data: "...), l.edit(backend.Encode(event))...), eventEnd...)
		}
		return data
	}
	var event fields
	if !bytes.Contains(data, []byte(`"usage":{`)) || json.Unmarshal(data, &event) != nil {
		return data
	}
	l.accounts = append(l.accounts, event)
	if string(event["choices"]) == "[]" {
		return nil
	}
	kept := fields{}
	for name, v := range event {
		if name != "usage" {
			kept[name] = v
		}
	}
	return backend.Encode(kept)
}

func (l *lines) usages() (all []map[string]json.RawMessage) {
	for _, a := range l.accounts {
		var u fields
		if json.Unmarshal(a["usage"], &u) == nil {
			all = append(all, u)
		}
	}
	return all
}

// Rest is what has come behind the last line.
func (l *lines) Rest() []byte { return l.rest }

// Fail leaves it to the operation.
func (l *lines) Fail(backend.Error) []byte { return nil }

// Tally is what all choices of a stream cost together, if there are several.
func (l *lines) Tally() (backend.Usage, bool) {
	if !l.several || len(l.accounts) == 0 {
		return backend.Usage{}, false
	}
	u, ok := backend.ParseUsage(backend.Encode(map[string]any{"usage": backend.SumUsage(l.usages(), l.n)}))
	return u, ok
}

// legacy gives the log probabilities of completions their form, which is older than
// that of chats: lists side by side.
func legacy(object []byte) []byte {
	var answer fields
	var choices []fields
	if json.Unmarshal(object, &answer) != nil || json.Unmarshal(answer["choices"], &choices) != nil {
		return object
	}
	type token struct {
		Token   string  `json:"token"`
		Logprob float64 `json:"logprob"`
	}
	for _, choice := range choices {
		var had struct {
			Content []struct {
				token
				Top []token `json:"top_logprobs"`
			} `json:"content"`
		}
		if json.Unmarshal(choice["logprobs"], &had) != nil || had.Content == nil {
			continue
		}
		tokens, logprobs, offsets := []string{}, []float64{}, []int{}
		top, at := []map[string]float64{}, 0
		for _, t := range had.Content {
			best := make(map[string]float64, len(t.Top))
			for _, other := range t.Top {
				best[other.Token] = other.Logprob
			}
			tokens, logprobs, offsets, top = append(tokens, t.Token), append(logprobs, t.Logprob), append(offsets, at), append(top, best)
			at += len([]rune(t.Token))
		}
		choice["logprobs"] = backend.Encode(map[string]any{
			"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets,
		})
	}
	answer["choices"] = backend.Encode(choices)
	return backend.Encode(answer)
}
