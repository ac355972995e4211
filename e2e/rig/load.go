package rig

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Load is a steady bounded load: a few clients, each with one request at a time.
type Load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Atomic.
	done, retried atomic.Int64

	// mu guards the fields below.
	mu     sync.Mutex
	failed []string
	served map[string]int // by replica
}

// Outcome is how a request went, beside its error.
type Outcome struct {
	Replica string // who answered
	Retried bool   // whether Envoy tried more than once
}

// StartLoadOf begins a load of requests of any kind; it ends with the test at the
// latest. send sends a client's n-th request; its context is not cancelled
// when the load is stopped: requests in flight are answered.
func StartLoadOf(t testing.TB, clients int, send func(ctx context.Context, client, n int) (Outcome, error)) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{cancel: cancel, served: map[string]int{}}
	requests := context.WithoutCancel(t.Context()) // cleanups run after its end
	for c := range clients {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.count(send(requests, c, n))
			}
		})
	}
	t.Cleanup(l.Stop)
	return l
}

// StartLoad begins a load of requests that are not streamed. ask returns the body of
// a client's n-th request. A request fails when its answer is not 200 with a choice.
func StartLoad(t testing.TB, url string, clients int, ask func(client, n int) any) *Load {
	t.Helper()
	return StartLoadOf(t, clients, func(ctx context.Context, client, n int) (Outcome, error) {
		_, a, err := Complete(ctx, url, ask(client, n))
		if err != nil {
			err = fmt.Errorf("after %v from %q: %w", a.Took, a.Header.Get("x-millrace-replica"), err)
		}
		attempts := a.Header.Get("x-envoy-attempt-count")
		return Outcome{a.Header.Get("x-millrace-replica"), attempts != "" && attempts != "1"}, err
	})
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

// count counts how one request went.
func (l *Load) count(o Outcome, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = append(l.failed, err.Error())
	}
	if o.Retried {
		l.retried.Add(1)
	}
	l.served[o.Replica]++
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
		const shown = 20 // a mesh that is gone fails thousands
		t.Errorf("%d of %d requests failed, the first:\n%s", len(failed), l.done.Load(), strings.Join(failed[:min(shown, len(failed))], "\n"))
	}
}

// String is the figures for the closing note.
func (l *Load) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d requests, %d failed, %d retried, served by %v", l.done.Load(), len(l.failed), l.retried.Load(), l.served)
}
