package noxds

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// poisoned are stand-in engines that some bodies hurt: they answer 500, or cut the
// connection as one that dies does.
type poisoned struct {
	asked [3]atomic.Int32 // with such a body
	good  [3]atomic.Int32
}

func (p *poisoned) start(f *fleet, i int) {
	l, err := net.Listen("tcp", rig.Address(f.ports.engines[i]))
	if err != nil {
		f.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			return // Envoy has gone
		case bytes.Contains(b, []byte("POISON")):
			p.asked[i].Add(1)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprintf(w, `{"error":{"message":"engine's own words %d"}}`, i)
		default:
			p.good[i].Add(1)
			_, _ = io.WriteString(w, `{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}`)
		}
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	f.t.Cleanup(func() { _ = s.Close() })
}

// TestRequestsThatHurt sends what no engine can answer amid conversations that all can:
// two engines see it, none is ejected, nobody else notices, and the client gets the
// engine's own error.
func TestRequestsThatHurt(t *testing.T) {
	p := new(poisoned)
	f := newFleetOf(t, p.start, func(file string) string { return strings.ReplaceAll(file, "type: llamacpp", "type: openai") })
	turn := func(session, text string) (int, string) {
		a, err := rig.Send(t.Context(), f.url("/v1/chat/completions"), strings.NewReader(`{"model":"smollm2","messages":[{"role":"user","content":"`+text+`"}]}`),
			"content-type", "application/json", "x-session-id", session)
		if err != nil {
			t.Fatal(err)
		}
		if a.Header.Get("x-envoy-ratelimited") != "" {
			t.Errorf("the client sees %v", a.Header)
		}
		return a.Status, string(a.Body)
	}
	home := map[string]int{} // the engine of each conversation
	served := func(session string) int {
		before := [3]int32{p.good[0].Load(), p.good[1].Load(), p.good[2].Load()}
		if status, body := turn(session, "bread of "+session); status != 200 {
			t.Errorf("%s: %d %s", session, status, body)
		}
		for i := range before {
			if p.good[i].Load() != before[i] {
				return i
			}
		}
		return -1
	}
	for i := range 12 {
		s := fmt.Sprint("s", i)
		home[s] = served(s)
	}
	for round := range 20 {
		before := p.asked[0].Load() + p.asked[1].Load() + p.asked[2].Load()
		status, body := turn("poisoner", fmt.Sprintf("POISON %d", round/2)) // each is sent twice
		if status != 500 || !strings.Contains(body, "engine's own words") {
			t.Errorf("round %d: %d %s; want the engine's own error", round, status, body)
		}
		n := p.asked[0].Load() + p.asked[1].Load() + p.asked[2].Load() - before
		if want := int32(2 - round%2); n != want {
			t.Errorf("round %d: %d engines were asked, want %d", round, n, want)
		}
		for s, at := range home {
			if now := served(s); now != at {
				t.Errorf("round %d: %s moved from %d to %d", round, s, at, now)
			}
		}
	}
	if n, err := rig.Metric(f.admin(), "millrace_extproc_ejections_total"); err != nil || n != 0 {
		t.Errorf("%v ejections, %v; want none", n, err)
	}
	if n, err := rig.Metric(f.admin(), "millrace_extproc_blamed_requests_total"); err != nil || n != 20 {
		t.Errorf("%v requests are blamed, %v; want 20", n, err)
	}
}

// mortal are stand-in engines that die of some bodies: they close their address, and cut all
// of their connections, as the end of a process does.
type mortal struct {
	died atomic.Int32
}

// serve starts an engine at an address.
func (p *mortal) serve(t *testing.T, address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := new(http.Server)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			return
		case bytes.Contains(b, []byte("POISON")):
			p.died.Add(1)
			_ = s.Close()
		default:
			_, _ = io.WriteString(w, `{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}`)
		}
	})
	s.Handler = mux
	go s.Serve(l)
	t.Cleanup(func() { _ = s.Close() })
}

// TestABodyThatKills sends, to five engines, a body that each of them dies of: two do, and
// what others ask is answered by the rest.
func TestABodyThatKills(t *testing.T) {
	p := new(mortal)
	more := rig.MustPorts(t, 2)
	f := newFleetOf(t, func(f *fleet, i int) {
		f.more = len(more)
		p.serve(f.t, rig.Address(f.ports.engines[i]))
		if i == 0 {
			for _, port := range more {
				p.serve(f.t, rig.Address(port))
			}
		}
	}, func(file string) string {
		for _, port := range more {
			file = strings.Replace(file, "endpoints:\n", fmt.Sprintf("endpoints:\n  - {address: %q, models: [smollm2], type: openai}\n", rig.Address(port)), 1)
		}
		return strings.ReplaceAll(file, "type: llamacpp", "type: openai")
	})
	ask := func(text string) rig.Answer {
		a, err := rig.Send(t.Context(), f.url(rig.ChatPath), strings.NewReader(`{"model":"smollm2","messages":[{"role":"user","content":"`+text+`"}]}`), "content-type", "application/json")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for i := range 3 { // clients ask again
		if a := ask("POISON"); a.Status != http.StatusBadGateway || !strings.Contains(string(a.Body), "engines_lost") || a.Header.Get("x-should-retry") != "false" {
			t.Errorf("time %d: %d %v %s", i+1, a.Status, a.Header, a.Body)
		}
		if n := p.died.Load(); n != 2 {
			t.Errorf("after time %d %d engines have died, want 2", i+1, n)
		}
	}
	// Two connections may be refused until a good one is found: that hurts nobody.
	for i := range 20 {
		if a := ask(fmt.Sprint("bread ", i)); a.Status != http.StatusOK {
			t.Errorf("another request: %d %s", a.Status, a.Body)
		}
	}
}
