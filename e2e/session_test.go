package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// TestTenTurnsStayOnOneReplica holds a conversation of ten turns, recognised by
// header, by cookie and by nothing but its own beginning.
func TestTenTurnsStayOnOneReplica(t *testing.T) {
	m := shared(t)
	tests := []struct {
		name   string
		header func(last http.Header) []string
	}{
		{"by header", func(http.Header) []string { return []string{"x-session-id", "ten-turns"} }},
		{"by cookie", func(last http.Header) []string { return []string{"cookie", rig.SessionCookie(last)} }},
		{"by its beginning", func(http.Header) []string { return nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := rig.Ask(6, "We speak about what is known "+tt.name+". Say something.")
			turns, err := rig.Converse(t.Context(), m.URL(t, chatPath), q, 10, tt.header)
			if err != nil {
				t.Fatal(err)
			}
			rig.MustStay(t, turns)
		})
	}
}

// leastShare is what a replica of two must get of the conversations while both
// run undisturbed.
const leastShare = 0.25

// What one conversation of the test needs, in tokens; the rest is the template,
// which is cached.
const (
	spreadPrompt = 20
	spreadAnswer = 4
)

// TestConversationsSpreadBySpeed starts 120 conversations under load. Replicas
// that run alike share them; half of them meet a replica that other programs keep
// from running, and it gets fewer. Shares are compared with no figure of speed:
// on a busy machine that moves faster than as many conversations show.
func TestConversationsSpreadBySpeed(t *testing.T) {
	m := shared(t)
	t.Run("as they are", func(t *testing.T) {
		for replica, share := range m.spread(t, 0, 60) {
			if share < leastShare {
				t.Errorf("%s got %.2f of the conversations, want %.2f or more", replica, share, leastShare)
			}
		}
	})
	t.Run("one slowed down", func(t *testing.T) {
		r := m.Replicas(t)
		m.SlowDown(t, "backend@"+r.Whole, "backend@"+r.Head, "shard@"+r.Head, "shard@"+r.Tail)
		m.converseAll(t, 1000, 24) // the engine learns how slow it is
		shares := m.spread(t, 2000, 60)
		if slow, fast := shares["smollm2-1"], shares["smollm2-0"]; slow >= fast {
			t.Errorf("the slow replica got %.2f of the conversations, the fast one %.2f", slow, fast)
		}
	})
}

// spread starts n conversations, logs each replica's share of them beside its
// share of the speed that the engines measured meanwhile, and returns the shares.
func (m *mesh) spread(t *testing.T, from, n int) map[string]float64 {
	t.Helper()
	speeds := m.measureSpeeds(t)
	served := m.converseAll(t, from, n)
	by, sum := speeds()
	shares := map[string]float64{}
	for replica, speed := range by {
		share, want := float64(served[replica])/float64(n), speed/sum
		shares[replica] = share
		t.Logf("%s: %.2f conversations/s and slot, %.0f %% of the speed, %.0f %% of the conversations", replica, speed, 100*want, 100*share)
	}
	return shares
}

// converseAll starts n conversations, eight at a time, and returns how many each
// replica got.
func (m *mesh) converseAll(t *testing.T, from, n int) map[string]int {
	t.Helper()
	var mu sync.Mutex
	served := map[string]int{}
	rig.Each(n, 8, func(i int) {
		replica := m.converse(t, from+i)
		mu.Lock()
		defer mu.Unlock()
		served[replica]++
	})
	return served
}

// converse begins one conversation and returns the replica that got it.
func (m *mesh) converse(t *testing.T, i int) string {
	topic := strings.Repeat(fmt.Sprintf("topic %d ", i), 3)
	a, err := rig.Post(t.Context(), m.URL(t, "/v1/chat/completions"), rig.Ask(spreadAnswer, topic), "x-session-id", fmt.Sprintf("spread-%03d", i))
	if err != nil || a.Status != http.StatusOK {
		t.Errorf("conversation %d: status %d %v: %.300s", i, a.Status, err, a.Body)
	}
	return a.Header.Get("x-millrace-replica")
}

// measureSpeeds follows what the engines measure of themselves. The function that
// it returns ends that, and gives the mean speed of each replica, in such
// conversations per second, and the sum.
func (m *mesh) measureSpeeds(t *testing.T) func() (by map[string]float64, sum float64) {
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	seen := map[string][]float64{} // by replica
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Watch(ctx, func(v *fleetpb.FleetView) error {
			mu.Lock()
			defer mu.Unlock()
			for _, n := range v.GetNodes() {
				e := n.GetReport().GetEngine()
				if a := e.GetAssignment(); a != nil && a.GetStage() == 0 {
					seen[a.GetReplica()] = append(seen[a.GetReplica()], perSecond(e.GetSpeed()))
				}
			}
			return nil
		})
	}()
	return func() (map[string]float64, float64) {
		cancel()
		<-done
		by, sum := map[string]float64{}, 0.0
		for replica, speeds := range seen {
			for _, s := range speeds {
				by[replica] += s / float64(len(speeds))
			}
			sum += by[replica]
		}
		return by, sum
	}
}

// perSecond returns how many of the test's conversations one sequence does.
func perSecond(s *enginepb.Speed) float64 {
	return 1 / (spreadPrompt/max(s.GetPrefill(), 1) + spreadAnswer/max(s.GetDecode(), 1))
}
