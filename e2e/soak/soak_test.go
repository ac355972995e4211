//go:build soak

// Package soak keeps a mesh busy and hurt for a long time, and compares what each process
// takes before and after.
//
// Its one rule: what is compared is the same mesh at rest, before the first request and after
// the last one.
package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

var lasts = flag.Duration("lasts", 30*time.Minute, "how long the mesh is kept busy")

const (
	clients    = 8
	faultEvery = 9 * time.Second
	hangFor    = 2 * time.Second
	rest       = 20 * time.Second // in which what the last requests have begun ends
	// What a program may take more than before, of what does not follow from its bounds.
	moreFiles, moreGoroutines = 64, 128
	// backendMost is the bound of a llama.cpp backend with the default Model: weights, KV
	// cache, cache of prompts, batch (manifests/memory.md), in bytes.
	backendMost = 1400 << 20
)

// figures are what one process takes.
type figures struct {
	role       string
	resident   uint64
	files      int
	goroutines float64 // 0: it is no program of Go
	limit      float64 // of its memory, in bytes; 0: it says none
	restarts   int
}

// TestSoak has clients ask, break off, and fill what can be filled, while a part is killed or
// stopped every nine seconds, whatever state the others are in: at times no replica is ready.
// It says for how long, and holds the mesh to what a replica could serve that was ready all
// the while that a client waited.
func TestSoak(t *testing.T) {
	m := rig.OwnMesh(t)
	before := measure(t, m)
	ready := watch(t, m)
	ctx, stop := context.WithTimeout(t.Context(), *lasts)
	defer stop()
	var asked tally
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(c)))
			for n := 0; ctx.Err() == nil; n++ {
				begin := time.Now()
				err := ask(m, t, r, c, n)
				if asked.take(err, begin) {
					select { // as clients do that respect Retry-After
					case <-ctx.Done():
					case <-time.After(again):
					}
				}
			}
		})
	}
	faults := hurt(ctx, t, m)
	all.Wait()
	m.AwaitWhole(t)
	ready.stop()
	var after map[string]figures
	_ = rig.Poll(rest, func() error { // whatever is left is shown, and judged, by the table
		after = measure(t, m)
		return more(before, after)
	})
	failed, lost := asked.judge(ready)
	t.Logf("%s: %d requests answered, %d broken off, %d refused, %d not answered within %v, %d lost while no replica was ready throughout, %d failed; %d faults",
		*lasts, asked.done, asked.aborted, asked.refused, asked.late, patience, len(lost), len(failed), faults)
	ready.log(t)
	table(t, m, before, after)
	if err := more(before, after); err != nil {
		t.Error(err)
	}
	for _, f := range failed {
		t.Errorf("failed although a replica was ready: %s to %s: %v", f.begin.UTC().Format(clock), f.end.UTC().Format(clock), f.err)
	}
	for _, f := range lost {
		t.Logf("lost: %s to %s: %v", f.begin.UTC().Format(clock), f.end.UTC().Format(clock), f.err)
	}
	if asked.done == 0 {
		t.Error("no request was answered")
	}
	if _, _, err := rig.Complete(t.Context(), m.URL(t, rig.ChatPath), rig.Ask(4, "hello")); err != nil {
		t.Errorf("the mesh at rest: %v", err)
	}
}

// clock is how a moment is shown, as the programs' logs have it.
const clock = "15:04:05.000"

// tally is how the requests of all clients went.
type tally struct {
	// mu guards the fields below.
	mu                           sync.Mutex
	done, aborted, refused, late int
	broken                       []failure // what may have failed
}

// failure is a request that got no answer, or only the beginning of one.
type failure struct {
	begin, end time.Time
	err        error
}

// take counts a request that has ended, and reports whether its client should wait.
func (a *tally) take(err error, begin time.Time) (wait bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err == nil:
		a.done++
	case errors.Is(err, errAborted):
		a.aborted++
	case errors.Is(err, errTooLong):
		a.refused++
	case errors.Is(err, context.DeadlineExceeded):
		a.late++
	case strings.Contains(err.Error(), "status 429"):
		a.refused++
		return true
	default:
		a.broken = append(a.broken, failure{begin, time.Now(), err})
		return true
	}
	return false
}

// judge parts requests that failed from those that no replica could have served. An answer
// that has begun is its replica's alone, and is lost with it.
func (a *tally) judge(r *readiness) (failed, lost []failure) {
	for _, f := range a.broken {
		var cut *cutError
		switch {
		case errors.As(f.err, &cut) && r.gap(cut.replica, f.begin, f.end), r.none(f.begin, f.end):
			lost = append(lost, f)
		default:
			failed = append(failed, f)
		}
	}
	return failed, lost
}

// table shows what each process takes, and checks it.
func table(t *testing.T, m *rig.Mesh, before, after map[string]figures) {
	t.Logf("%-18s %15s %15s %15s %9s %9s", "process", "MiB", "descriptors", "goroutines", "limit MiB", "restarts")
	for _, p := range m.State(t).Processes {
		b, a := before[p.Name], after[p.Name]
		t.Logf("%-18s %6d → %6d %6d → %6d %6.0f → %6.0f %9.0f %9d", p.Name, b.resident>>20, a.resident>>20, b.files, a.files, b.goroutines, a.goroutines, a.limit/(1<<20), a.restarts)
		if a.limit > 0 && float64(a.resident) > a.limit {
			t.Errorf("%s takes %d MiB, and keeps to %.0f", p.Name, a.resident>>20, a.limit/(1<<20))
		}
		if a.role == "backend" && a.resident > backendMost {
			t.Errorf("%s takes %d MiB of %d", p.Name, a.resident>>20, backendMost>>20)
		}
	}
}

// more says what has more descriptors or goroutines than before.
func more(before, after map[string]figures) error {
	var errs []error
	for name, a := range after {
		b := before[name]
		if a.files > b.files+moreFiles {
			errs = append(errs, fmt.Errorf("%s has %d descriptors, %d before", name, a.files, b.files))
		}
		if a.goroutines > b.goroutines+moreGoroutines {
			errs = append(errs, fmt.Errorf("%s has %.0f goroutines, %.0f before", name, a.goroutines, b.goroutines))
		}
	}
	return errors.Join(errs...)
}

// measure takes the figures of every process.
func measure(t *testing.T, m *rig.Mesh) map[string]figures {
	t.Helper()
	all := map[string]figures{}
	for _, p := range m.State(t).Processes {
		st, err := proc.State(p.PID)
		if err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		f := figures{role: p.Role, resident: st.RSS, files: len(files), restarts: p.Restarts}
		if admin := p.Addrs["metrics"]; admin != "" {
			f.goroutines, _ = rig.Metric(admin, "go_goroutines")
			f.limit, _ = rig.Metric(admin, "millrace_memory_limit_bytes")
		}
		all[p.Name] = f
	}
	return all
}

// hurt kills or stops one part after the other until ctx ends, and returns how many it hurt.
func hurt(ctx context.Context, t *testing.T, m *rig.Mesh) (n int) {
	r := rand.New(rand.NewPCG(2, 2))
	tick := time.NewTicker(faultEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return n
		case <-tick.C:
		}
		all := m.State(t).Processes
		p := all[r.IntN(len(all))]
		if p.PID == 0 || p.Role == "envoy" {
			continue // who is down is hurt already; without Envoy there is nobody to ask
		}
		n++
		if r.IntN(2) == 0 {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
			continue
		}
		if syscall.Kill(p.PID, syscall.SIGSTOP) == nil {
			time.AfterFunc(hangFor, func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) })
		}
	}
}

var (
	errAborted = errors.New("broken off")
	errTooLong = errors.New("too long for the context") // as it is meant to be
)

// cutError is an answer that has begun and does not end.
type cutError struct {
	replica string
	err     error
}

func (e *cutError) Error() string { return "cut by " + e.replica + ": " + e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

// patience is how long a client waits for an answer; again how long one waits that was
// refused.
const (
	patience = time.Minute
	again    = time.Second
)

// ask sends a client's n-th request: new conversations and old ones, of all lengths, streamed
// and not, from many tenants and sessions, some broken off, some that are refused.
func ask(m *rig.Mesh, t *testing.T, r *rand.Rand, client, n int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	url := m.URL(t, rig.ChatPath)
	text := fmt.Sprintf("client %d, story %d. %s", client, n/2, strings.Repeat(fmt.Sprintf("Part %d goes on. ", n/2), 1+r.IntN(120)))
	q := rig.Ask(1+r.IntN(12), text)
	headers := []string{"authorization", fmt.Sprintf("Bearer %d", r.IntN(1<<20)), "x-session-id", fmt.Sprintf("session-%d-%d", client, n/2)}
	switch r.IntN(8) {
	case 0: // too long for the context
		q.Messages[0].Content = strings.Repeat(text, 1+2_000_000/len(text))
		_, a, err := rig.Complete(ctx, url, q, headers...)
		if a.Status == http.StatusBadRequest {
			return errTooLong
		}
		return err
	case 1, 2: // broken off
		q.Stream, q.MaxTokens = true, 64
		return stream(ctx, url, q, func(string) error {
			if r.IntN(3) == 0 {
				return errAborted
			}
			return nil
		}, headers...)
	case 3: // broken off before it begins
		soon, give := context.WithTimeout(ctx, time.Duration(r.IntN(300))*time.Millisecond)
		defer give()
		_, _, err := rig.Complete(soon, url, q, headers...)
		if soon.Err() != nil {
			return errAborted
		}
		return err
	case 4, 5:
		q.Stream = true
		return stream(ctx, url, q, nil, headers...)
	}
	_, _, err := rig.Complete(ctx, url, q, headers...)
	return err
}

// stream reads a streamed answer to its end.
func stream(ctx context.Context, url string, q rig.Chat, chunk func(string) error, headers ...string) error {
	s, err := rig.Stream(ctx, url, q, chunk, headers...)
	if err != nil && s.Chunks > 0 && !errors.Is(err, errAborted) {
		return &cutError{s.Header.Get("x-millrace-replica"), err}
	}
	return err
}
