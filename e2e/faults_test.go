package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
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
		if !st.had(func(s observation) bool {
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
	r := m.Replicas(t)
	faults := []fault{
		{"engine@" + r.Whole, r.Whole, 1, outNode(r.Whole)},
		{"engine@" + r.Tail, r.Head, 1, outNode(r.Head)},
		{"backend@" + r.Head, r.Head, 1, outNode(r.Head)},
		{"backend@" + r.Whole, r.Whole, 1, outNode(r.Whole)},
		{"shard@" + r.Tail, r.Head, 1, outNode(r.Head)},
		{"shard@" + r.Head, r.Head, 1, outNode(r.Head)},
		{"nodeagent@" + r.Whole, r.Whole, 4, silentNode(r.Whole)},
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
		if !st.had(func(s observation) bool {
			return s.node == name && s.state != fleetpb.EndpointState_READY && s.reason != ""
		}) {
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
	m.ShowLogs(t)
	m.AwaitWhole(t)
	l := m.StartLoad(t, loadClients)
	l.More(t, loadClients)
	st := m.record(t)
	st.poll(t, m)
	m.busy(t, f.busy)
	struck := time.Now()
	for range f.times {
		before := m.Process(t, f.victim)
		rig.Kill(t, before.PID)
		rig.Wait(t, rig.BackLimit, "the part is started again", func() error { return m.Restarted(before) })
	}
	rig.Wait(t, rig.BackLimit, "the mesh is whole", func() error { return m.Whole(t.Context()) })
	back := time.Since(struck)
	l.More(t, 2*loadClients)
	l.MustAllSucceed(t)
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
	addr := m.Addr(t, "engine@"+node, "http")
	rig.Wait(t, rig.BackLimit, node+" is in use", func() error {
		hosts, err := m.Hosts("engines/")
		if err == nil && hosts[addr].Active == 0 {
			err = errors.New("no request is there")
		}
		return err
	})
}

// TestStop stops one part after the other with SIGSTOP under load: it hangs, but
// its sockets stay open. It must be taken out in time and come back by itself.
func TestStop(t *testing.T) {
	m := shared(t)
	r := m.Replicas(t)
	faults := []fault{
		{"engine@" + r.Whole, r.Whole, 1, unused(r.Whole)},
		{"engine@" + r.Head, r.Head, 1, unused(r.Head)},
		{"backend@" + r.Whole, r.Whole, 1, unused(r.Whole)},
		{"backend@" + r.Head, r.Head, 1, unused(r.Head)},
		{"shard@" + r.Tail, r.Head, 1, unused(r.Head)},
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
		if !st.had(func(s observation) bool {
			return s.node == name && s.state != fleetpb.EndpointState_READY && s.reason != ""
		}) {
			return fmt.Errorf("xds has %s in use", name)
		}
		s, err := m.ReadState()
		if err != nil {
			return err
		}
		engines, err := m.Hosts("engines/")
		if err != nil {
			return err
		}
		if h := engines[s.Find("engine@" + name).Addrs["http"]]; h.Healthy {
			return fmt.Errorf("Envoy has %s in use", name)
		}
		return nil
	}
}

// outPicker expects that Envoy has given up extproc for now.
func outPicker(m *mesh, _ *story) error {
	return m.Unpicked()
}

func stop(t *testing.T, m *mesh, f fault) {
	m.ShowLogs(t)
	m.AwaitWhole(t)
	l := m.StartLoad(t, loadClients)
	l.More(t, loadClients)
	st := m.record(t)
	p := m.Process(t, f.victim)
	m.busy(t, f.busy)
	resume := rig.Suspend(t, p.PID)
	out := rig.Wait(t, outLimit, f.victim+" is out", func() error { return f.out(m, st) })
	status := m.StatusTable(t)
	if role, _, _ := strings.Cut(f.victim, "@"); role != "extproc" && !strings.Contains(status, "NOT_READY") {
		t.Errorf("`millrace status` shows nothing of it:\n%s", status)
	}
	l.More(t, 2*loadClients)
	resume()
	back := rig.Wait(t, rig.BackLimit, "the mesh is whole", func() error { return m.Whole(t.Context()) })
	l.More(t, 2*loadClients)
	l.MustAllSucceed(t)
	t.Logf("out after %.1f s, back %.1f s after SIGCONT; %v", out.Seconds(), back.Seconds(), l)
}
