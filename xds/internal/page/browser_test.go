//go:build page

package page

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/e2e/browser"
	"millrace.dev/millrace/xds/fleetpb"
)

// serve serves the page of a view, with decisions; away has it be as if xds was away.
func serve(t *testing.T, v *fleetpb.FleetView) (w *world, url string, away func(bool)) {
	w = newWorld(v)
	p := run(t, w, Options{Gateway: "127.0.0.1:1"})
	for i, outcome := range []string{"ok", "ok", "failed"} {
		d := someDecision()
		d.Arrived = timestamppb.New(noon)
		if d.Outcome = outcome; outcome == "failed" {
			d.Status = 503
		}
		if i == 1 {
			d.Reason, d.Attempts, d.Queued = "sticky", 1, nil
		}
		p.Decided(d)
	}
	inner := p.Handler(Guard{})
	var gone atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gone.Load() {
			panic(http.ErrAbortHandler)
		}
		inner.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = nil
	t.Cleanup(srv.CloseClientConnections)
	return w, strings.Replace(srv.URL, "127.0.0.1", "localhost", 1) + "/page/", func(is bool) {
		if gone.Store(is); is {
			srv.CloseClientConnections()
		}
	}
}

// states are what the page must show: the health and what is to be read.
var states = map[string]struct{ health, text string }{
	"well":       {"well", "All is well: 2 replicas of 1 model on 3 nodes"},
	"dying":      {"degraded", "it is restarted automatically"},
	"overloaded": {"degraded", "8 requests run, 11 wait at engines"},
	"scaling":    {"degraded", "4.2 requests a second need 3 replicas"},
	"none":       {"down", "Nobody serves smollm2"},
	"mixed":      {"degraded", "slowed: power cap, hardware thermal slowdown"},
	"empty":      {"empty", "No node has reported yet"},
}

// TestStatesInChromium shows each state in both colour schemes, and two on a telephone.
func TestStatesInChromium(t *testing.T) {
	b := browser.Start(t)
	all := scenarios()
	for name, want := range states {
		_, url, _ := serve(t, all[name])
		for _, scheme := range []string{"light", "dark"} {
			b.Do("open", "url", url, "scheme", scheme)
			b.Do("await", "health", want.health, "text", want.text)
			b.Check(name + "-" + scheme)
		}
		if name != "mixed" && name != "overloaded" {
			continue // those have the longest lines
		}
		b.Do("open", "url", url, "width", 390, "scheme", "light")
		b.Do("await", "health", want.health)
		b.Check(name + "-narrow")
	}
}

// TestStateFollowsInChromium: an engine dies while somebody reads, xds goes away and comes back.
func TestStateFollowsInChromium(t *testing.T) {
	b := browser.Start(t)
	w, url, away := serve(t, wellView())
	b.Do("open", "url", url, "motion", "reduce")
	b.Do("await", "health", "well")
	if f := b.Do("check", "name", "still"); f.Moving != 0 {
		t.Errorf("%d animations though none are wanted", f.Moving)
	}
	w.set(scenarios()["dying"])
	b.Do("await", "health", "degraded", "text", "smollm2-1 takes no requests: its engine does not answer")
	away(true)
	b.Do("await", "health", "lost", "text", "Requests are still served")
	b.Do("forget") // that it can't be reached
	b.Check("lost-light")
	away(false)
	b.Do("await", "health", "degraded")
}

// TestKeysInChromium: all there is to do is done by keys, and shows where it is.
func TestKeysInChromium(t *testing.T) {
	b := browser.Start(t)
	_, url, _ := serve(t, wellView())
	b.Do("open", "url", url)
	b.Do("await", "health", "well", "text", "503")
	f := b.Do("walk")
	for _, name := range []string{"skip", "#fleet", "#chat", "open", "words", "model", "send", "happened"} {
		if !slices.Contains(f.Seen, name) {
			t.Errorf("Tab does not lead to %s: %q", name, f.Seen)
		}
	}
	if len(f.Unseen) > 0 {
		t.Errorf("the focus does not show at %q", f.Unseen)
	}
	why := b.Do("explain").Text
	for _, want := range []string{"moved: it is cached elsewhere", "Predicted 1,210 ms, observed 1,300 ms (+7 %)", "node-3 smollm2-1 ✓ answered", "not ready", "millrace explain 5d3e1f40"} {
		if !strings.Contains(why, want) {
			t.Errorf("an explanation has no %q: %s", want, why)
		}
	}
	b.Check("explained-light")
	if got := b.Do("chat", "words", "Hello").Text; !strings.Contains(got, "502: Envoy at 127.0.0.1:1 does not answer") {
		t.Errorf("the chat says %q", got)
	}
}
