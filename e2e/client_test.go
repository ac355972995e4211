package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// model is the default model's id.
const model = "smollm2"

// client has no shared state with other tests' clients but the connections.
var client = &http.Client{Timeout: backLimit}

// answer is a response of the API, read whole.
type answer struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// usage is the API's count of tokens.
type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// completion is the body of a chat completion or a completion.
type completion struct {
	Object  string `json:"object"`
	Model   string `json:"model"`
	Choices []struct {
		Text    string `json:"text"`
		Message struct {
			Content string `json:"content"`
		} `json:"message"`
	} `json:"choices"`
	Usage usage `json:"usage"`
	// Timings are the backend's own.
	Timings struct {
		Cached    int     `json:"cache_n"`
		Prompt    int     `json:"prompt_n"`
		Predicted int     `json:"predicted_n"`
		PerSecond float64 `json:"predicted_per_second"`
	} `json:"timings"`
}

// apiError is the API's form of an error.
type apiError struct {
	Error struct {
		Message *string `json:"message"`
		Type    *string `json:"type"`
		Param   any     `json:"param"`
		Code    any     `json:"code"`
	} `json:"error"`
}

// message is one turn of a conversation.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// chat is a request for a chat completion.
type chat struct {
	Model       string    `json:"model"`
	Messages    []message `json:"messages"`
	MaxTokens   int       `json:"max_tokens"`
	Temperature float64   `json:"temperature"`
}

// ask returns a greedy chat request of one user message.
func ask(maxTokens int, text string) chat {
	return chat{Model: model, Messages: []message{{"user", text}}, MaxTokens: maxTokens}
}

// post sends v as JSON; header holds pairs of name and value.
func post(ctx context.Context, url string, v any, header ...string) (answer, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return answer{}, err
	}
	return send(ctx, url, bytes.NewReader(b), append([]string{"content-type", "application/json"}, header...)...)
}

// send sends the body as it is.
func send(ctx context.Context, url string, body io.Reader, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(req)
}

func do(req *http.Request) (answer, error) {
	begin := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b, time.Since(begin)}, err
}

// get returns the body of a page that must exist.
func get(url string) ([]byte, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	a, err := do(req)
	if err == nil && a.status != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %.200s", url, a.status, a.body)
	}
	return a.body, err
}

// mustPost posts v and fails the test unless the answer is 200.
func mustPost(t *testing.T, url string, v any, header ...string) answer {
	t.Helper()
	a, err := post(t.Context(), url, v, header...)
	if err != nil {
		t.Fatal(err)
	}
	if a.status != http.StatusOK {
		t.Fatalf("%s: status %d: %s", url, a.status, a.body)
	}
	return a
}

// decode reads JSON that must be well-formed.
func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %.300s", err, b)
	}
	return v
}
