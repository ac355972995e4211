package e2e

import (
	"fmt"
	"math"
	"net/http"
	"sync"
	"syscall"
	"testing"
)

// shareBand is how far a share of the traffic may lie from the weights' ratio.
const shareBand = 0.05

// TestHalfTheCapacityGetsHalfTheTraffic takes extproc away and counts at Envoy
// where 1,000 requests went, while one node reports half the other's capacity.
// Each is a real completion of one token.
func TestHalfTheCapacityGetsHalfTheTraffic(t *testing.T) {
	m := own(t, "-capacity", "node-a=100,node-c=50")
	m.whole(t)
	r := m.replicas(t)
	full, half := m.addr(t, "engine@"+r.head, "http"), m.addr(t, "engine@"+r.whole, "http")
	waitFor(t, backLimit, "the weights are 2 to 1", func() error {
		hs, err := m.hosts("engines/")
		if err == nil && (hs[full].weight == 0 || hs[full].weight != 2*hs[half].weight) {
			err = fmt.Errorf("Envoy has %+v", hs)
		}
		return err
	})
	picker := m.process(t, "extproc")
	if err := syscall.Kill(picker.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(picker.PID, syscall.SIGCONT) })
	waitFor(t, outLimit, "Envoy gives up extproc", func() error { return outPicker(m, nil) })
	before := m.engines(t)
	const total = 1000
	m.burst(t, total)
	after := m.engines(t)
	a, b := after[full].requests-before[full].requests, after[half].requests-before[half].requests
	t.Logf("%d requests to capacity 100, %d to capacity 50", a, b)
	if share := float64(b) / float64(a+b); math.Abs(share-1.0/3) > shareBand || a+b != total {
		t.Errorf("the half node got %.3f of %d requests, want %.3f ± %.2f of %d", share, a+b, 1.0/3, shareBand, total)
	}
}

// burst sends n completions of one token, four at a time.
func (m *mesh) burst(t *testing.T, n int) {
	t.Helper()
	url := m.url(t, "/v1/completions")
	req := map[string]any{"model": model, "prompt": "a", "max_tokens": 1}
	work := make(chan int)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range work {
				if a, err := post(t.Context(), url, req); err != nil || a.status != http.StatusOK {
					t.Errorf("status %d %v: %.300s", a.status, err, a.body)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}
