package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// version is the HTTP that a client speaks.
type version struct {
	name   string
	client *http.Client
}

// versions are HTTP/1.1 and HTTP/2.
func versions() []version {
	one, two := new(http.Protocols), new(http.Protocols)
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	client := func(p *http.Protocols) *http.Client {
		return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{Protocols: p, DisableCompression: true, ExpectContinueTimeout: 10 * time.Second}}
	}
	return []version{{"HTTP/1.1", client(one)}, {"HTTP/2", client(two)}}
}

// chat is a request of about n bytes.
func chat(n int) []byte {
	const head, tail = `{"model":"m","messages":[{"role":"user","content":"`, `"}]}`
	return []byte(head + string(text(max(1, n-len(head)-len(tail)))) + tail)
}

// how a request's body is sent.
type how struct {
	name string
	// pieces is the most bytes that are written at once; 0: all, with their length.
	pieces int
	// trailers is whether some follow the body.
	trailers bool
	// asks is whether the client waits for leave to send it.
	asks bool
}

var ways = []how{{name: "with its length"}, {name: "in chunks", pieces: 997}, {name: "in chunks, with trailers", pieces: 4096, trailers: true}, {name: "after 100 Continue", asks: true}}

// request returns a request with a body that is sent in some way.
func (h *how) request(t *testing.T, url string, body []byte) *http.Request {
	t.Helper()
	var r io.Reader = bytes.NewReader(body)
	if h.pieces > 0 {
		r = &pieces{body, max(h.pieces, len(body)/64)}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/json")
	if h.trailers {
		req.Trailer = http.Header{"X-Last": {"yes"}}
	}
	if h.asks {
		req.Header.Set("expect", "100-continue")
	}
	return req
}

// pieces is a body of unknown length that comes bit by bit.
type pieces struct {
	b []byte
	n int
}

// Read reads at most n bytes.
func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	// Some pieces are of a few bytes, so that bodies are split anywhere.
	n := min(len(b), len(p.b), p.n)
	if p.n < 64<<10 && len(p.b)%3 == 0 {
		n = min(n, 1+len(p.b)%7)
	}
	copy(b, p.b[:n])
	p.b = p.b[n:]
	return n, nil
}

// send returns the answer and its body.
func (v version) send(req *http.Request) (*http.Response, []byte, error) {
	resp, err := v.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func TestModes(t *testing.T) {
	m := newMesh(t, allDoors)
	for _, d := range m.doors {
		t.Run(d.Name, func(t *testing.T) {
			for _, v := range versions() {
				m.testBodies(t, d, v)
				m.testAnswers(t, d, v)
				m.testTooLarge(t, d, v)
			}
		})
		m.await("extproc is idle", m.idle)
	}
}

// testBodies sends bodies of all sizes, and compares what the engine got.
func (m *mesh) testBodies(t *testing.T, d *door, v version) {
	for _, path := range []string{"/v1/chat/completions", "/v1/other"} {
		for _, n := range []int{1, 2 << 10, 100 << 10, 3 << 20} {
			body := text(n)
			if path != "/v1/other" {
				body = chat(n)
			}
			for _, h := range ways {
				what := fmt.Sprintf("%s %s, %d bytes %s", v.name, path, n, h.name)
				if err := m.check(t, d, v, &h, path, body); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	}
}

// TestTLS has Envoy ask over TLS, as gateways do by default, in two modes.
func TestTLS(t *testing.T) {
	m := newMesh(t, func([]int) []*door {
		return []*door{
			{Name: "buffered", Mode: buffered + toTheEnd, chooses: true},
			{Name: "duplex", Mode: duplex + toTheEnd, chooses: true},
		}
	}, "-secure-serving")
	for _, d := range m.doors {
		for _, v := range versions() {
			m.await("a request over TLS succeeds", func() error { return m.check(t, d, v, &ways[0], "/v1/chat/completions", chat(100<<10)) })
		}
	}
	m.await("extproc is idle", m.idle)
}

// check says what is wrong about how one request went.
func (m *mesh) check(t *testing.T, d *door, v version, h *how, path string, body []byte) error {
	resp, b, err := v.send(h.request(t, "http://"+address(d.Port)+path, body))
	if err != nil {
		return err
	}
	var a account
	if err := json.Unmarshal(b, &a); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d, %w: %.200s", resp.StatusCode, err, b)
	}
	if a.Sum != sum(body) {
		return fmt.Errorf("the engine got %d bytes that are not those sent", a.Bytes)
	}
	if h.trailers && a.Tail.Get("x-last") != "yes" {
		return fmt.Errorf("the engine got the trailers %v", a.Tail)
	}
	hosts := a.Header.Get("x-gateway-destination-endpoint")
	first, _, _ := strings.Cut(hosts, ",")
	switch {
	case d.chooses && first != a.Engine:
		return fmt.Errorf("%s answered, extproc named %q", a.Engine, hosts)
	case !d.chooses && hosts != "":
		return fmt.Errorf("extproc named %q though it is too late", hosts)
	case d.Subset != "" && hosts != address(m.engines[1].port):
		return fmt.Errorf("extproc named %q, want the one that may be named", hosts)
	}
	return nil
}

// testAnswers asks for answers of all sizes.
func (m *mesh) testAnswers(t *testing.T, d *door, v version) {
	for _, n := range []int{1, 100 << 10, 3 << 20} {
		req := (&how{}).request(t, "http://"+address(d.Port)+"/v1/chat/completions", chat(100))
		req.Header.Set(wantBytes, fmt.Sprint(n))
		resp, b, err := v.send(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s, answer of %d bytes: %v, %.200s", v.name, n, err, b)
			continue
		}
		if !bytes.Equal(b, text(n)) {
			t.Errorf("%s, answer of %d bytes: %d others came", v.name, n, len(b))
		}
		if resp.Trailer.Get("x-sum") != sum(b) {
			t.Errorf("%s, answer of %d bytes: trailers %v", v.name, n, resp.Trailer)
		}
	}
}

// testTooLarge sends what is over the policy's limit.
func (m *mesh) testTooLarge(t *testing.T, d *door, v version) {
	body := chat(17 << 20)
	for _, h := range []how{{name: "with its length"}, {name: "in chunks", pieces: 64 << 10}} {
		if h.pieces > 0 && !d.bounds || !d.chooses {
			continue
		}
		resp, b, err := v.send(h.request(t, "http://"+address(d.Port)+"/v1/chat/completions", body))
		// Envoy answers and resets the stream while the body is still on its way: a
		// client may see the reset before the answer, or before the end of its text:
		// where Envoy shows answers to extproc, its own 413, for a full buffer, and ours
		// may meet. The status is there.
		cut := func() bool { return resp != nil && errors.Is(err, io.ErrUnexpectedEOF) }
		for range 20 {
			if err == nil || cut() {
				break
			}
			resp, b, err = v.send(h.request(t, "http://"+address(d.Port)+"/v1/chat/completions", body))
		}
		if err != nil && !cut() {
			t.Errorf("%s, 17 MiB %s: %v", v.name, h.name, err)
			continue
		}
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s, 17 MiB %s: status %d, want 413: %.200s", v.name, h.name, resp.StatusCode, b)
		}
	}
}
