package noxds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"millrace.dev/millrace/e2e/rig"
)

// movable is an engine that may end, and that counts what it gets.
type movable struct {
	address string
	server  *http.Server
	got     atomic.Int64 // requests
	running atomic.Int64
}

// startMovable starts an engine that takes a little time for an answer.
func startMovable(t *testing.T, address string) *movable {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	m := &movable{address: l.Addr().String()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		m.got.Add(1)
		m.running.Add(1)
		defer m.running.Add(-1)
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // Envoy has gone
		}
		w.Header().Set("Content-Type", "application/json")
		for range 3 { // an answer that has begun is worth as much as one that has not
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		_, _ = io.WriteString(w, `{"choices":[]}`)
	})
	m.server = &http.Server{Handler: mux}
	go m.server.Serve(l)
	t.Cleanup(func() { _ = m.server.Close() })
	return m
}

// idle says why nothing may be cut off by its end.
func (m *movable) idle() error {
	if n := m.running.Load(); n > 0 {
		return fmt.Errorf("%s has %d requests", m.address, n)
	}
	return nil
}

// newEdited starts extproc and Envoy for a fleet's file that tests write.
func newEdited(t *testing.T, file string, flags ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir()}
	free := rig.MustPorts(t, 4)
	f.ports.gateway, f.ports.admin, f.ports.extproc, f.ports.metric = free[0], free[1], free[2], free[3]
	f.write(t, "fleet.yaml", file)
	f.extproc = rig.StartProgram(t, "extproc", append([]string{"-fleet", filepath.Join(f.dir, "fleet.yaml"),
		"-listen", rig.Address(f.ports.extproc), "-metrics", f.admin()}, flags...)...)
	f.write(t, "envoy.yaml", f.adapt(t, "standalone.yaml"))
	f.envoy = rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	return f
}

// named is a fleet's file with these addresses.
func named(addresses ...string) string {
	var b strings.Builder
	b.WriteString("endpoints:\n")
	for _, a := range addresses {
		fmt.Fprintf(&b, "  - {address: %q, models: [smollm2]}\n", a)
	}
	return b.String()
}

// has says why the engines that Envoy has are not these.
func (f *fleet) has(want ...string) error {
	hosts, err := rig.EnvoyHosts(rig.Address(f.ports.admin), "engines")
	if err != nil {
		return err
	}
	var got []string
	for a, h := range hosts {
		if h.Healthy {
			got = append(got, a)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(hosts) != len(want) {
		return fmt.Errorf("Envoy has %v, well are %v; want %v", hosts, got, want)
	}
	return nil
}

// load sends requests from four clients that never pause.
func (f *fleet) load(t *testing.T) *rig.Load {
	t.Helper()
	return rig.StartLoadOf(t, 4, func(ctx context.Context, client, n int) (rig.Outcome, error) {
		a, err := rig.Post(ctx, f.url(rig.ChatPath), rig.ShortQuestions(client, n))
		if err == nil && (a.Status != 200 || !strings.Contains(string(a.Body), `"choices"`)) {
			err = fmt.Errorf("status %d: %.200s", a.Status, a.Body)
		}
		return rig.Outcome{}, err
	})
}

// TestEnginesComeAndGoByTheFile adds, removes and moves engines by writing the fleet's file
// alone, under load: Envoy follows, nothing is started again, and no request fails.
func TestEnginesComeAndGoByTheFile(t *testing.T) {
	a, b := startMovable(t, "127.0.0.1:0"), startMovable(t, "127.0.0.1:0")
	f := newEdited(t, named(a.address))
	f.await(t, "Envoy has the engine of the file", func() error { return f.has(a.address) })
	l := f.load(t)
	l.More(t, 50)

	f.write(t, "fleet.yaml", named(a.address, b.address))
	f.await(t, "Envoy has both", func() error { return f.has(a.address, b.address) })
	f.await(t, "the new one gets requests", func() error {
		if b.got.Load() < 20 {
			return fmt.Errorf("it has got %d", b.got.Load())
		}
		return nil
	})

	// One moves: the new place is there before the old one goes.
	c := startMovable(t, "127.0.0.1:0")
	f.write(t, "fleet.yaml", named(c.address, b.address))
	f.await(t, "Envoy has the new place", func() error { return f.has(b.address, c.address) })
	f.await(t, "the old place has ended its requests", a.idle)
	_ = a.server.Close()
	l.More(t, 100)

	f.write(t, "fleet.yaml", named(c.address)+"endpoint: []\n")
	f.await(t, "a bad file is said", func() error { return rig.HasCondition(f.admin(), "fleet-file") })
	if err := f.has(b.address, c.address); err != nil {
		t.Error(err)
	}
	f.write(t, "fleet.yaml", named(c.address))
	f.await(t, "Envoy has one", func() error { return f.has(c.address) })
	f.await(t, "the removed one has ended its requests", b.idle)
	_ = b.server.Close()
	l.More(t, 100)

	// Without extproc the hosts stay, and with it again they follow.
	f.extproc.KillAndWait()
	l.More(t, 50)
	if err := f.has(c.address); err != nil {
		t.Error(err)
	}
	d := startMovable(t, "127.0.0.1:0")
	f.write(t, "fleet.yaml", named(c.address, d.address))
	f.startExtproc()
	f.await(t, "Envoy follows the next extproc", func() error { return f.has(c.address, d.address) })
	l.More(t, 100)
	l.MustAllSucceed(t)
	t.Log(l)
}

// zone is a DNS server of one name.
type zone struct {
	address string // ip:port

	mu        sync.Mutex
	addresses []net.IP // nil: the server fails
}

// startZone starts one; it ends with the test.
func startZone(t *testing.T) *zone {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	z := &zone{address: conn.LocalAddr().String()}
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer, err := z.answer(buf[:n]); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return z
}

func (z *zone) set(addresses ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addresses = nil
	for _, a := range addresses {
		z.addresses = append(z.addresses, net.ParseIP(a))
	}
}

func (z *zone) answer(query []byte) ([]byte, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, errors.New("no question")
	}
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true}
	m.Additionals = nil
	if z.addresses == nil {
		m.RCode = dnsmessage.RCodeServerFailure
		return m.Pack()
	}
	for _, a := range z.addresses {
		if v4 := a.To4(); v4 != nil && q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte(v4)},
			})
		}
	}
	return m.Pack()
}

// TestEnginesBehindAName has one host name stand for one engine, two, another two, and
// for something forbidden, and DNS fail, under load.
func TestEnginesBehindAName(t *testing.T) {
	z := startZone(t)
	first := startMovable(t, "127.0.0.1:0")
	_, port, err := net.SplitHostPort(first.address)
	if err != nil {
		t.Fatal(err)
	}
	at := func(ip string) string { return net.JoinHostPort(ip, port) }
	second := startMovable(t, at("127.0.0.2"))
	f := newEdited(t, named(net.JoinHostPort("engines.example.", port)), "-dns", z.address)
	f.await(t, "the name that is not known is said", func() error { return rig.HasCondition(f.admin(), "host-names") })
	z.set("127.0.0.1")
	f.await(t, "Envoy has the engine behind the name", func() error { return f.has(first.address) })
	f.await(t, "no condition is left", f.ready)
	l := f.load(t)
	l.More(t, 50)
	z.set("127.0.0.2", "127.0.0.1")
	f.await(t, "Envoy has both", func() error { return f.has(first.address, second.address) })
	z.set()
	f.await(t, "DNS fails", func() error { return rig.HasCondition(f.admin(), "host-names") })
	l.More(t, 50)
	if err := f.has(first.address, second.address); err != nil {
		t.Error(err)
	}
	z.set("127.0.0.2", "169.254.169.254")
	f.await(t, "one has gone, and none is link-local", func() error { return f.has(second.address) })
	if err := rig.HasCondition(f.admin(), "host-names"); err != nil {
		t.Error(err)
	}
	f.await(t, "the first has ended its requests", first.idle)
	_ = first.server.Close()
	l.More(t, 50)
	l.MustAllSucceed(t)
	t.Log(l)
}
