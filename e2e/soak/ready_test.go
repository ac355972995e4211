//go:build soak

package soak

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// probeEvery is how often engines are asked whether they are ready, probeFor how long they may
// take to answer.
const (
	probeEvery = 250 * time.Millisecond
	probeFor   = time.Second
)

// readiness is when which replica was ready, as its engine said itself: nobody between it and
// the test can be wrong about that.
type readiness struct {
	stop func() // ends it; nothing changes any more once it has returned

	// Of the goroutine that asks, until stop has returned.
	began, ended time.Time
	gaps         map[string][]gap // when it was not ready, by replica
	nobody       time.Duration    // for how long no replica was
}

// gap is a time in which a replica was not ready: from the last moment that it was known to
// be until the next one.
type gap struct {
	from, to time.Time // to is zero: it lasts
}

// watch asks the engines until stop is called. All replicas must be ready.
func watch(t *testing.T, m *rig.Mesh) *readiness {
	engines := map[string]string{} // replicas' addresses
	for _, p := range m.State(t).Processes {
		if p.Role != "engine" {
			continue
		}
		if replica := readyReplica(t.Context(), p.Addrs["http"]); replica != "" {
			engines[replica] = p.Addrs["http"]
		}
	}
	if len(engines) != m.Engines {
		t.Fatalf("replicas %v are ready, want %d", slices.Collect(maps.Keys(engines)), m.Engines)
	}
	ctx, cancel := context.WithCancel(t.Context())
	now := time.Now()
	r := &readiness{began: now, ended: now, gaps: map[string][]gap{}}
	for replica := range engines {
		r.gaps[replica] = nil
	}
	done := make(chan struct{})
	r.stop = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.round(ctx, engines)
			}
		}
	}()
	return r
}

// round asks every engine once.
func (r *readiness) round(ctx context.Context, engines map[string]string) {
	var all sync.WaitGroup
	var mu sync.Mutex
	is := map[string]bool{}
	for replica, address := range engines {
		all.Go(func() {
			got := readyReplica(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			is[replica] = got == replica
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return
	}
	now, some := time.Now(), false
	for replica := range engines {
		gaps := r.gaps[replica]
		open := len(gaps) > 0 && gaps[len(gaps)-1].to.IsZero()
		switch {
		case is[replica] && open:
			gaps[len(gaps)-1].to = now
		case !is[replica] && !open:
			r.gaps[replica] = append(gaps, gap{from: r.ended})
		}
		some = some || is[replica]
	}
	if !some {
		r.nobody += now.Sub(r.ended)
	}
	r.ended = now
}

// noticed is how long an engine may take to notice that its backend has gone: those whose
// answers are cut by that know it before.
const noticed = time.Second

// gap reports whether a replica was not ready at some moment of a time.
func (r *readiness) gap(replica string, from, to time.Time) bool {
	to = to.Add(noticed)
	return slices.ContainsFunc(r.gaps[replica], func(g gap) bool {
		return !g.from.After(to) && (g.to.IsZero() || !g.to.Before(from))
	})
}

// none reports whether no replica was ready throughout a time.
func (r *readiness) none(from, to time.Time) bool {
	for replica := range r.gaps {
		if !r.gap(replica, from, to) {
			return false
		}
	}
	return true
}

// log says for how long which replica was not ready.
func (r *readiness) log(t *testing.T) {
	for _, replica := range slices.Sorted(maps.Keys(r.gaps)) {
		var sum, longest time.Duration
		for _, g := range r.gaps[replica] {
			to := g.to
			if to.IsZero() {
				to = r.ended
			}
			sum, longest = sum+to.Sub(g.from), max(longest, to.Sub(g.from))
		}
		t.Logf("%s was not ready %d times, for %.1f s in all, %.1f s at most, of %.0f s", replica, len(r.gaps[replica]), sum.Seconds(), longest.Seconds(), r.ended.Sub(r.began).Seconds())
	}
	t.Logf("no replica was ready for %.1f s in all", r.nobody.Seconds())
}

// readyReplica returns the replica that the engine at an address is ready to serve; empty: none.
func readyReplica(ctx context.Context, address string) string {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/health", nil)
	if err != nil {
		return ""
	}
	resp, err := rig.Client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var said struct{ Replica string }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, 1<<10)).Decode(&said) != nil {
		return ""
	}
	return said.Replica
}
