package e2e

import (
	"fmt"
	"math"
	"net/http"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// shareBand is how far a share of the traffic may lie from the weights' ratio.
const shareBand = 0.05

// TestHalfTheCapacityGetsHalfTheTraffic takes extproc away and counts at Envoy
// where 300 requests went, while one node reports half the other's capacity.
// Each is a real completion of one token.
func TestHalfTheCapacityGetsHalfTheTraffic(t *testing.T) {
	m := own(t, "-capacity", "node-a=100,node-c=50")
	m.AwaitWhole(t)
	r := m.Replicas(t)
	full, half := m.Addr(t, "engine@"+r.Head, "http"), m.Addr(t, "engine@"+r.Whole, "http")
	rig.Wait(t, rig.BackLimit, "the weights are 2 to 1", func() error {
		hs, err := m.Hosts("engines/")
		if err == nil && (hs[full].Weight == 0 || hs[full].Weight != 2*hs[half].Weight) {
			err = fmt.Errorf("Envoy has %+v", hs)
		}
		return err
	})
	rig.Suspend(t, m.Process(t, "extproc").PID)
	rig.Wait(t, outLimit, "Envoy gives up extproc", m.Unpicked)
	before := m.MustHosts(t, "engines/")
	const total = 300
	m.burst(t, total)
	after := m.MustHosts(t, "engines/")
	a, b := after[full].Requests-before[full].Requests, after[half].Requests-before[half].Requests
	t.Logf("%d requests to capacity 100, %d to capacity 50", a, b)
	if share := float64(b) / float64(a+b); math.Abs(share-1.0/3) > shareBand || a+b != total {
		t.Errorf("the half node got %.3f of %d requests, want %.3f ± %.2f of %d", share, a+b, 1.0/3, shareBand, total)
	}
}

// burst sends n completions of one token, four at a time.
func (m *mesh) burst(t *testing.T, n int) {
	t.Helper()
	url := m.URL(t, "/v1/completions")
	req := map[string]any{"model": model, "prompt": "a", "max_tokens": 1}
	rig.Each(n, 4, func(int) {
		if a, err := rig.Post(t.Context(), url, req); err != nil || a.Status != http.StatusOK {
			t.Errorf("status %d %v: %.300s", a.Status, err, a.Body)
		}
	})
}
