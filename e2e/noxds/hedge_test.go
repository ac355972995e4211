package noxds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// timed are how long requests took, and how often each was tried.
type timed struct {
	took     []time.Duration
	attempts []string
}

// time sends so many short questions, four at a time. All must be answered.
func (f *fleet) time(t *testing.T, about string, n int) timed {
	t.Helper()
	var mu sync.Mutex
	var all timed
	rig.Each(n, 4, func(i int) {
		began := time.Now()
		_, h, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("%s %d", about, i))}, 4)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Errorf("%s %d: %v", about, i, err)
		}
		all.took = append(all.took, time.Since(began))
		all.attempts = append(all.attempts, h.Get("x-envoy-attempt-count"))
	})
	slices.Sort(all.took)
	return all
}

// most is the longest time that a request took.
func (d timed) most() time.Duration { return d.took[len(d.took)-1] }

// TestEnginesThatHang stops one engine of three in the middle, and kills another at the same
// moment: requests that are sent at once are answered by the third as soon as the first
// byte is overdue. Before that, answers that take long but are alive are tried once.
func TestEnginesThatHang(t *testing.T) {
	f := newFleetOf(t, (*fleet).startEngine, func(file string) string { return strings.Replace(file, noHedges, "", 1) })
	f.time(t, "warm up", 12)
	t.Run("a long stream is neither cut nor sent twice", func(t *testing.T) {
		before, long := tries(f.served(t)), errors.New("long enough")
		var first time.Time
		s, err := rig.Stream(context.Background(), f.url(rig.ChatPath), map[string]any{
			"model": rig.Model, "messages": []rig.Message{rig.User("Count, in words.")}, "max_tokens": 1000, "stream": true, "ignore_eos": true,
		}, func(string) error {
			if first.IsZero() {
				first = time.Now()
			}
			if time.Since(first) > 4*time.Second {
				return long
			}
			return nil
		})
		if !errors.Is(err, long) {
			t.Errorf("it ended after %v: %v", time.Since(first), err)
		}
		if n := tries(f.served(t)) - before; n != 1 {
			t.Errorf("%d tries", n)
		}
		t.Logf("the first token came after %v", s.First)
	})
	t.Run("nor is what only comes late", func(t *testing.T) {
		before, began := tries(f.served(t)), time.Now()
		var h http.Header
		var err error
		if _, h, err = f.ask([]rig.Message{rig.User(strings.Repeat("one word and another ", 250))}, 60); err != nil {
			t.Fatal(err)
		}
		if n := tries(f.served(t)) - before; n != 1 {
			t.Errorf("%d tries, attempt %s", n, h.Get("x-envoy-attempt-count"))
		}
		t.Logf("took %v", time.Since(began))
	})
	t.Run("one dead and one hung", func(t *testing.T) {
		usual := f.time(t, "as usual", 12).most()
		f.engines[0].KillAndWait()
		defer rig.Suspend(t, f.engines[1].PID())()
		d := f.time(t, "in trouble", 24)
		t.Logf("as usual %v at most, in trouble %v; attempts %v", usual, d.took, d.attempts)
		// On a quiet machine that is 3 s. On a slow one predictions are longer, too.
		if limit := 3*time.Second + 5*max(0, usual-500*time.Millisecond); d.most() > limit {
			t.Errorf("a request took %v; must be ≤ %v", d.most(), limit)
		}
		if !slices.ContainsFunc(d.attempts, func(a string) bool { return a != "1" }) {
			t.Error("no request met the engines that do not answer")
		}
	})
}

func tries(all [3]int) int { return all[0] + all[1] + all[2] }

// slow is an engine that shows llama.cpp's metrics, and answers after a while.
type slow struct {
	*http.Server
	address string
	mu      sync.Mutex
	after   time.Duration
	got     int
}

// startSlow starts one that answers at once.
func startSlow(t *testing.T) *slow {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{address: l.Addr().String()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, n := s.state()
		fmt.Fprintf(w, "llamacpp:prompt_tokens_total %d\nllamacpp:prompt_seconds_total %g\nllamacpp:tokens_predicted_total %d\n"+
			"llamacpp:tokens_predicted_seconds_total %g\nllamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n",
			20*n, 0.02*float64(n), 4*n, 0.04*float64(n))
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.got++
		after := s.after
		s.mu.Unlock()
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // Envoy has gone
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(after):
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"choices":[{"message":{"role":"assistant","content":"`+s.address+`"}}]}`)
	})
	s.Server = &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (s *slow) state() (after time.Duration, got int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.after, s.got
}

func (s *slow) set(after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after = after
}

// TestHedgesForNothing has the engine of a conversation take longer than predicted: another
// one is asked, too, the first one answers, and is not taken for one that has failed. The
// next time it has more time.
func TestHedgesForNothing(t *testing.T) {
	a, b := startSlow(t), startSlow(t)
	f := newEdited(t, strings.ReplaceAll(named(a.address, b.address), "]}", "], type: llamacpp}"))
	f.await(t, "Envoy has both", func() error { return f.has(a.address, b.address) })
	ask := func() (by, attempts string) {
		t.Helper()
		c, h, err := f.ask([]rig.Message{rig.User("a conversation")}, 4, "x-session-id", "one")
		if err != nil {
			t.Fatal(err)
		}
		return c.Text(), h.Get("x-envoy-attempt-count")
	}
	first, _ := ask()
	f.await(t, "speeds are known", func() error {
		ask()
		n, err := rig.SumMetric(f.admin(), "millrace_extproc_prompt_tokens_total")
		if err == nil && n < 100 {
			err = fmt.Errorf("%v tokens are learned of", n)
		}
		return err
	})
	of := map[string]*slow{a.address: a, b.address: b}
	other := a
	if first == a.address {
		other = b
	}
	of[first].set(3 * time.Second)
	other.set(time.Minute)
	if by, attempts := ask(); by != first || attempts != "2" {
		t.Errorf("answered by %s after %s attempts, want %s after 2", by, attempts, first)
	}
	if n, err := rig.SumMetric(f.admin(), "millrace_extproc_endpoint_failures_total"); err != nil || n != 0 {
		t.Errorf("%v failures were counted, %v", n, err)
	}
	if n, err := rig.SumMetric(f.admin(), "millrace_extproc_ejections_total"); err != nil || n != 0 {
		t.Errorf("%v endpoints were ejected, %v", n, err)
	}
	if by, attempts := ask(); by != first || attempts != "1" {
		t.Errorf("the next was answered by %s after %s attempts, want %s after 1", by, attempts, first)
	}
}
