package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"millrace.dev/millrace/internal/wire"
)

// maxReply bounds what is read of an answer that we ask for ourselves, in bytes.
const maxReply = 4 << 20

// Transport returns the way to the backend: no proxy, no compression, many idle
// connections to its one host.
func Transport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
		MaxIdleConnsPerHost: 1024,
		IdleConnTimeout:     wire.ClientIdle,
		DisableCompression:  true,
		ReadBufferSize:      16 << 10,
		WriteBufferSize:     64 << 10,
	}
}

// Client asks a backend for itself.
type Client struct{ http http.Client }

// NewClient returns a Client that reaches backends through t.
func NewClient(t http.RoundTripper) *Client { return &Client{http.Client{Transport: t}} }

// ErrStatus is an answer that is none.
type ErrStatus struct {
	// Status is the HTTP status, Body the answer's.
	Status int
	Body   []byte
}

// Error says the status and the server's message.
func (e *ErrStatus) Error() string {
	return fmt.Sprintf("status %d: %s", e.Status, Message(e.Status, e.Body))
}

// Do sends a request and returns the answer's body. The error of an answer that is
// not 200 is an *ErrStatus.
func (c *Client) Do(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	resp, err := c.send(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &ErrStatus{resp.StatusCode, reply}
	}
	return reply, err
}

func (c *Client) send(ctx context.Context, method, url string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.http.Do(req)
}

// ErrNoToken is returned by a probe whose answer holds no token.
var ErrNoToken = errors.New("probe: the backend generated no token")

// Stream asks for a completion as a stream and measures it by the clock: the time to
// the first event is that of the prompt.
func (c *Client) Stream(ctx context.Context, url string, body []byte) (Usage, error) {
	began := time.Now()
	resp, err := c.send(ctx, http.MethodPost, url, body)
	if err != nil {
		return Usage{}, fmt.Errorf("probe: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		reply, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply))
		return Usage{}, fmt.Errorf("probe: %w", &ErrStatus{resp.StatusCode, reply})
	}
	var all []byte
	var first, last time.Time
	buf := make([]byte, 4<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			last = time.Now()
			if first.IsZero() {
				first = last
			}
			all = append(all, buf[:n]...)
		}
		if err == io.EOF {
			break
		}
		if err == nil && len(all) > maxReply {
			err = errors.New("too long an answer")
		}
		if err != nil {
			return Usage{}, fmt.Errorf("probe: %w", err)
		}
	}
	u, ok := ParseUsage(all)
	if !ok || u.Completion == 0 {
		return Usage{}, ErrNoToken
	}
	u.Time(first.Sub(began), last.Sub(first))
	return u, nil
}

// Message returns what an error's body says to a person.
func Message(status int, body []byte) string {
	var reply struct {
		// Error is an object in OpenAI's form, a text elsewhere.
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
	}
	if json.Unmarshal(body, &reply) == nil {
		var inner struct {
			Message string `json:"message"`
		}
		for _, raw := range []json.RawMessage{reply.Error, reply.Detail} {
			var text string
			if json.Unmarshal(raw, &inner) == nil && inner.Message != "" {
				return inner.Message
			}
			if json.Unmarshal(raw, &text) == nil && text != "" {
				return text
			}
		}
		if reply.Message != "" {
			return reply.Message
		}
	}
	return "the backend answered " + http.StatusText(status)
}
