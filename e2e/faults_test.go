package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/xds/fleetpb"
)

// loadClients is the steady bounded load under which parts are hurt.
const loadClients = 5

// outLimit bounds how long a hung part may keep its place: the heartbeats (0.5 s)
// and health checks (2 × 0.8 s) that find it, on a machine that is busy.
const outLimit = 5 * time.Second

// fault is one way to hurt the mesh.
type fault struct {
	victim string
	// busy is the node of the engine that must have a request at that moment; ""
	// for any.
	busy string
	// times that the part is killed, each time as soon as it is back. What starts
	// in a tenth of a second is back before anybody has looked.
	times int
	// out says whether the mesh has seen it, from what was recorded meanwhile.
	out func(m *mesh, st *story) error
}

// outNode expects that a node stopped taking requests, and why.
func outNode(name string) func(*mesh, *story) error {
	return func(_ *mesh, st *story) error {
		if !st.saw(func(s sight) bool {
			return s.node == name && s.state != fleetpb.EndpointState_READY && s.weight == 0 && s.reason != ""
		}) {
			return fmt.Errorf("%s was never seen out, with weight 0 and a reason", name)
		}
		return nil
	}
}

// TestKill kills one part after the other under load. No request may fail, and
// the part must be back by itself.
func TestKill(t *testing.T) {
	m := shared(t)
	r := m.replicas(t)
	faults := []fault{
		{"engine@" + r.whole, r.whole, 1, outNode(r.whole)},
		{"engine@" + r.tail, r.head, 1, outNode(r.head)},
		{"backend@" + r.head, r.head, 1, outNode(r.head)},
		{"backend@" + r.whole, r.whole, 1, outNode(r.whole)},
		{"shard@" + r.tail, r.head, 1, outNode(r.head)},
		{"shard@" + r.head, r.head, 1, outNode(r.head)},
		{"nodeagent@" + r.whole, r.whole, 4, silentNode(r.whole)},
		{"xds", "", 4, silentControl},
		{"extproc", "", 4, silentPicker},
	}
	for _, f := range faults {
		t.Run(f.victim, func(t *testing.T) { kill(t, m, f) })
	}
}

// silentNode expects that a node's silence was noticed, though it kept serving.
func silentNode(name string) func(*mesh, *story) error {
	return func(_ *mesh, st *story) error {
		if !st.saw(func(s sight) bool { return s.node == name && s.state != fleetpb.EndpointState_READY && s.reason != "" }) {
			return fmt.Errorf("%s was never seen without its agent", name)
		}
		return nil
	}
}

// silentControl expects that xds could not be asked for a while, that `millrace
// status` then asked the engines, and that Envoy kept both of them all the time.
func silentControl(_ *mesh, st *story) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.breaks == 0:
		return errors.New("xds was there all the time")
	case !st.sources["engines"]:
		return fmt.Errorf("`millrace status` asked %v", st.sources)
	case st.fewest < 2:
		return fmt.Errorf("Envoy had only %d engines meanwhile", st.fewest)
	}
	return nil
}

// silentPicker expects that `millrace status` showed extproc down.
func silentPicker(_ *mesh, st *story) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.down["extproc"] {
		return fmt.Errorf("`millrace status` showed only %v down", st.down)
	}
	return nil
}

func kill(t *testing.T, m *mesh, f fault) {
	m.watchLogs(t)
	m.whole(t)
	l := m.startLoad(t, loadClients)
	l.more(t, 2*loadClients)
	st := m.record(t)
	st.look(t, m)
	m.busy(t, f.busy)
	struck := time.Now()
	for range f.times {
		before := m.process(t, f.victim)
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %s (pid %d): %v", f.victim, before.PID, err)
		}
		waitFor(t, backLimit, "the part is started again", func() error { return restarted(m, before) })
	}
	waitFor(t, backLimit, "the mesh is whole", func() error { return m.isWhole(t.Context()) })
	back := time.Since(struck)
	l.more(t, 2*loadClients)
	l.unfailed(t)
	if f.out != nil {
		if err := f.out(m, st); err != nil {
			t.Error(err)
		}
	}
	t.Logf("whole again after %.1f s; %v", back.Seconds(), l)
}

// busy waits until Envoy has a request at a node's engine.
func (m *mesh) busy(t *testing.T, node string) {
	t.Helper()
	if node == "" {
		return
	}
	addr := m.addr(t, "engine@"+node, "http")
	waitFor(t, backLimit, node+" is in use", func() error {
		hosts, err := m.hosts("engines/")
		if err == nil && hosts[addr].active == 0 {
			err = errors.New("no request is there")
		}
		return err
	})
}

// restarted says whether a process runs anew and was counted.
func restarted(m *mesh, before process) error {
	s, err := m.read()
	if err != nil {
		return err
	}
	now := s.find(before.Name)
	switch {
	case now.PID == before.PID:
		return fmt.Errorf("state.json still shows pid %d", before.PID)
	case now.PID == 0:
		return errors.New("it is down")
	case now.Restarts <= before.Restarts:
		return fmt.Errorf("restarts = %d, were %d", now.Restarts, before.Restarts)
	}
	return nil
}

// TestStop stops one part after the other with SIGSTOP under load: it hangs, but
// its sockets stay open. It must be taken out in time and come back by itself.
func TestStop(t *testing.T) {
	m := shared(t)
	r := m.replicas(t)
	faults := []fault{
		{"engine@" + r.whole, r.whole, 1, unused(r.whole)},
		{"engine@" + r.head, r.head, 1, unused(r.head)},
		{"backend@" + r.whole, r.whole, 1, unused(r.whole)},
		{"backend@" + r.head, r.head, 1, unused(r.head)},
		{"shard@" + r.tail, r.head, 1, unused(r.head)},
		{"extproc", "", 1, outPicker},
	}
	for _, f := range faults {
		t.Run(f.victim, func(t *testing.T) { stop(t, m, f) })
	}
}

// unused expects that a node is known to be out and gets no new requests. Envoy
// keeps it, as unhealthy, until what is stuck there has been reset.
func unused(name string) func(*mesh, *story) error {
	return func(m *mesh, st *story) error {
		if !st.saw(func(s sight) bool { return s.node == name && s.state != fleetpb.EndpointState_READY && s.reason != "" }) {
			return fmt.Errorf("xds has %s in use", name)
		}
		s, err := m.read()
		if err != nil {
			return err
		}
		engines, err := m.hosts("engines/")
		if err != nil {
			return err
		}
		if h := engines[s.find("engine@" + name).Addrs["http"]]; h.healthy {
			return fmt.Errorf("Envoy has %s in use", name)
		}
		return nil
	}
}

// outPicker expects that Envoy has given up extproc for now.
func outPicker(m *mesh, _ *story) error {
	hs, err := m.hosts("extproc")
	if err != nil {
		return err
	}
	for addr, h := range hs {
		if h.healthy {
			return fmt.Errorf("Envoy still asks extproc at %s", addr)
		}
	}
	return nil
}

func stop(t *testing.T, m *mesh, f fault) {
	m.watchLogs(t)
	m.whole(t)
	l := m.startLoad(t, loadClients)
	l.more(t, 2*loadClients)
	st := m.record(t)
	p := m.process(t, f.victim)
	m.busy(t, f.busy)
	if err := syscall.Kill(p.PID, syscall.SIGSTOP); err != nil {
		t.Fatalf("stop %s (pid %d): %v", f.victim, p.PID, err)
	}
	awake := func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) }
	t.Cleanup(awake)
	out := waitFor(t, outLimit, f.victim+" is out", func() error { return f.out(m, st) })
	status := m.statusTable(t)
	if role, _, _ := strings.Cut(f.victim, "@"); role != "extproc" && !strings.Contains(status, "NOT_READY") {
		t.Errorf("`millrace status` shows nothing of it:\n%s", status)
	}
	l.more(t, 4*loadClients)
	awake()
	back := waitFor(t, backLimit, "the mesh is whole", func() error { return m.isWhole(t.Context()) })
	l.more(t, 2*loadClients)
	l.unfailed(t)
	t.Logf("out after %.1f s, back %.1f s after SIGCONT; %v", out.Seconds(), back.Seconds(), l)
}

// statusTable is what `millrace status` shows to a person.
func (m *mesh) statusTable(t *testing.T) string {
	t.Helper()
	got := millrace(t, "", "status", "-dir", m.dir)
	return got.stdout + got.stderr
}
