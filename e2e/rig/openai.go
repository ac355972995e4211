package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Paths of the API.
const (
	ChatPath       = "/v1/chat/completions"
	CompletionPath = "/v1/completions"
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
	var c Completion
	a, err := Post(ctx, url, v, header...)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %.300s", a.Status, a.Body)
	}
	if err == nil {
		err = json.Unmarshal(a.Body, &c)
	}
	if err == nil && len(c.Choices) == 0 {
		err = fmt.Errorf("no choices: %.300s", a.Body)
	}
	return c, a, err
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
	Done   bool // whether [DONE] came
	Header http.Header
	First  time.Duration // from the request to the first text
	Took   time.Duration
}

// Stream posts a streamed chat or completion request and reads it to its end. chunk,
// if not nil, is called with the text of each event; an error of it ends the stream.
// v must marshal to an object with "stream": true.
func Stream(ctx context.Context, url string, v any, chunk func(text string) error, header ...string) (s Streamed, _ error) {
	b, err := json.Marshal(v)
	if err != nil {
		return s, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return s, err
	}
	req.Header.Set("content-type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
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
		return s, errors.New("the stream ended without [DONE]")
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
	for _, c := range e.Choices {
		text := c.Text + c.Delta.Content
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
