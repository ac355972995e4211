// Package protocol tests extproc as an endpoint picker of gateways that are set up
// in other ways than ours: a real Envoy with a door, that is, a listener, for each
// way in which it can send requests and answers to an external processor, and
// `extproc -fleet`.
//
// Its one rule: what is asserted is what a client or an engine sees, and that
// nothing is left behind in extproc.
package protocol

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// bufferLimit is what Envoy buffers of a body, in bytes, and what the policy of
// extproc takes.
const bufferLimit = 16 << 20

// door is a listener of Envoy.
type door struct {
	Name string
	// Mode is Envoy's processing_mode.
	Mode string
	// Limit is the most that Envoy buffers, in bytes; 0: bufferLimit.
	Limit int
	// Subset is the value of the gateway's hint; empty: there is none.
	Subset string
	// Observe is whether extproc is only observing; Minimal, whether Envoy takes
	// nothing but what the protocol names.
	Observe, Minimal bool

	Port int

	chooses bool // whether extproc can say where requests go
	reads   bool // whether it sees the whole body before
	bounds  bool // whether it sees bodies that are too large, without their length
}

// Modes of what follows the request's headers.
const (
	headersOnly = "request_body_mode: NONE"
	buffered    = "request_body_mode: BUFFERED"
	partial     = "request_body_mode: BUFFERED_PARTIAL"
	streamed    = "request_body_mode: STREAMED"
	duplex      = "request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND"
	toTheEnd    = ", response_trailer_mode: SEND"
)

// allDoors are the ways in.
func allDoors(engines []int) []*door {
	return []*door{
		{Name: "buffered", Mode: buffered + toTheEnd, chooses: true, reads: true, bounds: true},
		{Name: "buffered, request trailers", Mode: buffered + ", request_trailer_mode: SEND" + toTheEnd, chooses: true, reads: true, bounds: true},
		{Name: "buffered partial", Mode: partial + toTheEnd, chooses: true, reads: true},
		{Name: "buffered partial, 32 KiB", Mode: partial + toTheEnd, Limit: 32 << 10, chooses: true},
		{Name: "streamed", Mode: streamed + toTheEnd, chooses: true, bounds: true},
		{Name: "streamed, request trailers", Mode: streamed + ", request_trailer_mode: SEND" + toTheEnd, chooses: true, bounds: true},
		{Name: "duplex", Mode: duplex + toTheEnd, chooses: true, reads: true, bounds: true},
		{Name: "duplex both ways", Mode: duplex + toTheEnd + ", response_body_mode: FULL_DUPLEX_STREAMED", chooses: true, reads: true, bounds: true},
		{Name: "headers only", Mode: headersOnly + toTheEnd, chooses: true},
		{Name: "response headers only", Mode: buffered, chooses: true, reads: true, bounds: true},
		{Name: "response bodies streamed", Mode: buffered + toTheEnd + ", response_body_mode: STREAMED", chooses: true, reads: true, bounds: true},
		{Name: "response bodies buffered", Mode: buffered + toTheEnd + ", response_body_mode: BUFFERED", chooses: true, reads: true, bounds: true},
		{Name: "response bodies buffered partial", Mode: buffered + toTheEnd + ", response_body_mode: BUFFERED_PARTIAL", chooses: true, reads: true, bounds: true},
		{Name: "no response", Mode: buffered + ", response_header_mode: SKIP", chooses: true, reads: true, bounds: true},
		{Name: "no response headers", Mode: buffered + ", response_header_mode: SKIP, response_body_mode: STREAMED", chooses: true, reads: true, bounds: true},
		{Name: "no request headers, buffered", Mode: "request_header_mode: SKIP, " + buffered + toTheEnd},
		{Name: "no request headers, streamed", Mode: "request_header_mode: SKIP, " + streamed + toTheEnd},
		{Name: "no request headers, duplex", Mode: "request_header_mode: SKIP, " + duplex + toTheEnd},
		{Name: "response alone, duplex", Mode: "request_header_mode: SKIP, " + headersOnly + toTheEnd + ", response_body_mode: FULL_DUPLEX_STREAMED"},
		{Name: "observed", Mode: streamed + ", request_trailer_mode: SEND, response_body_mode: STREAMED" + toTheEnd, Observe: true},
		{Name: "by the protocol alone", Mode: duplex + toTheEnd + ", response_body_mode: FULL_DUPLEX_STREAMED", Minimal: true, chooses: true, reads: true, bounds: true},
		{Name: "subset of one", Mode: duplex + toTheEnd, Subset: fmt.Sprintf("[%q, \"10.0.0.1:1\"]", address(engines[1])), chooses: true, reads: true, bounds: true},
	}
}

// mesh is Envoy, extproc and engines.
type mesh struct {
	t       *testing.T
	dir     string
	doors   []*door
	engines []*engine
	metrics int // port of extproc's
}

// newMesh starts everything, extproc with more flags, and waits until it serves.
func newMesh(t *testing.T, doors func(engines []int) []*door, flags ...string) *mesh {
	t.Helper()
	m := &mesh{t: t, dir: t.TempDir()}
	var engines []int
	for range 3 {
		e := newEngine(t)
		m.engines = append(m.engines, e)
		engines = append(engines, e.port)
	}
	m.doors = doors(engines)
	free := rig.MustPorts(t, 3+len(m.doors))
	admin, extproc := free[0], free[1]
	m.metrics, free = free[2], free[3:]
	for i, d := range m.doors {
		d.Port = free[i]
		if d.Limit == 0 {
			d.Limit = bufferLimit
		}
	}
	rig.StartProgram(t, "extproc", append([]string{"-fleet", m.fleet(), "-listen", address(extproc), "-metrics", address(m.metrics)}, flags...)...)
	rig.StartEnvoy(t, m.config(map[string]any{
		"Admin": admin, "Extproc": extproc, "Engines": engines, "Doors": m.doors, "Log": filepath.Join(m.dir, "access.log"),
		"TLS": slices.Contains(flags, "-secure-serving"),
	}), 2)
	m.await("extproc serves", func() error { return answers("http://" + address(m.metrics) + "/healthz") })
	m.await("Envoy serves", func() error { return answers("http://" + address(admin) + "/ready") })
	return m
}

func (m *mesh) fleet() string {
	var b strings.Builder
	b.WriteString("endpoints:\n")
	for _, e := range m.engines {
		fmt.Fprintf(&b, "- {address: %q, models: [m]}\n", address(e.port))
	}
	b.WriteString("models:\n- {name: m, default: true}\n")
	return m.write("fleet.yaml", b.String())
}

func (m *mesh) config(values map[string]any) string {
	t, err := template.ParseFiles(filepath.Join("testdata", "envoy.yaml.tmpl"))
	if err != nil {
		m.t.Fatal(err)
	}
	var b strings.Builder
	if err := t.Execute(&b, values); err != nil {
		m.t.Fatal(err)
	}
	return m.write("envoy.yaml", b.String())
}

func (m *mesh) write(name, text string) string {
	return rig.Write(m.t, filepath.Join(m.dir, name), text)
}

func answers(url string) error {
	_, err := rig.Get(url)
	return err
}

func address(port int) string { return rig.Address(port) }

// await waits until cond returns nil.
func (m *mesh) await(what string, cond func() error) {
	m.t.Helper()
	rig.Wait(m.t, 20*time.Second, what, cond)
}

// idle says what extproc still holds though no request is on its way.
func (m *mesh) idle() error {
	for _, series := range []string{"millrace_extproc_streams", "millrace_extproc_requests_in_flight", "millrace_extproc_tokens_in_flight"} {
		v, err := rig.Metric(address(m.metrics), series)
		if err != nil {
			return err
		}
		if v != 0 {
			return fmt.Errorf("%s is %v", series, v)
		}
	}
	return nil
}
