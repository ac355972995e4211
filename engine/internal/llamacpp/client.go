package llamacpp

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

	"millrace.dev/millrace/engine/enginepb"
)

// idleTimeout is less than the 5 s after which llama.cpp's server closes an idle
// connection, so that a request never meets one that is being closed.
const idleTimeout = 4 * time.Second

// maxReply bounds what is read of an answer that we ask for ourselves.
const maxReply = 4 << 20

// Transport returns the way to the backend: no proxy, no compression, many idle
// connections to its one host.
func Transport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
		MaxIdleConnsPerHost: 1024,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
		ReadBufferSize:      16 << 10,
		WriteBufferSize:     64 << 10,
	}
}

// Speed is what one sequence gets, in tokens per second; 0: not known.
type Speed struct{ Prefill, Decode float64 }

// Runner runs llama.cpp by Programs and asks it how it is.
type Runner struct {
	Programs
	client http.Client
}

// NewRunner returns a Runner that reaches the backend through t.
func NewRunner(p Programs, t http.RoundTripper) *Runner {
	return &Runner{Programs: p, client: http.Client{Transport: t}}
}

// ShardListens reports whether this node's shard can be reached.
func (r *Runner) ShardListens() bool {
	ok, err := listens(r.ShardAddress)
	return ok && err == nil
}

// Healthy reports whether the backend has loaded the model and answers.
func (r *Runner) Healthy(ctx context.Context) bool {
	_, err := r.do(ctx, http.MethodGet, "/health", nil)
	return err == nil
}

// errNoToken is returned by a probe whose answer holds no token.
var errNoToken = errors.New("probe: the backend generated no token")

// Probe has the backend generate the given number of tokens, which proves the
// whole replica, shards included, and measures it.
func (r *Runner) Probe(ctx context.Context, tokens int) (Speed, error) {
	body := fmt.Appendf(nil, `{"prompt":"One two three four five six seven eight nine ten","n_predict":%d,`+
		`"temperature":0,"ignore_eos":true,"cache_prompt":false}`, tokens)
	reply, err := r.do(ctx, http.MethodPost, "/completion", body)
	if err != nil {
		return Speed{}, fmt.Errorf("probe: %w", err)
	}
	u, ok := ParseUsage(reply)
	if !ok || u.Completion == 0 {
		return Speed{}, errNoToken
	}
	return u.Speed(), nil
}

// KVUsed returns the number of tokens that the backend's slots hold.
func (r *Runner) KVUsed(ctx context.Context) (uint64, error) {
	reply, err := r.do(ctx, http.MethodGet, "/slots", nil)
	if err != nil {
		return 0, fmt.Errorf("slots: %w", err)
	}
	var slots []struct {
		Tokens uint64 `json:"n_prompt_tokens"`
	}
	if err := json.Unmarshal(reply, &slots); err != nil {
		return 0, fmt.Errorf("slots: %w", err)
	}
	var sum uint64
	for _, s := range slots {
		sum += s.Tokens
	}
	return sum, nil
}

func (r *Runner) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.BackendAddress+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, ParseError(resp.StatusCode, reply).Message)
	}
	return reply, err
}

// ContextOf returns the room of the replica's KV cache, in tokens.
func ContextOf(b *enginepb.Backend) uint64 {
	return uint64(b.GetContextTokens()) * uint64(b.GetSlots())
}
