package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// load is a steady bounded load of short requests that are not streamed: a few
// clients, each with one request at a time.
type load struct {
	url    string
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Atomic.
	done, retried atomic.Int64

	// mu guards the fields below.
	mu     sync.Mutex
	failed []string
	served map[string]int // by replica
}

// startLoad begins the load; it ends with the test at the latest.
func (m *mesh) startLoad(t *testing.T, clients int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{url: m.url(t, "/v1/chat/completions"), cancel: cancel, served: map[string]int{}}
	for c := range clients {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.one(fmt.Sprintf("client %d, question %d: name a colour", c, n))
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

// one sends one request and notes how it went.
func (l *load) one(prompt string) {
	a, err := post(context.Background(), l.url, ask(4, prompt))
	replica := a.header.Get("x-millrace-replica")
	var body completion
	if err == nil && a.status == http.StatusOK {
		err = json.Unmarshal(a.body, &body)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || a.status != http.StatusOK || len(body.Choices) != 1 {
		l.failed = append(l.failed, fmt.Sprintf("status %d after %v from %q: %v %.300s", a.status, a.took, replica, err, a.body))
	}
	if n := a.header.Get("x-envoy-attempt-count"); n != "" && n != "1" {
		l.retried.Add(1)
	}
	l.served[replica]++
	l.done.Add(1)
}

// more waits until the clients have finished n more requests.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	from := l.done.Load()
	waitFor(t, backLimit, "requests are answered", func() error {
		if got := l.done.Load() - from; got < n {
			return fmt.Errorf("%d requests, want %d", got, n)
		}
		return nil
	})
}

// stop ends the load when the requests in flight are answered.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// unfailed stops the load and fails the test if a request failed.
func (l *load) unfailed(t *testing.T) {
	t.Helper()
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d requests failed:\n%s", len(l.failed), l.done.Load(), strings.Join(l.failed, "\n"))
	}
}

// String is the figures for the closing note.
func (l *load) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d requests, %d failed, %d retried, served by %v", l.done.Load(), len(l.failed), l.retried.Load(), l.served)
}
