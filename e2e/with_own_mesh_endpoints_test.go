package e2e

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/xds/fleetpb"
)

// foreignConfig is one model, served by two replicas of ours and two servers that
// somebody else runs.
const foreignConfig = `
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {replicas: 2, backend: {slots: 4}}
---
apiVersion: millrace.dev/v1alpha1
kind: Endpoints
metadata: {name: pool}
spec:
  endpoints:
    - {address: "%s", models: [smollm2], type: llamacpp, node: other-a, slots: 4}
    - {address: "%s", models: [smollm2], type: llamacpp, node: other-b, slots: 4}
`

// foreignMesh is a mesh with two servers that somebody else runs.
type foreignMesh struct {
	*mesh
	t       *testing.T // the servers end with it
	servers [2]*rig.LlamaServer
}

// TestEndpointsOfOthers has one xds serve two replicas of ours and two servers from
// outside in one model.
func TestEndpointsOfOthers(t *testing.T) {
	rig.PauseShared(t)
	addrs := rig.MustAddresses(t, 2)
	m := &foreignMesh{t: t}
	for i, a := range addrs {
		m.servers[i] = rig.StartLlamaServer(t, a)
	}
	for _, s := range m.servers {
		s.AwaitHealthy(t)
	}
	file := rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), fmt.Sprintf(foreignConfig, addrs[0], addrs[1]))
	m.mesh = own(t, "-nodes", "2", "-config", file)
	m.Engines = 4
	m.AwaitWhole(t)
	t.Run("all four serve", m.allServe)
	t.Run("conversations stay", m.conversationsStay)
	t.Run("one is killed and comes back", m.killedAndBack)
	t.Run("one hangs", m.hangs)
	t.Run("weights follow speed while extproc is away", m.weightsFollow)
}

// endpoint returns what xds has concluded of a server.
func (m *foreignMesh) endpoint(t *testing.T, i int) (*fleetpb.EndpointView, error) {
	v, err := m.Fleet(t.Context())
	if err != nil {
		return nil, err
	}
	for _, e := range v.GetEndpoints() {
		if e.GetAddress() == m.servers[i].Addr {
			return e, nil
		}
	}
	return nil, fmt.Errorf("xds shows no endpoint %s", m.servers[i].Addr)
}

// allServe sends requests until each of the four has got some, and xds has seen by the
// metrics how fast the servers are.
func (m *foreignMesh) allServe(t *testing.T) {
	l := rig.StartLoad(t, m.URL(t, rig.ChatPath), 6, func(client, n int) any {
		return rig.Ask(12, fmt.Sprintf("client %d, question %d: name a colour", client, n))
	})
	rig.Wait(t, rig.BackLimit, "all four have served, and their speed is known", func() error {
		for addr, h := range m.MustHosts(t, "engines/") {
			if h.Requests < 3 {
				return fmt.Errorf("%s got %d requests", addr, h.Requests)
			}
		}
		for i := range m.servers {
			if e, err := m.endpoint(t, i); err != nil || e.GetSpeed().GetDecode() == 0 || e.GetWeight() == 0 {
				return fmt.Errorf("endpoint %v: %w", e, err)
			}
		}
		return nil
	})
	l.MustAllSucceed(t)
	rig.Wait(t, rig.BackLimit, "Envoy has the weights that xds shows", func() error {
		hosts := m.MustHosts(t, "engines/")
		for i, s := range m.servers {
			e, err := m.endpoint(t, i)
			if err != nil {
				return err
			}
			if got := hosts[s.Addr].Weight; got != int(e.GetWeight()) {
				return fmt.Errorf("%s has weight %d at Envoy, want %d", s.Addr, got, e.GetWeight())
			}
		}
		return nil
	})
	var status struct {
		Endpoints []struct {
			Address, Source, State string
		}
	}
	if err := m.Status(t.Context(), &status); err != nil {
		t.Fatal(err)
	}
	if n := len(status.Endpoints); n != 2 || status.Endpoints[0].Source != "Endpoints/pool" || status.Endpoints[0].State != "READY" {
		t.Errorf("status shows %+v", status.Endpoints)
	}
	t.Logf("%v\n%s", l, m.StatusTable(t))
}

// conversationsStay begins conversations at the same time, which are known by their
// beginnings alone and so go to all four, and continues them one by one: each turn finds
// the one before it cached.
func (m *foreignMesh) conversationsStay(t *testing.T) {
	const talks, turns = 8, 2 // turns after the first
	foreign := map[string]bool{m.servers[0].Addr: true, m.servers[1].Addr: true}
	url := m.URL(t, rig.ChatPath)
	reqs := make([]rig.Chat, talks)
	turn := func(i int) int {
		c, _, err := rig.Complete(t.Context(), url, reqs[i])
		if err != nil {
			t.Error(err)
			return 0
		}
		reqs[i].Messages = append(reqs[i].Messages, rig.Assistant(c.Text()), rig.User("Go on."))
		return c.Usage.Details.Cached
	}
	log := m.AccessLog()
	rig.Each(talks, talks, func(i int) {
		reqs[i] = rig.Ask(6, fmt.Sprintf("Topic %d: we speak about rivers, number %d, and about all the towns that lie at them. Say something.", i, i*i))
		turn(i)
	})
	rig.Wait(t, rig.BackLimit, "the access log has all first turns", func() error {
		lines, err := log.Lines()
		if err == nil && len(lines) < talks {
			err = fmt.Errorf("%d lines", len(lines))
		}
		return err
	})
	there, moved, lost := 0, 0, 0
	for i := range talks {
		for range turns {
			now := m.AccessLog()
			if turn(i) == 0 {
				lost++
			}
			at := now.Find(t, func(rig.Access) bool { return true })
			first := log.Find(t, func(a rig.Access) bool { return a.Session == at.Session })
			if at.Host != first.Host {
				moved++
			}
			if foreign[first.Host] {
				there++
			}
		}
	}
	t.Logf("of %d turns that continue a conversation %d had begun at the servers, %d were elsewhere, %d found nothing cached", talks*turns, there, moved, lost)
	if there == 0 || there == talks*turns || moved > 1 || lost > 1 {
		t.Errorf("of %d turns %d had begun at the servers, %d moved, %d found nothing cached", talks*turns, there, moved, lost)
	}
}

// killedAndBack kills a server under load: no request fails, xds and Envoy eject it,
// and when it is started again it serves as before.
func (m *foreignMesh) killedAndBack(t *testing.T) {
	l := m.StartLoad(t, 4)
	l.More(t, 8)
	dead := m.servers[0]
	dead.KillAndWait()
	took := rig.Wait(t, rig.BackLimit, "Envoy does not have it", func() error { return m.Serving(3) })
	if e, err := m.endpoint(t, 0); err != nil || e.GetState() != fleetpb.EndpointState_NOT_READY || e.GetReason() == "" || e.GetWeight() != 0 {
		t.Errorf("it is killed, and xds shows %v, %v", e, err)
	}
	l.More(t, 12)
	m.servers[0] = rig.StartLlamaServer(m.t, dead.Addr)
	m.servers[0].AwaitHealthy(t)
	back := rig.Wait(t, rig.BackLimit, "Envoy has it again", func() error { return m.Serving(4) })
	before := m.MustHosts(t, "engines/")[dead.Addr].Requests
	rig.Wait(t, rig.BackLimit, "it serves again", func() error {
		if n := m.MustHosts(t, "engines/")[dead.Addr].Requests; n <= before {
			return fmt.Errorf("%d requests, as before", n)
		}
		return nil
	})
	l.MustAllSucceed(t)
	t.Logf("gone %v after it was killed, there %v after it answered; %v", took, back, l)
}

// hangs stops a server while it works on requests: no connection shows that, and they are
// answered by others all the same, while it still is.
func (m *foreignMesh) hangs(t *testing.T) {
	stuck := m.servers[0]
	l := rig.StartLoad(t, m.URL(t, rig.ChatPath), 8, func(client, n int) any {
		return rig.Ask(16, fmt.Sprintf("client %d, number %d: name a river", client, n))
	})
	var resume func()
	rig.Wait(t, rig.BackLimit, "it is stopped in the middle of requests", func() error {
		resume = rig.Suspend(t, stuck.PID())
		if n := m.MustHosts(t, "engines/")[stuck.Addr].Active; n == 0 {
			resume()
			return fmt.Errorf("it works on none")
		}
		return nil
	})
	began := time.Now()
	l.MustAllSucceed(t) // waits for those in flight
	t.Logf("all are answered %v after it was stopped; %v", time.Since(began).Round(time.Millisecond), l)
	resume()
	rig.Wait(t, rig.BackLimit, "Envoy has all four again", func() error { return m.Serving(4) })
}

// weightsFollow takes extproc away and slows one server down: xds sees by its metrics how
// slow it is, and Envoy sends it less. Then it is as fast as before.
func (m *foreignMesh) weightsFollow(t *testing.T) {
	resume := rig.Suspend(t, m.Process(t, "extproc").PID)
	rig.Wait(t, rig.BackLimit, "Envoy does not ask extproc", m.Unpicked)
	l := rig.StartLoad(t, m.URL(t, rig.ChatPath), 4, func(client, n int) any {
		return rig.Ask(16, fmt.Sprintf("client %d, number %d: name a town", client, n))
	})
	ratio := func() (float64, error) {
		hosts := m.MustHosts(t, "engines/")
		slow, other := hosts[m.servers[1].Addr], hosts[m.servers[0].Addr]
		if slow.Weight == 0 || other.Weight == 0 {
			return 0, fmt.Errorf("weights %d and %d", slow.Weight, other.Weight)
		}
		return float64(slow.Weight) / float64(other.Weight), nil
	}
	normal := slowDown(m.servers[1].PID())
	t.Cleanup(normal)
	down := rig.Wait(t, rig.BackLimit, "the slow server has a smaller weight", func() error {
		r, err := ratio()
		if err == nil && r > 0.65 {
			err = fmt.Errorf("its weight is %.2f of the other's", r)
		}
		return err
	})
	slow, _ := ratio()
	before := m.MustHosts(t, "engines/")
	requests := func(i int, hosts map[string]rig.Host) int { return int(hosts[m.servers[i].Addr].Requests) }
	var got, other int
	rig.Wait(t, rig.BackLimit, "Envoy sends the slow server less", func() error {
		now := m.MustHosts(t, "engines/")
		got, other = requests(1, now)-requests(1, before), requests(0, now)-requests(0, before)
		if other < got+fewer {
			return fmt.Errorf("it got %d requests, and the other one %d", got, other)
		}
		return nil
	})
	normal()
	// Few answers come in a second, and each moves the average by a little.
	up := rig.Wait(t, 2*rig.BackLimit, "its weight grows again", func() error {
		r, err := ratio()
		if err == nil && r < slow+0.12 {
			err = fmt.Errorf("its weight is %.2f of the other's, and was %.2f", r, slow)
		}
		return err
	})
	l.MustAllSucceed(t)
	resume()
	rig.Wait(t, rig.BackLimit, "the mesh is whole", func() error { return m.Whole(t.Context()) })
	t.Logf("at a third of its speed its weight was %.2f of the other's after %v, and it got %d requests for %d; more again after %v; %v", slow, down, got, other, up, l)
}

// fewer is by how many requests the slow server must be behind: by equal weights Envoy
// takes turns, and the difference stays at one or two.
const fewer = 8

// slowDown lets a process run a third of the time, until the returned function is called.
func slowDown(pid int) (normal func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			sig := syscall.SIGSTOP
			if n%3 == 0 {
				sig = syscall.SIGCONT
			}
			_ = syscall.Kill(pid, sig)
			select {
			case <-stop:
				_ = syscall.Kill(pid, syscall.SIGCONT)
				return
			case <-tick.C:
			}
		}
	}()
	ended := false
	return func() {
		if !ended {
			ended = true
			close(stop)
			<-done
		}
	}
}
