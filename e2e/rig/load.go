package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Load is a steady bounded load: a few clients, each with one request at a time. A
// request fails when its answer is not 200 with one choice.
type Load struct {
	url    string
	ask    func(client, n int) any
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Atomic.
	done, retried atomic.Int64

	// mu guards the fields below.
	mu     sync.Mutex
	failed []string
	served map[string]int // by replica, as the answers name it
}

// StartLoad begins the load; it ends with the test at the latest. ask returns the
// body of a client's n-th request, which must not ask for a stream.
func StartLoad(t testing.TB, url string, clients int, ask func(client, n int) any) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{url: url, ask: ask, cancel: cancel, served: map[string]int{}}
	for c := range clients {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.one(ask(c, n))
			}
		})
	}
	t.Cleanup(l.Stop)
	return l
}

// ShortQuestions asks for four tokens; no two prompts are the same.
func ShortQuestions(client, n int) any {
	return Ask(4, fmt.Sprintf("client %d, question %d: name a colour", client, n))
}

// SeededQuestions asks for one to most tokens; the same seed gives the same requests.
func SeededQuestions(seed uint64, most int) func(client, n int) any {
	return func(client, n int) any {
		r := rand.New(rand.NewPCG(seed, uint64(client)<<32|uint64(n)))
		return Ask(1+r.IntN(most), fmt.Sprintf("client %d, question %d: name the number %d", client, n, r.IntN(1000)))
	}
}

// StartLoad begins a load of short questions.
func (m *Mesh) StartLoad(t testing.TB, clients int) *Load {
	t.Helper()
	return StartLoad(t, m.URL(t, ChatPath), clients, ShortQuestions)
}

// one sends one request and counts how it went.
func (l *Load) one(v any) {
	a, err := Post(context.Background(), l.url, v)
	replica := a.Header.Get("x-millrace-replica")
	var body Completion
	if err == nil && a.Status == http.StatusOK {
		err = json.Unmarshal(a.Body, &body)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || a.Status != http.StatusOK || len(body.Choices) != 1 {
		l.failed = append(l.failed, fmt.Sprintf("status %d after %v from %q: %v %.300s", a.Status, a.Took, replica, err, a.Body))
	}
	if n := a.Header.Get("x-envoy-attempt-count"); n != "" && n != "1" {
		l.retried.Add(1)
	}
	l.served[replica]++
	l.done.Add(1)
}

// More waits until the clients have finished n more requests.
func (l *Load) More(t testing.TB, n int64) {
	t.Helper()
	from := l.done.Load()
	Wait(t, BackLimit, "requests are answered", func() error {
		if got := l.done.Load() - from; got < n {
			return fmt.Errorf("%d requests, want %d", got, n)
		}
		return nil
	})
}

// Stop ends the load when the requests in flight are answered.
func (l *Load) Stop() {
	l.cancel()
	l.wg.Wait()
}

// Done returns how many requests have ended.
func (l *Load) Done() int64 { return l.done.Load() }

// Failed returns what is wrong with each request that failed so far.
func (l *Load) Failed() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.failed...)
}

// MustAllSucceed stops the load and fails the test if a request failed.
func (l *Load) MustAllSucceed(t testing.TB) {
	t.Helper()
	l.Stop()
	if failed := l.Failed(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed:\n%s", len(failed), l.done.Load(), strings.Join(failed, "\n"))
	}
}

// String is the figures for the closing note.
func (l *Load) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d requests, %d failed, %d retried, served by %v", l.done.Load(), len(l.failed), l.retried.Load(), l.served)
}
