package chat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"millrace.dev/millrace/internal/wire"
)

// message is one turn of a conversation.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// answer is what is known of one answer beside its text.
type answer struct {
	text          string
	node, replica string // who answered; empty if the server does not say
	usage         usage
	ttft          time.Duration // from the request to the first token
	decode        time.Duration // from the first token to the last
	finish        string        // "stop", "length", …
}

// summary is the line under an answer.
func (a answer) summary() string {
	var parts []string
	if a.node != "" {
		parts = append(parts, strings.TrimSpace(a.node+" "+a.replica))
	}
	parts = append(parts,
		fmt.Sprintf("%d of %d prompt tokens cached", a.usage.Details.Cached, a.usage.Prompt),
		fmt.Sprintf("TTFT %d ms", a.ttft.Milliseconds()),
		fmt.Sprintf("%d tokens", a.usage.Completion))
	if a.usage.Completion > 1 && a.decode > 0 {
		parts = append(parts, fmt.Sprintf("%.1f tok/s", float64(a.usage.Completion-1)/a.decode.Seconds()))
	}
	if a.finish == "length" {
		parts = append(parts, "cut at the limit")
	}
	return "[" + strings.Join(parts, " · ") + "]"
}

// client talks to an OpenAI API.
type client struct {
	url  string // without the final slash
	http http.Client
	// temperature is how freely words are chosen; nil: the model's own.
	temperature *float64
}

// firstModel returns the id of the first model that the server lists.
func (c *client) firstModel(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/v1/models", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if resp.StatusCode != http.StatusOK {
		return "", refusal(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxEvent)).Decode(&list); err != nil {
		return "", fmt.Errorf("/v1/models: %w", err)
	}
	if len(list.Data) == 0 {
		return "", fmt.Errorf("/v1/models: %s serves no model", c.url)
	}
	return list.Data[0].ID, nil
}

// maxAnswer bounds an answer, in tokens: small models don't always find an end.
const maxAnswer = 512

// ask sends a conversation and writes the answer, of at most limit tokens, to w while it comes.
func (c *client) ask(ctx context.Context, model, session string, turns []message, limit int, w io.Writer) (answer, error) {
	request := map[string]any{
		"model": model, "messages": turns, "stream": true, "max_tokens": limit,
		"stream_options": map[string]bool{"include_usage": true},
	}
	if c.temperature != nil {
		request["temperature"] = *c.temperature
	}
	body, err := json.Marshal(request)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("X-Session-Id", session)
	began := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer{}, refusal(resp)
	}
	return stream(resp, began, w)
}

// stream reads a streamed answer.
func stream(resp *http.Response, began time.Time, w io.Writer) (answer, error) {
	a := answer{node: resp.Header.Get(wire.NodeHeader), replica: resp.Header.Get(wire.ReplicaHeader)}
	var (
		text        strings.Builder
		first, last time.Time
	)
	err := readEvents(resp.Body, func(c chunk) {
		if c.Usage != nil {
			a.usage = *c.Usage
		}
		for _, choice := range c.Choices {
			if choice.FinishReason != "" {
				a.finish = choice.FinishReason
			}
			if choice.Delta.Content == "" {
				continue
			}
			last = time.Now()
			if first.IsZero() {
				first = last
			}
			text.WriteString(choice.Delta.Content)
			_, _ = io.WriteString(w, choice.Delta.Content)
		}
	})
	// To the very end: a stream left behind its last event looks like a client
	// that went away.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxEvent))
	a.text = text.String()
	if !first.IsZero() {
		a.ttft, a.decode = first.Sub(began), last.Sub(first)
	}
	return a, err
}

// refusal is the error of a response that is not 200.
func refusal(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var c chunk
	if json.Unmarshal(b, &c) == nil && c.Error != nil && c.Error.Message != "" {
		return fmt.Errorf("%s: %w", resp.Status, c.Error)
	}
	return fmt.Errorf("%s: %.200s", resp.Status, bytes.TrimSpace(b))
}
