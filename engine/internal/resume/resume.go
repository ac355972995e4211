// Package resume continues a streamed answer whose backend was lost. A Stream is fed the
// events of the backend's stream, knows what of the answer was delivered, makes the requests
// for the rest (prompt and delivered text, the remaining budget, the same seed), and makes
// events of the first stream of what comes then: one id, one end, one account.
//
// The contract, as a state machine of each choice:
//
//	open ── event with text ──► open (the text is kept)
//	open ── finish_reason ────► finished (nothing is asked for any more)
//	open ── the backend is lost: Next names the choice, Follow makes its request, Splice
//	        takes what comes, in the place of the events that were lost
//	open ── a tool call, or text beyond Most ──► Why: it ends with an error, as it did
//
// What was not delivered is generated again: the rest of a character or the beginning of a
// stop string that the backend has held back. Only whole events are delivered. How many
// tokens were delivered is what the backend counts of prompt and delivered text together,
// less the prompt's: nothing is asked of it for that while no backend is lost. Guided
// decoding and log probabilities are not continued: the grammar would begin anew, and
// probabilities of what was delivered are lost. Penalties that a backend takes
// for the answer's tokens alone count from the break.
//
// Called by api. Its one rule: it does no I/O and knows no product.
package resume

import (
	"encoding/json"
	"errors"
	"strings"
)

// Most bounds the text that is kept of a stream, in bytes; a longer answer is not continued.
const Most = 1 << 20

// folded is how many bytes of events are kept before their text is taken out of them, so
// that a short answer costs no decoding.
const folded = 64 << 10

// mostChoices bounds the choices of one stream.
const mostChoices = 128

// Form is the form of a backend's stream.
type Form int

// The forms.
const (
	// Chat is that of OpenAI's chat completions.
	Chat Form = iota
	// Text is that of its completions.
	Text
	// Message is that of Anthropic's messages.
	Message
)

// fields is a JSON object whose values were not decoded.
type fields = map[string]json.RawMessage

// Part is what was delivered of one choice.
type Part struct {
	// Index is the choice's.
	Index int `json:"index"`
	// Reasoning and Content are its text.
	Reasoning string `json:"reasoning,omitempty"`
	Content   string `json:"content,omitempty"`
}

// Empty reports whether nothing was delivered: the request is sent again as it was.
func (p Part) Empty() bool { return p.Reasoning == "" && p.Content == "" }

// choice is one of the answer.
type choice struct {
	reasoning, content strings.Builder
	begun              bool // whether who speaks was said
	called             bool // whether a tool's call was begun
	finished           bool
	counted            bool   // whether its account has come
	completion         uint64 // tokens; 0: not said
}

// Counts are tokens as the backend counts them.
type Counts struct {
	// Prompt is those of the request, Delivered those of the part behind it.
	Prompt, Delivered uint64
}

// Stream is one streamed answer. It is used by one goroutine.
type Stream struct {
	form    Form
	usage   bool // whether the client is to get an account
	choices []*choice
	head    fields // what all events of the first stream have in common
	raw     []byte // events that are not decoded yet
	size    int    // bytes of text
	why     error  // why it can't be continued
	done    bool   // whether its last event has come
	prompt  uint64 // tokens; 0: not said
	resumed bool

	// Of a Message.
	blocks   int    // that were begun
	open     string // type of the one that is open; "": none
	blocksAt int    // the number of the rest's first block
	moved    bool   // whether that has begun
	blank    []byte // its event, while nothing is in it; nil: it is delivered
}

// New returns the state of an answer of n choices, before its first event.
func New(form Form, n int) *Stream {
	s := &Stream{form: form}
	for range min(max(1, n), mostChoices) {
		s.choices = append(s.choices, &choice{})
	}
	return s
}

// Reasons why a stream is not continued.
var (
	ErrLong   = errors.New("more text was delivered than is kept")
	ErrCall   = errors.New("the call of a tool was begun")
	ErrForm   = errors.New("an event of the stream has another form")
	ErrGuided = errors.New("the answer is bound to a form, or has log probabilities")
	ErrPrompt = errors.New("the prompt has a form that is not continued")
)

// Why returns why the stream can't be continued; nil: it can.
func (s *Stream) Why() error {
	s.fold()
	if s.why == nil {
		for _, c := range s.choices {
			if c.called && !c.finished {
				return ErrCall
			}
		}
	}
	return s.why
}

// Done reports whether the last event has come.
func (s *Stream) Done() bool { s.fold(); return s.done }

// Resumed reports whether it was continued.
func (s *Stream) Resumed() bool { return s.resumed }

// Next returns the first choice that has not finished; false: all have.
func (s *Stream) Next() (Part, bool) {
	s.fold()
	for i, c := range s.choices {
		if !c.finished {
			return Part{Index: i, Reasoning: c.reasoning.String(), Content: c.content.String()}, true
		}
	}
	return Part{}, false
}

// Usage is the account of the whole answer: the prompt of the request once, and all that was
// delivered.
func (s *Stream) Usage() (prompt, completion uint64) {
	for _, c := range s.choices {
		completion += c.completion
	}
	return s.prompt, completion
}
