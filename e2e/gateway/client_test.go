package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// chatPath is what most requests of these tests go to.
const chatPath = "/v1/chat/completions"

// program returns the path of a built program.
func program(name string) (string, error) {
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("%w; run `make build` first", err)
	}
	return path, nil
}

// cache is set-up's folder, filled by `make setup`.
func cache() string {
	if dir := os.Getenv("MILLRACE_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", ".cache")
}

// answer is a response, read whole.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// apiError is the API's form of an error.
type apiError struct {
	Error struct {
		Message *string `json:"message"`
		Type    *string `json:"type"`
		Code    any     `json:"code"`
	} `json:"error"`
}

var client = &http.Client{Timeout: 30 * time.Second}

func do(req *http.Request) (answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b}, err
}

// send posts the body; header holds pairs of name and value.
func send(ctx context.Context, url, body string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(req)
}

// get returns the body of a page that must be there.
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

// poll asks cond every 50 ms until it returns nil, and returns its last answer
// when the limit has passed.
func poll(limit time.Duration, cond func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := cond()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}

// buffer collects what processes write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
