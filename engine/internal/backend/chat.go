package backend

import (
	"cmp"
	"encoding/json"
	"fmt"
)

// Delta is what an event of chat completions adds to the first choice of their answer; a
// unary answer is one of all. What makes answers of other APIs is built on it.
type Delta struct {
	// Reasoning, Content and Calls are what was generated.
	Reasoning, Content string
	Calls              []CallDelta
	// Logprobs are those of Content.
	Logprobs []json.RawMessage
	// Finish is why the model has stopped; empty: it has not.
	Finish string
	// Account is what the whole answer cost; nil: it comes later.
	Account *Account
	// Failed is whether this is an error instead.
	Failed bool
}

// CallDelta adds to the call of a function.
type CallDelta struct {
	Index           int
	ID              string
	Name, Arguments string
}

// Account is the usage of an answer, in tokens.
type Account struct{ Prompt, Cached, Completion uint64 }

// choiceDelta is what is generated of a choice.
type choiceDelta struct {
	Content   string `json:"content"`
	Reasoning string `json:"reasoning_content"`
	// Thoughts is the newer name for it.
	Thoughts string `json:"reasoning"`
	Calls    []struct {
		Index    *int   `json:"index"`
		ID       string `json:"id"`
		Function struct {
			Name      string `json:"name"`
			Arguments string `json:"arguments"`
		} `json:"function"`
	} `json:"tool_calls"`
}

// chunk is an event of chat completions, or their unary answer.
type chunk struct {
	Choices []struct {
		Delta    choiceDelta  `json:"delta"`
		Message  *choiceDelta `json:"message"`
		Finish   string       `json:"finish_reason"`
		Logprobs struct {
			Content []json.RawMessage `json:"content"`
		} `json:"logprobs"`
	} `json:"choices"`
	Usage *usage           `json:"usage"`
	Error *json.RawMessage `json:"error"` // null is none
}

func (c *chunk) delta(n *numbering) Delta {
	d := Delta{Failed: c.Error != nil}
	if u := c.Usage; u != nil {
		d.Account = &Account{Prompt: u.Prompt, Cached: min(u.Details.Cached, u.Prompt), Completion: u.Completion}
	}
	if len(c.Choices) == 0 {
		return d
	}
	choice := &c.Choices[0]
	s := &choice.Delta
	if choice.Message != nil {
		s = choice.Message
	}
	d.Content, d.Reasoning = s.Content, cmp.Or(s.Reasoning, s.Thoughts)
	d.Logprobs, d.Finish = choice.Logprobs.Content, choice.Finish
	for i, call := range s.Calls {
		at := i
		if choice.Message == nil { // a whole one numbers no calls
			at = n.of(call.Index, call.ID, call.Function.Name)
		}
		d.Calls = append(d.Calls, CallDelta{Index: at, ID: call.ID, Name: call.Function.Name, Arguments: call.Function.Arguments})
	}
	return d
}

// ChatAnswer reads a unary answer of chat completions.
func ChatAnswer(answer []byte) (Delta, error) {
	var c chunk
	if err := json.Unmarshal(answer, &c); err != nil {
		return Delta{}, fmt.Errorf("an answer of chat completions: %w", err)
	}
	return c.delta(&numbering{}), nil
}

// EachDelta calls do with each event of chat completions that has come whole, and its data.
func (l *Lines) EachDelta(p []byte, do func(d Delta, data string)) {
	l.Each(p, func(data string) {
		var c chunk
		if data != "[DONE]" && json.Unmarshal([]byte(data), &c) == nil {
			do(c.delta(&l.calls), data)
		}
	})
}

// Event appends an event of a stream.
func Event(to []byte, kind string, data []byte) []byte {
	to = append(append(append(to, "event: "...), kind...), "\ndata: "...)
	return append(append(to, data...), eventEnd...)
}
