package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// Paths of the API.
const (
	ChatPath       = "/v1/chat/completions"
	CompletionPath = "/v1/completions"
	ResponsePath   = "/v1/responses"
	EmbeddingPath  = "/v1/embeddings"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// System returns a message of the system.
func System(text string) Message { return Message{"system", text} }

// User returns a message of the user.
func User(text string) Message { return Message{"user", text} }

// Assistant returns an answer, for the next turn's request.
func Assistant(text string) Message { return Message{"assistant", text} }

// Chat is a request for a chat completion.
type Chat struct {
	Model       string    `json:"model"`
	Messages    []Message `json:"messages"`
	MaxTokens   int       `json:"max_tokens"`
	Temperature float64   `json:"temperature"`
	Stream      bool      `json:"stream,omitempty"`
}

// Ask returns a greedy chat request of one user message to the default model.
func Ask(maxTokens int, text string) Chat {
	return Chat{Model: Model, Messages: []Message{User(text)}, MaxTokens: maxTokens}
}

// Usage is the API's count of tokens.
type Usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// Completion is the body of a chat completion or a completion.
type Completion struct {
	Object  string `json:"object"`
	Model   string `json:"model"`
	Choices []struct {
		Text    string  `json:"text"`
		Message Message `json:"message"`
	} `json:"choices"`
	Usage Usage `json:"usage"`
	// Timings are llama.cpp's own.
	Timings struct {
		Cached    int     `json:"cache_n"`
		Prompt    int     `json:"prompt_n"`
		Predicted int     `json:"predicted_n"`
		PerSecond float64 `json:"predicted_per_second"`
	} `json:"timings"`
}

// Text is the answer's text.
func (c Completion) Text() string {
	if len(c.Choices) == 0 {
		return ""
	}
	return c.Choices[0].Message.Content + c.Choices[0].Text
}

// APIError is the API's form of an error.
type APIError struct {
	Error struct {
		Message *string `json:"message"`
		Type    *string `json:"type"`
		Param   any     `json:"param"`
		Code    any     `json:"code"`
	} `json:"error"`
}

// Complete posts a request for a chat completion or a completion and decodes the
// answer, which must be 200 and have a choice. For goroutines other than the test's.
func Complete(ctx context.Context, url string, v any, header ...string) (Completion, Answer, error) {
	c, a, err := Call[Completion](ctx, url, v, header...)
	if err == nil && len(c.Choices) == 0 {
		err = fmt.Errorf("no choices: %.300s", a.Body)
	}
	return c, a, err
}

// Call posts v as JSON and decodes the answer, which must be 200.
func Call[T any](ctx context.Context, url string, v any, header ...string) (T, Answer, error) {
	var to T
	a, err := Post(ctx, url, v, header...)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %.300s", a.Status, a.Body)
	}
	if err == nil {
		err = json.Unmarshal(a.Body, &to)
	}
	return to, a, err
}

// Response is the body of a response, as /v1/responses has it.
type Response struct {
	Object string `json:"object"`
	Output []struct {
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
	} `json:"output"`
}

// Text is the response's text.
func (r Response) Text() string {
	var text strings.Builder
	for _, o := range r.Output {
		for _, c := range o.Content {
			text.WriteString(c.Text)
		}
	}
	return text.String()
}

// Embeddings is the body of the embeddings of several texts.
type Embeddings struct {
	Data []struct {
		Embedding []float64 `json:"embedding"`
	} `json:"data"`
}

// Turn is how one turn of a conversation went.
type Turn struct {
	Text    string
	Replica string // who answered
	Prompt  int    // tokens
	Cached  int    // tokens of the prompt that the replica had in its cache
	Why     string // it was this replica, where the request asked for that
}

// Converse holds a conversation that begins with a chat request, whose messages it does
// not change, and returns its turns. header returns what a turn's request carries, given the
// header of the last answer that set a session cookie, nil if none did.
func Converse(ctx context.Context, url string, q Chat, turns int, header func(last http.Header) []string) ([]Turn, error) {
	var all []Turn
	var last http.Header
	q.Messages = slices.Clone(q.Messages)
	for n := range turns {
		c, a, err := Complete(ctx, url, q, header(last)...)
		if err != nil {
			return all, fmt.Errorf("turn %d: %w", n+1, err)
		}
		if SessionCookie(a.Header) != "" {
			last = a.Header
		}
		all = append(all, Turn{c.Text(), a.Header.Get("x-millrace-replica"), c.Usage.Prompt, c.Usage.Details.Cached, a.Header.Get("x-millrace-decision")})
		q.Messages = append(q.Messages, Assistant(c.Text()), User(fmt.Sprintf("Continue with part %d.", n)))
	}
	return all, nil
}

// Stayed says what is wrong unless one replica, which says its name, has answered all turns,
// and had ever more of them in its cache. Some engines cache whole blocks of tokens, so
// that two turns may have the same of them.
func Stayed(turns []Turn) error {
	var errs []error
	var cached []int
	for i, turn := range turns {
		if home := turns[0].Replica; turn.Replica != home || home == "" {
			errs = append(errs, fmt.Errorf("turn %d went to %q, the first to %q: %s", i+1, turn.Replica, home, turn.Why))
		}
		if i > 0 && (turn.Cached == 0 || turn.Cached < turns[i-1].Cached) {
			errs = append(errs, fmt.Errorf("turn %d: %d cached tokens of %d, %d in the turn before", i+1, turn.Cached, turn.Prompt, turns[i-1].Cached))
		}
		cached = append(cached, turn.Cached)
	}
	if n := len(turns); n < 3 || turns[n-1].Cached <= turns[1].Cached {
		errs = append(errs, fmt.Errorf("cached tokens by turn %v; must grow", cached))
	}
	return errors.Join(errs...)
}

// MustStay fails the test unless the conversation has stayed.
func MustStay(t testing.TB, turns []Turn) {
	t.Helper()
	if err := Stayed(turns); err != nil {
		t.Error(err)
	}
	var cached []int
	for _, turn := range turns {
		cached = append(cached, turn.Cached)
	}
	t.Logf("cached tokens by turn: %v", cached)
}

// SessionCookie returns the session cookie that an answer set, as a request sends
// it; "" if there is none.
func SessionCookie(h http.Header) string {
	for _, c := range (&http.Response{Header: h}).Cookies() {
		if c.Name == "millrace-session" {
			return c.Name + "=" + c.Value
		}
	}
	return ""
}

// Streamed is what came of a streamed answer.
type Streamed struct {
	Text   string
	Chunks int // data events before [DONE]
	Usage  Usage
	Done   bool // whether [DONE] came, or what ends a response
	Header http.Header
	First  time.Duration // from the request to the first text
	Took   time.Duration
}

// Stream posts a streamed chat, completion or response and reads it to its end. chunk,
// if not nil, is called with the text of each event; an error of it ends the stream.
// v must marshal to an object with "stream": true.
func Stream(ctx context.Context, url string, v any, chunk func(text string) error, header ...string) (s Streamed, _ error) {
	req, err := post(ctx, url, v, header...)
	if err != nil {
		return s, err
	}
	begin := time.Now()
	defer func() { s.Took = time.Since(begin) }()
	resp, err := Client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	s.Header = resp.Header
	if resp.StatusCode != http.StatusOK {
		var text bytes.Buffer
		_, _ = text.ReadFrom(resp.Body)
		return s, fmt.Errorf("status %d: %.300s", resp.StatusCode, text.String())
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue
		}
		if err := s.event(strings.TrimSpace(data), time.Since(begin), chunk); err != nil {
			return s, err
		}
	}
	if err := lines.Err(); err != nil {
		return s, err
	}
	if !s.Done {
		return s, errors.New("the stream ended without [DONE], response.completed or response.incomplete")
	}
	return s, nil
}

// event takes one data event.
func (s *Streamed) event(data string, at time.Duration, chunk func(string) error) error {
	if data == "[DONE]" {
		s.Done = true
		return nil
	}
	var e struct {
		Choices []struct {
			Text  string
			Delta struct{ Content string }
		}
		Usage *Usage
		Error json.RawMessage
		// Of a response's stream.
		Type, Delta string
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return fmt.Errorf("%w in %.300s", err, data)
	}
	if len(e.Error) > 0 {
		return fmt.Errorf("the stream has an error event: %.300s", data)
	}
	s.Chunks++
	if e.Usage != nil {
		s.Usage = *e.Usage
	}
	s.Done = e.Type == "response.completed" || e.Type == "response.incomplete"
	texts := []string{}
	if e.Type == "response.output_text.delta" {
		texts = append(texts, e.Delta)
	}
	for _, c := range e.Choices {
		texts = append(texts, c.Text+c.Delta.Content)
	}
	for _, text := range texts {
		if text != "" && s.First == 0 {
			s.First = at
		}
		s.Text += text
		if chunk == nil {
			continue
		}
		if err := chunk(text); err != nil {
			return err
		}
	}
	return nil
}
