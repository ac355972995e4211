package fleet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/fleetpb"
)

// machine is an engine that takes its time: it drains, starts and gets ready.
type machine struct {
	name   string
	stream uint64 // 0: its agent is away
	seq    uint64

	have, next *enginepb.Assignment // nil: nothing
	version    enginepb.Version
	state      enginepb.State
	left       int // beats until the drain or the start is over
	starts     int // of processes
	refused    *fleetpb.Refusal
}

// broken are weights with which nothing starts, refusedArgs what engines refuse.
const (
	broken      = "/broken.gguf"
	refusedArgs = "--refused"
)

// mesh is a fleet with machines.
type mesh struct {
	t        *testing.T
	r        *rand.Rand
	fleet    *Fleet
	now      time.Time
	streams  uint64
	state    *desired.State
	machines map[string]*machine
	snap     *Snapshot
	// directives counts what was sent to each node with each generation.
	directives map[string]int
}

func newMesh(t *testing.T, seed uint64, nodes int) *mesh {
	m := &mesh{
		t: t, r: rand.New(rand.NewPCG(seed, 7)), now: epoch, machines: map[string]*machine{}, directives: map[string]int{},
	}
	m.fleet = New(2*time.Second, epoch)
	for i := range nodes {
		name := fmt.Sprintf("node-%c", 'a'+i)
		m.machines[name] = &machine{name: name, state: enginepb.State_IDLE}
		m.connect(name)
	}
	return m
}

func (m *mesh) connect(name string) {
	m.streams++
	m.machines[name].stream, m.machines[name].seq = m.streams, 0
}

// desire is an edit.
func (m *mesh) desire(text string) {
	m.t.Helper()
	f, err := config.Parse("mesh.yaml", []byte(text))
	if err != nil {
		m.t.Fatalf("%v\n%s", err, text)
	}
	m.state = desired.Next(m.state, f, nil)
	m.fleet.Step(m.now, Desired{desired.Published{State: m.state}})
	m.fleet.Step(m.now, Pushed{m.state.Version})
}

// crash is a new xds, which knows only what is desired.
func (m *mesh) crash() {
	m.fleet = New(2*time.Second, m.now)
	m.fleet.Step(m.now, Desired{desired.Published{State: m.state}})
	m.fleet.Step(m.now, Pushed{m.state.Version})
	for _, name := range m.names() {
		if m.machines[name].stream != 0 {
			m.connect(name)
		}
	}
}

// beats lets time pass: machines work and report, the fleet decides.
func (m *mesh) beats(n int) {
	m.t.Helper()
	for range n {
		m.now = m.now.Add(300 * time.Millisecond)
		for _, name := range m.names() {
			m.machines[name].work(m)
		}
		for _, name := range m.names() {
			m.report(m.machines[name])
		}
		m.snap = m.fleet.Decide(m.now)
		answer(m.fleet, m.snap, m.now)
		m.holds()
		for _, name := range slices.Sorted(maps.Keys(m.snap.Directives)) {
			m.machines[name].assign(m, m.snap.Directives[name])
		}
	}
}

func (m *mesh) names() []string {
	var all []string
	for name := range m.machines {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func (m *mesh) report(e *machine) {
	if e.stream == 0 {
		return
	}
	e.seq++
	s := &enginepb.Status{
		Node: e.name, State: e.state, Generation: e.version.Generation, ControlEpoch: e.version.Epoch, Assignment: e.have,
		HttpAddress: address(e.name, 80), GrpcAddress: address(e.name, 81), ShardAddress: address(e.name, 82),
	}
	m.fleet.Step(m.now, Reported{Stream: e.stream, Report: &fleetpb.NodeReport{
		Node: e.name, Seq: e.seq, Sent: timestamppb.New(m.now), Engine: s, Refused: e.refused,
		Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 1},
	}})
}

// assign is a directive that reaches an engine.
func (e *machine) assign(m *mesh, a *enginepb.Assignment) {
	m.t.Helper()
	m.directives[fmt.Sprint(e.name, a.GetGeneration())]++
	last := e.version
	if e.next != nil {
		last = e.next.Version()
	}
	switch {
	case last.After(a.Version()):
		return
	case slices.Contains(a.GetBackend().GetArgs(), refusedArgs):
		e.refused = &fleetpb.Refusal{Generation: a.GetGeneration(), ControlEpoch: a.GetControlEpoch(), Reason: "backend.args[0]: must not be"}
		return
	}
	e.refused = nil
	if enginepb.SameProcess(a, e.have) {
		e.take(a)
		if e.state == enginepb.State_DRAINING {
			e.state = enginepb.State_READY
		}
		return
	}
	if e.next = a; e.state == enginepb.State_READY && e.have.GetStage() == 0 {
		e.state, e.left = enginepb.State_DRAINING, m.r.IntN(4)
	}
	if e.state != enginepb.State_DRAINING {
		e.begin(m)
	}
}

func (e *machine) take(a *enginepb.Assignment) {
	e.have, e.version, e.next = a, a.Version(), nil
	if a.Releases() {
		e.have = nil
	}
}

// begin ends what runs and starts what is next.
func (e *machine) begin(m *mesh) {
	m.t.Helper()
	if e.have.GetStage() > 0 {
		head := m.machines[e.have.GetStages()[0].GetNode()]
		serves := head.state == enginepb.State_READY || head.state == enginepb.State_DRAINING
		if serves && head.stream != 0 && enginepb.SameProcess(head.have, e.have) {
			m.t.Fatalf("%s loses its part of %s while its head %s, by %v\n%s", e.name, e.have.GetReplica(), head.state, e.next, m.show())
		}
	}
	e.take(e.next)
	e.state = enginepb.State_IDLE
	if e.have != nil {
		e.starts++
		e.state, e.left = enginepb.State_STARTING, m.r.IntN(5)
	}
}

// work is what an engine does by itself.
func (e *machine) work(m *mesh) {
	if e.left > 0 {
		e.left--
		return
	}
	switch e.state {
	case enginepb.State_DRAINING:
		e.begin(m)
	case enginepb.State_STARTING:
		if e.have.GetBackend().GetWeights() != broken && e.whole(m) {
			e.state = enginepb.State_READY
		}
	case enginepb.State_READY:
		if !e.whole(m) {
			e.state = enginepb.State_STARTING
		}
	}
}

// whole reports whether the engines of the replica run the same; a stage needs nobody.
func (e *machine) whole(m *mesh) bool {
	if e.have.GetStage() > 0 {
		return true
	}
	for _, s := range e.have.GetStages()[1:] {
		o := m.machines[s.GetNode()]
		if o.stream == 0 || !enginepb.SameProcess(o.have, e.have) {
			return false
		}
	}
	return true
}

// holds checks what must be true of every snapshot.
func (m *mesh) holds() {
	m.t.Helper()
	for _, e := range m.snap.Endpoints {
		if e.Membership != Healthy {
			continue
		}
		head := m.machines[e.Nodes[0]]
		if head.stream != 0 && head.state != enginepb.State_READY {
			m.t.Fatalf("%s is in EDS while its engine is %s", e.Replica, head.state)
		}
	}
}

// healthy returns how many replicas of the model are in EDS.
func (m *mesh) healthy(model string) (n int) {
	for _, e := range m.snap.Endpoints {
		if e.Model == model && e.Membership == Healthy {
			n++
		}
	}
	return n
}

// settled checks that what is desired runs, all of it and nothing else.
func (m *mesh) settled() {
	m.t.Helper()
	ran := map[string]bool{}
	for _, s := range specs(m.state, m.fleet.numbers) {
		var nodes []string
		for _, e := range m.snap.Endpoints {
			if e.Replica == s.Replica && e.Membership == Healthy {
				nodes = e.Nodes
			}
		}
		if len(nodes) != len(s.Shares) {
			m.t.Fatalf("%s is on %v: %v\n%s", s.Replica, nodes, m.snap.Objects, m.show())
		}
		for _, name := range nodes {
			ran[name] = true
			if b := m.machines[name].have.GetBackend(); b.GetSlots() != s.Backend.GetSlots() || b.GetWeights() != s.Backend.GetWeights() || b.GetQueue() != s.Backend.GetQueue() {
				m.t.Fatalf("%s runs %v, want %v", name, b, s.Backend)
			}
		}
	}
	for _, e := range m.machines {
		if e.have != nil && !ran[e.name] {
			m.t.Fatalf("%s still runs %s\n%s", e.name, e.have.GetReplica(), m.show())
		}
	}
	for _, o := range m.snap.Objects {
		for _, c := range o.Conditions {
			if c.Status != (c.Type != progressing) {
				m.t.Fatalf("%s %s: %+v", o.Kind, o.Name, c)
			}
		}
	}
}

func (m *mesh) show() string {
	var b strings.Builder
	for _, name := range m.names() {
		e := m.machines[name]
		fmt.Fprintf(&b, "%s %s version %v runs %s/%d of %d, next %v\n", name, e.state, e.version, e.have.GetReplica(), e.have.GetStage(), len(e.have.GetStages()), e.next.GetReplica())
	}
	return b.String()
}

func (m *mesh) starts() map[string]int {
	all := map[string]int{}
	for name, e := range m.machines {
		all[name] = e.starts
	}
	return all
}

// model is a Model object of so many replicas.
func model(name string, replicas, slots, queue int, more string) string {
	return fmt.Sprintf("%skind: Model\nmetadata: {name: %s}\nspec: {weights: /%s.gguf, replicas: %d, backend: {slots: %d, queue: %d}%s}\n", head, name, name, replicas, slots, queue, more)
}

func TestRoll(t *testing.T) {
	one := func(replicas, slots, queue int, more string) string { return model("m", replicas, slots, queue, more) }
	policy := head + "kind: Policy\nmetadata: {name: default}\nspec: {limits: {requestTimeout: 1m, maxBodyBytes: 1Mi}, retries: {standard: 2}}\n"
	tests := []struct {
		name     string
		nodes    int
		from, to string
		// restarts is how many processes start by the edit, least how many replicas of m
		// serve at any time.
		restarts, least int
	}{
		{"a replica more", 3, one(2, 4, 1, ""), one(3, 4, 1, ""), 1, 2},
		{"two replicas less", 3, one(3, 4, 1, ""), one(1, 4, 1, ""), 0, 1},
		{"a backend's setting", 3, one(3, 4, 1, ""), one(3, 2, 1, ""), 3, 2},
		{"a backend's setting of the only replica", 2, one(1, 4, 1, ""), one(1, 2, 1, ""), 1, 0},
		{"admission alone", 3, one(3, 4, 1, ""), one(3, 4, 9, ""), 0, 3},
		{"a policy", 3, one(3, 4, 1, ""), one(3, 4, 1, "") + policy, 0, 3},
		{"a setting, and less replicas", 3, one(3, 4, 1, ""), one(1, 2, 1, ""), 1, 1},
		{"a setting, and more replicas", 3, one(1, 4, 1, ""), one(2, 2, 1, ""), 2, 1},
		{"nodes that are exchanged", 2, one(2, 4, 1, ", layout: [{nodes: [node-a]}, {nodes: [node-b]}]"), one(2, 4, 1, ", layout: [{nodes: [node-b]}, {nodes: [node-a]}]"), 2, 0},
		{"nodes that are exchanged beside a third", 3, one(3, 4, 1, ", layout: [{nodes: [node-a]}, {nodes: [node-b]}, {nodes: [node-c]}]"), one(3, 4, 1, ", layout: [{nodes: [node-b]}, {nodes: [node-a]}, {nodes: [node-c]}]"), 2, 1},
		{"another node that is free", 3, one(2, 4, 1, ", layout: [{nodes: [node-a]}, {nodes: [node-b]}]"), one(2, 4, 1, ", layout: [{nodes: [node-c]}, {nodes: [node-b]}]"), 1, 1},
		{"two stages in place of two replicas", 2, one(2, 4, 1, ""), one(1, 4, 1, ", layout: [{stages: 2}]"), 2, 0},
		{"two replicas in place of two stages", 2, one(1, 4, 1, ", layout: [{stages: 2}]"), one(2, 4, 1, ""), 2, 0},
		{"sharded, with room", 5, one(2, 4, 1, ""), one(2, 4, 1, ", layout: [{stages: 2}]"), 4, 1},
		{"a setting of stages", 4, one(2, 4, 1, ", layout: [{stages: 2}]"), one(2, 2, 1, ", layout: [{stages: 2}]"), 4, 1},
		{"a model more", 3, one(2, 4, 1, ""), one(2, 4, 1, "") + model("n", 1, 4, 1, ""), 1, 2},
		{"a model less", 3, one(2, 4, 1, "") + model("n", 1, 4, 1, ""), one(2, 4, 1, ""), 0, 2},
		{"another name of the other model", 3, one(2, 4, 1, "") + model("n", 1, 4, 1, ""), one(2, 4, 1, "") + model("o", 1, 4, 1, ""), 1, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(4) {
				m := newMesh(t, seed, tt.nodes)
				m.desire(tt.from)
				m.beats(30)
				m.settled()
				before, least := m.starts(), 99
				m.desire(tt.to)
				for range 120 {
					m.beats(1)
					least = min(least, m.healthy("m"))
				}
				m.settled()
				restarts := 0
				for name, n := range m.starts() {
					restarts += n - before[name]
				}
				if restarts != tt.restarts || least < tt.least {
					t.Fatalf("seed %d: %d starts, %d replicas served at least; want %d, %d", seed, restarts, least, tt.restarts, tt.least)
				}
			}
		})
	}
}

func TestRollStopsAtWhatDoesNotStart(t *testing.T) {
	for seed := range uint64(4) {
		m := newMesh(t, seed, 3)
		m.desire(model("m", 3, 4, 1, ""))
		m.beats(30)
		before := m.starts()
		bad := strings.ReplaceAll(model("m", 3, 4, 1, ""), "/m.gguf", broken)
		m.desire(bad)
		m.beats(100)
		if m.healthy("m") != 2 {
			t.Fatalf("%d replicas serve, want 2", m.healthy("m"))
		}
		c := m.snap.Objects[0].Conditions
		if c[1].Status || !c[2].Status || c[2].Reason != "RollingOut" || !strings.Contains(c[2].Message, "m-0, which was changed before it") {
			t.Errorf("conditions %+v", c)
		}
		m.crash()
		m.beats(100)
		if m.healthy("m") != 2 {
			t.Fatalf("after a crash of xds %d replicas serve, want 2", m.healthy("m"))
		}
		m.desire(model("m", 3, 4, 1, "")) // undone
		m.beats(60)
		m.settled()
		restarts := 0
		for name, n := range m.starts() {
			restarts += n - before[name]
		}
		if restarts != 2 {
			t.Errorf("%d starts, want those of one replica", restarts)
		}
	}
}

func TestRollStopsAtWhatAnEngineRefuses(t *testing.T) {
	vllm := func(args string) string {
		return head + "kind: Model\nmetadata: {name: m}\nspec: {weights: /m, replicas: 2, backend: {kind: vllm, args: [" + args + "]}}\n"
	}
	m := newMesh(t, 1, 2)
	m.desire(vllm(""))
	m.beats(30)
	before := m.starts()
	m.desire(vllm(refusedArgs))
	m.beats(3)
	for range 100 {
		m.beats(1)
		if m.healthy("m") != 2 {
			t.Fatalf("%d replicas serve, want both", m.healthy("m"))
		}
	}
	for what, n := range m.directives {
		if n > 1 {
			t.Errorf("directive %s was sent %d times", what, n)
		}
	}
	c := m.snap.Objects[0].Conditions[2]
	if c.Status || c.Reason != "Refused" || c.Field != "backend.args[0]" {
		t.Errorf("condition %+v", c)
	}
	m.desire(vllm(`"--other"`))
	m.beats(60)
	m.settled()
	if after := m.starts(); after["node-a"] != before["node-a"]+1 || after["node-b"] != before["node-b"]+1 {
		t.Errorf("starts %v, before %v; want one more each", after, before)
	}
}

// TestRollUnderRandomEdits edits at random, at any time, while xds crashes and agents
// come and go; in the end what is desired runs and nothing else.
func TestRollUnderRandomEdits(t *testing.T) {
	for seed := range uint64(10) {
		m := newMesh(t, seed, 6)
		m.desire(model("m", 2, 4, 1, ""))
		m.beats(30)
		for range 40 {
			switch m.r.IntN(8) {
			case 0:
				m.crash()
			case 1:
				e := m.machines[m.names()[m.r.IntN(6)]]
				if e.stream == 0 {
					m.connect(e.name)
				} else {
					m.fleet.Step(m.now, Closed{Node: e.name, Stream: e.stream})
					e.stream = 0
				}
			default:
				m.desire(m.randomText())
			}
			m.beats(m.r.IntN(12))
		}
		for _, name := range m.names() {
			if m.machines[name].stream == 0 {
				m.connect(name)
			}
		}
		m.desire(strings.ReplaceAll(m.randomText(), broken, "/mended.gguf"))
		m.beats(400)
		m.settled()
	}
}

// randomText has at most six stages in all.
func (m *mesh) randomText() string {
	var text string
	left := 6
	for _, name := range []string{"m", "n", "o"} {
		stages := 1 + m.r.IntN(2)
		replicas := 1 + m.r.IntN(3)
		if name != "m" && m.r.IntN(2) == 0 || stages*replicas > left {
			continue
		}
		left -= stages * replicas
		one := model(name, replicas, 1+m.r.IntN(2), m.r.IntN(2), fmt.Sprintf(", layout: [{stages: %d}]", stages))
		if m.r.IntN(6) == 0 {
			one = strings.ReplaceAll(one, "/"+name+".gguf", broken)
		}
		text += one
	}
	return text
}

// TestPolicyEditsTouchNoEndpoint: not even for one snapshot.
func TestPolicyEditsTouchNoEndpoint(t *testing.T) {
	m := newMesh(t, 1, 3)
	m.desire(model("m", 2, 4, 1, ", layout: [{stages: 2}, {stages: 1}]"))
	m.beats(30)
	before := m.starts()
	for i := range 20 {
		m.desire(model("m", 2, 4, 1+i, ", layout: [{stages: 2}, {stages: 1}]") +
			fmt.Sprintf("%skind: Policy\nmetadata: {name: default}\nspec: {limits: {requestTimeout: %ds, maxBodyBytes: %dMi}}\n", head, 60+i, 1+i))
		for range 5 {
			m.beats(1)
			if m.healthy("m") != 2 {
				t.Fatalf("edit %d: %d replicas serve", i, m.healthy("m"))
			}
		}
	}
	m.settled()
	for name, n := range m.starts() {
		if n != before[name] {
			t.Errorf("%s was started again", name)
		}
	}
}
