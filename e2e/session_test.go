package e2e

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"

	"millrace.dev/millrace/xds/fleetpb"
)

// TestTenTurnsStayOnOneReplica holds a conversation of ten turns, recognised by
// header, by cookie and by nothing but its own beginning.
func TestTenTurnsStayOnOneReplica(t *testing.T) {
	m := shared(t)
	tests := []struct {
		name   string
		header func(turn int, last http.Header) []string
	}{
		{"by header", func(int, http.Header) []string { return []string{"x-session-id", "ten-turns"} }},
		{"by cookie", func(_ int, last http.Header) []string { return []string{"cookie", cookie(last)} }},
		{"by its beginning", func(int, http.Header) []string { return nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { m.tenTurns(t, tt.name, tt.header) })
	}
}

// cookie returns the session cookie that an answer set, as a request sends it.
func cookie(h http.Header) string {
	for _, c := range (&http.Response{Header: h}).Cookies() {
		if c.Name == "millrace-session" {
			return c.Name + "=" + c.Value
		}
	}
	return ""
}

func (m *mesh) tenTurns(t *testing.T, about string, header func(int, http.Header) []string) {
	req := ask(6, "We speak about what is known "+about+". Say something.")
	var first, last http.Header
	var cached []int
	for turn := range 10 {
		a := mustPost(t, m.url(t, "/v1/chat/completions"), req, header(turn, last)...)
		if first == nil {
			first = a.header
		}
		if cookie(a.header) != "" || last == nil {
			last = a.header
		}
		if got, want := a.header.Get("x-millrace-replica"), first.Get("x-millrace-replica"); got != want || got == "" {
			t.Errorf("turn %d went to %q, the first to %q", turn+1, got, want)
		}
		body := decode[completion](t, a.body)
		cached = append(cached, body.Usage.Details.Cached)
		if turn > 0 && body.Usage.Details.Cached == 0 {
			t.Errorf("turn %d: no cached tokens of %d", turn+1, body.Usage.Prompt)
		}
		req.Messages = append(req.Messages, message{"assistant", body.Choices[0].Message.Content}, message{"user", fmt.Sprintf("Go on, part %d.", turn)})
	}
	t.Logf("replica %s, cached tokens by turn %v", first.Get("x-millrace-replica"), cached)
}

// spreadBand is how far a replica's share of the conversations may lie from its
// share of the fleet's speed.
const spreadBand = 0.15

// TestConversationsSpreadBySpeed starts 200 conversations under load: each
// replica gets its share by the speed that its engine measures.
func TestConversationsSpreadBySpeed(t *testing.T) {
	m := shared(t)
	const conversations, clients = 200, 8
	work := make(chan int)
	var mu sync.Mutex
	served := map[string]int{} // conversations by replica
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := range work {
				replica := m.converse(t, i)
				mu.Lock()
				served[replica]++
				mu.Unlock()
			}
		})
	}
	for i := range conversations {
		work <- i
	}
	close(work)
	wg.Wait()
	v, err := m.fleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	speeds, sum := speeds(v)
	for replica, speed := range speeds {
		share, want := float64(served[replica])/conversations, speed/sum
		t.Logf("%s: %.1f tokens/s, %.0f %% of the speed, %.0f %% of the conversations", replica, speed, 100*want, 100*share)
		if math.Abs(share-want) > spreadBand {
			t.Errorf("%s got %.2f of the conversations, want %.2f ± %.2f", replica, share, want, spreadBand)
		}
	}
}

// converse begins one conversation and returns the replica that got it.
func (m *mesh) converse(t *testing.T, i int) string {
	topic := strings.Repeat(fmt.Sprintf("topic %d ", i), 3)
	a, err := post(t.Context(), m.url(t, "/v1/chat/completions"), ask(4, topic), "x-session-id", fmt.Sprintf("spread-%03d", i))
	if err != nil || a.status != http.StatusOK {
		t.Errorf("conversation %d: status %d %v: %.300s", i, a.status, err, a.body)
	}
	return a.header.Get("x-millrace-replica")
}

// speeds returns the decode speed of each replica and their sum, in tokens/s.
func speeds(v *fleetpb.FleetView) (by map[string]float64, sum float64) {
	by = map[string]float64{}
	for _, n := range v.GetNodes() {
		e := n.GetReport().GetEngine()
		if a := e.GetAssignment(); a != nil && a.GetStage() == 0 {
			by[a.GetReplica()] = e.GetSpeed().GetDecode()
			sum += e.GetSpeed().GetDecode()
		}
	}
	return by, sum
}
