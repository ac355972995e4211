package protocol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// TestNothingIsLeftBehind breaks requests off in every way in which they can come,
// before, in and behind their bodies, and looks whether extproc lets go of them.
func TestNothingIsLeftBehind(t *testing.T) {
	m := newMesh(t, allDoors)
	for _, d := range m.doors {
		t.Run(d.Name, func(t *testing.T) {
			for _, v := range versions() {
				for _, n := range []int{0, 1, 1000, 200 << 10} {
					m.breakUpload(t, d, v, n)
				}
				m.breakAnswer(t, d, v)
				if err := m.check(t, d, v, &ways[0], "/v1/chat/completions", chat(1000)); err != nil {
					t.Errorf("%s: the next request: %v", v.name, err)
				}
			}
		})
		m.await("extproc is idle", m.idle)
	}
	started, err := rig.Metric(address(m.metrics), "millrace_extproc_streams_total")
	if err != nil || started < float64(len(m.doors)) {
		t.Errorf("extproc saw %v streams, %v", started, err)
	}
}

// errLeft is why a client stops.
var errLeft = errors.New("the client leaves")

// breakUpload sends n bytes of a body that was to be longer, and leaves.
func (m *mesh) breakUpload(t *testing.T, d *door, v version, n int) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address(d.Port)+"/v1/chat/completions", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/json")
	go func() {
		// What the client doesn't take any more is not of interest.
		_, _ = w.Write(chat(n)[:n])
		cancel(errLeft)
		_ = w.CloseWithError(errLeft)
	}()
	if resp, _, err := v.send(req); err == nil && resp.StatusCode < 400 {
		t.Errorf("%s: a request that was broken off after %d bytes got status %d", v.name, n, resp.StatusCode)
	}
}

// breakAnswer leaves in the middle of an answer.
func (m *mesh) breakAnswer(t *testing.T, d *door, v version) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address(d.Port)+"/v1/chat/completions", bytes.NewReader(chat(1000)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/json")
	req.Header.Set(wantHang, "1")
	done := make(chan error, 1)
	go func() {
		_, _, err := v.send(req)
		done <- err
	}()
	// Where Envoy buffers answers, no byte of this one comes: the engine knows better.
	m.await("one answer hangs", func() error { return m.hanging(1) })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%s: the broken answer ends with %v", v.name, err)
	}
	m.await("no answer hangs", func() error { return m.hanging(0) })
}

// hanging says whether not so many answers hang in the engines.
func (m *mesh) hanging(want int64) error {
	var n int64
	for _, e := range m.engines {
		n += e.waits.Load()
	}
	if n != want {
		return fmt.Errorf("%d answers hang, want %d", n, want)
	}
	return nil
}

// TestErrors checks what clients get in an engine's stead.
func TestErrors(t *testing.T) {
	m := newMesh(t, func([]int) []*door {
		return []*door{
			{Name: "buffered", Mode: buffered},
			{Name: "duplex", Mode: duplex + toTheEnd + ", response_body_mode: FULL_DUPLEX_STREAMED"},
			{Name: "partial", Mode: partial},
			{Name: "subset of unknown ones", Mode: duplex, Subset: `["10.0.0.1:1"]`},
			{Name: "subset of a text", Mode: buffered, Subset: `"10.0.0.1:1,10.0.0.2:1"`},
			{Name: "subset of none", Mode: streamed, Subset: `[]`},
			{Name: "subset of none, headers only", Mode: headersOnly, Subset: `[]`},
		}
	})
	for _, d := range m.doors {
		bodies := map[string]int{"{": 400, "[]": 400, `{"messages":[]}`: 400, `{"model":"nobody"}`: 404}
		code := ""
		if d.Subset != "" {
			bodies, code = map[string]int{string(chat(100)): 503}, "no_replica_in_subset"
		}
		t.Run(d.Name, func(t *testing.T) {
			for _, v := range versions() {
				for body, status := range bodies {
					m.refused(t, d, v, body, status, code)
				}
			}
		})
	}
	m.await("extproc is idle", m.idle)
}

// refused sends a request and expects an error in the API's form.
func (m *mesh) refused(t *testing.T, d *door, v version, body string, status int, code string) {
	resp, b, err := v.send((&how{}).request(t, "http://"+address(d.Port)+"/v1/chat/completions", []byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Error struct {
			Message, Type, Code string
		}
	}
	if err := json.Unmarshal(b, &e); err != nil || resp.StatusCode != status || e.Error.Message == "" || e.Error.Type == "" {
		t.Fatalf("%s, %.40s: status %d %v %s, want %d and an error of the API", v.name, body, resp.StatusCode, err, b, status)
	}
	if code != "" && e.Error.Code != code {
		t.Errorf("%s: code %q, want %q", v.name, e.Error.Code, code)
	}
	if ct := resp.Header.Get("content-type"); ct != "application/json" {
		t.Errorf("%s: content-type %q", v.name, ct)
	}
	if status == http.StatusServiceUnavailable && resp.Header.Get("retry-after") == "" {
		t.Errorf("%s: a 503 without retry-after", v.name)
	}
}

// TestSessionsByHeadersAlone shows that a conversation stays where only headers
// name it, and that clients cannot name hosts.
func TestSessionsByHeadersAlone(t *testing.T) {
	m := newMesh(t, func([]int) []*door {
		return []*door{{Name: "headers only", Mode: headersOnly + toTheEnd}, {Name: "streamed", Mode: streamed + toTheEnd}}
	})
	for _, d := range m.doors {
		for _, session := range []string{"a", "b", "c", "d"} {
			seen := map[string]int{}
			for range 8 {
				req := (&how{}).request(t, "http://"+address(d.Port)+"/v1/chat/completions", chat(2000))
				req.Header.Set("x-session-id", session)
				req.Header.Set("x-gateway-destination-endpoint", "10.0.0.1:1")
				req.Header.Set("x-gateway-destination-endpoint-subset", "10.0.0.1:1")
				m.await("extproc is idle", m.idle) // one that is busy with the last turn may be left
				_, b, err := versions()[0].send(req)
				var a account
				if err == nil {
					err = json.Unmarshal(b, &a)
				}
				if err != nil {
					t.Fatalf("%v: %s", err, b)
				}
				seen[a.Engine]++
				if a.Header.Get("x-gateway-destination-endpoint-subset") != "" {
					t.Errorf("%s: the client's routing header went on", d.Name)
				}
			}
			if len(seen) != 1 {
				t.Errorf("%s: session %s went to %v", d.Name, session, seen)
			}
		}
	}
	m.await("extproc is idle", m.idle)
}
