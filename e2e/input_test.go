package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// badInput is one request that must be refused.
type badInput struct {
	name   string
	path   string
	body   []byte
	header []string // replaces content-type: application/json
	// unsized sends the body without saying how long it is.
	unsized bool
	status  int
	code    string // of the error; "" for any
}

func badInputs() []badInput {
	valid := []byte(`{"model":"smollm2","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}`)
	over := fmt.Sprintf(`{"model":"smollm2","max_tokens":1,"messages":[{"role":"user","content":%q}]}`, strings.Repeat("a b c ", 2000))
	huge := append(bytes.Repeat([]byte(" "), 20<<20), valid...)
	var many []string
	for i := range 300 {
		many = append(many, fmt.Sprintf("x-bomb-%d", i), "1")
	}
	return []badInput{
		{name: "invalid JSON", path: chatPath, body: []byte(`{"model":"smollm2",`), status: 400},
		{name: "no JSON at all", path: chatPath, body: []byte("\x00\xff\xfe"), status: 400},
		{name: "a list", path: chatPath, body: []byte("[]"), status: 400},
		{name: "empty body", path: chatPath, body: nil, status: 400},
		{name: "deep nesting", path: chatPath, body: bytes.Repeat([]byte("["), 1<<20), status: 400},
		{name: "missing model", path: chatPath, body: []byte(`{"messages":[{"role":"user","content":"hi"}]}`), status: 400},
		{name: "unknown model", path: chatPath, body: []byte(`{"model":"nope","messages":[{"role":"user","content":"hi"}]}`), status: 404, code: "model_not_found"},
		{name: "unknown path", path: "/v1/nothing", body: valid, status: 404},
		{name: "messages of a wrong type", path: chatPath, body: []byte(`{"model":"smollm2","messages":7}`), status: 400},
		{name: "message without a role", path: chatPath, body: []byte(`{"model":"smollm2","messages":[{"content":"hi"}]}`), status: 400},
		{name: "tools of a wrong type", path: chatPath, body: []byte(`{"model":"smollm2","tools":"hammer","messages":[{"role":"user","content":"hi"}]}`), status: 400},
		{name: "20 MiB body", path: chatPath, body: huge, status: 413},
		{name: "20 MiB body of unknown length", path: chatPath, body: huge, unsized: true, status: 413},
		{name: "wrong content type", path: chatPath, body: valid, header: []string{"content-type", "text/plain"}, status: 415},
		{name: "one header of 200 KiB", path: chatPath, body: valid, header: []string{"content-type", "application/json", "x-bomb", strings.Repeat("a", 200<<10)}, status: 431},
		{name: "300 headers", path: chatPath, body: valid, header: append(many, "content-type", "application/json"), status: 431},
		{name: "prompt over the context", path: chatPath, body: []byte(over), status: 400, code: "context_length_exceeded"},
	}
}

// TestBadInputIsRefusedInTheAPIsForm sends what no client should send.
func TestBadInputIsRefusedInTheAPIsForm(t *testing.T) {
	m := shared(t)
	for _, tt := range badInputs() {
		t.Run(tt.name, func(t *testing.T) { m.refused(t, tt) })
	}
}

func (m *mesh) refused(t *testing.T, tt badInput) {
	t.Helper()
	header := tt.header
	if header == nil {
		header = []string{"content-type", "application/json"}
	}
	var body io.Reader = bytes.NewReader(tt.body)
	if tt.unsized {
		body = io.MultiReader(body)
	}
	a, err := rig.Send(t.Context(), m.URL(t, tt.path), body, header...)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != tt.status {
		t.Errorf("status = %d, want %d: %.300s", a.Status, tt.status, a.Body)
	}
	if ct := a.Header.Get("content-type"); !strings.HasPrefix(ct, "application/json") {
		t.Errorf("content-type = %q", ct)
	}
	e := rig.Decode[rig.APIError](t, a.Body).Error
	if e.Message == nil || *e.Message == "" || e.Type == nil || *e.Type == "" {
		t.Errorf("not the API's form of an error: %s", a.Body)
	}
	if tt.code != "" && e.Code != tt.code {
		t.Errorf("code = %v, want %q", e.Code, tt.code)
	}
}

// TestForgedHeadersChooseNoHost names a host of the sender's own in every header
// that could choose one. Nobody may call there.
func TestForgedHeadersChooseNoHost(t *testing.T) {
	m := shared(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) })}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	evil := ln.Addr().String()
	forged := []string{
		"x-gateway-destination-endpoint", evil,
		"x-gateway-destination-endpoint-served", evil,
		"x-gateway-destination-endpoint-subset", evil,
		"x-millrace-model", "no-such-model",
		"x-millrace-prompt-tokens", "-1",
		"x-envoy-max-retries", "0",
		"x-envoy-original-dst-host", evil,
		"cookie", "millrace-session=forged.AAAA",
		"cookie", "millrace-session=" + strings.Repeat("%ff", 1000),
	}
	a := rig.MustPost(t, m.URL(t, chatPath), rig.Ask(2, "hi"), forged...)
	if calls.Load() != 0 {
		t.Errorf("the sender's host was called %d times", calls.Load())
	}
	if a.Header.Get("x-millrace-replica") == "" {
		t.Errorf("no engine answered: %v", a.Header)
	}
}

// TestForgedHeadersPreferNoReplica names one engine: it must get no more than a
// client that names the other.
func TestForgedHeadersPreferNoReplica(t *testing.T) {
	m := shared(t)
	for _, name := range []string{m.Replicas(t).Head, m.Replicas(t).Whole} {
		engine := m.Addr(t, "engine@"+name, "http")
		session := "forged-" + name
		first := rig.MustPost(t, m.URL(t, chatPath), rig.Ask(1, "where am I?"), "x-session-id", session).Header.Get("x-millrace-replica")
		for _, header := range []string{"x-gateway-destination-endpoint", "X-Gateway-Destination-Endpoint-Served"} {
			a := rig.MustPost(t, m.URL(t, chatPath), rig.Ask(1, "where am I?"), "x-session-id", session, header, engine)
			if got := a.Header.Get("x-millrace-replica"); got != first {
				t.Errorf("%s moved a session from %s to %s", header, first, got)
			}
		}
	}
}

// footprint is what a process holds.
type footprint struct {
	pid        int
	fds        int
	goroutines int // 0 if it has no metrics
}

// footprints returns what each process of the mesh holds, by name.
func (m *mesh) footprints() (map[string]footprint, error) {
	s, err := m.ReadState()
	if err != nil {
		return nil, err
	}
	all := map[string]footprint{}
	for _, p := range s.Processes {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
		if err != nil {
			return nil, err
		}
		f := footprint{pid: p.PID, fds: len(fds)}
		if addr := p.Addrs["metrics"]; addr != "" {
			series, err := rig.Metrics(addr)
			if err != nil {
				return nil, err
			}
			f.goroutines = int(series["go_goroutines"])
		}
		all[p.Name] = f
	}
	return all, nil
}

// leakSlack is how many fds or goroutines more a process may hold after many
// requests than after a few: pools that grow with what ran at once.
const leakSlack = 12

// TestBadInputLeaksNothing sends every bad input again and again, and broken-off
// requests among them: the same processes must run afterwards, with no more
// goroutines and open files than before.
func TestBadInputLeaksNothing(t *testing.T) {
	m := shared(t)
	m.torment(t, 2)
	rig.Client.CloseIdleConnections()
	before, err := m.footprints()
	if err != nil {
		t.Fatal(err)
	}
	processes := len(rig.Marked(m.Dir))
	m.torment(t, 20)
	rig.Client.CloseIdleConnections()
	rig.Wait(t, rig.BackLimit, "the mesh is as it was", func() error {
		after, err := m.footprints()
		if err != nil {
			return err
		}
		if n := len(rig.Marked(m.Dir)); n != processes {
			return fmt.Errorf("%d processes, were %d", n, processes)
		}
		return grown(before, after)
	})
	rig.MustPost(t, m.URL(t, chatPath), rig.Ask(1, "still there?"))
}

func grown(before, after map[string]footprint) error {
	for name := range maps.Keys(before) {
		b, a := before[name], after[name]
		if a.pid != b.pid {
			return rig.Final(fmt.Errorf("%s was restarted", name))
		}
		if a.fds > b.fds+leakSlack || a.goroutines > b.goroutines+leakSlack {
			return fmt.Errorf("%s: %+v, was %+v", name, a, b)
		}
	}
	return nil
}

// torment sends all bad inputs n times, and breaks off as many requests.
func (m *mesh) torment(t *testing.T, n int) {
	t.Helper()
	for range n {
		for _, tt := range badInputs() {
			if tt.status == http.StatusRequestEntityTooLarge {
				continue // 20 MiB each: once was enough
			}
			if _, err := rig.Send(t.Context(), m.URL(t, tt.path), bytes.NewReader(tt.body), append([]string{"content-type", "application/json"}, tt.header...)...); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		m.breakOff(t)
	}
}

// breakOff begins a long stream, a body and a header, and leaves.
func (m *mesh) breakOff(t *testing.T) {
	t.Helper()
	body := `{"model":"smollm2","stream":true,"max_tokens":400,"messages":[{"role":"user","content":"Count to 1000."}]}`
	head := "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
	for _, raw := range []string{
		fmt.Sprintf("%scontent-length: %d\r\n\r\n%s", head, len(body), body),
		fmt.Sprintf("%scontent-length: %d\r\n\r\n%s", head, len(body), body[:20]),
		head,
	} {
		conn, err := net.Dial("tcp", m.State(t).Listen)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = conn.Write([]byte(raw))
		_, _ = conn.Read(make([]byte, 100))
		_ = conn.Close()
	}
}

// TestCancelledRequestStopsGenerating leaves in the middle of a long stream: the
// engine must be idle at once, not after 2,000 more tokens.
func TestCancelledRequestStopsGenerating(t *testing.T) {
	m := shared(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body := `{"model":"smollm2","stream":true,"max_tokens":2000,"ignore_eos":true,"messages":[{"role":"user","content":"Count to 1000."}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL(t, chatPath), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/json")
	resp, err := rig.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	rig.Wait(t, 5*time.Second, "an engine is seen running", func() error {
		if n, err := m.inFlight(ctx); n != 1 {
			return fmt.Errorf("%d requests in flight, want 1: %v", n, err)
		}
		return nil
	})
	cancel()
	took := rig.Wait(t, 5*time.Second, "all engines are idle", func() error {
		if n, err := m.inFlight(t.Context()); n != 0 || err != nil {
			return fmt.Errorf("%d requests in flight: %v", n, err)
		}
		return nil
	})
	t.Logf("idle %.1f s after the client left", took.Seconds())
}

// inFlight returns how many requests the engines have.
func (m *mesh) inFlight(ctx context.Context) (uint32, error) {
	v, err := m.Fleet(ctx)
	var n uint32
	for _, node := range v.GetNodes() {
		l := node.GetReport().GetEngine().GetLoad()
		n += l.GetRunning() + l.GetWaiting()
	}
	return n, err
}
