package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/fleetpb"
)

var epoch = time.Unix(1_000_000, 0)

// head begins each object of a configuration.
const head = "---\napiVersion: millrace.dev/v1alpha1\n"

// two is one replica over two nodes and one on a third.
const two = head + "kind: Model\nmetadata: {name: m}\nspec: {weights: /m.gguf, layout: [{stages: 2}, {stages: 1}]}\n"

// world drives a fleet with nodes that do what their directives say.
type world struct {
	t       *testing.T
	fleet   *Fleet
	now     time.Time
	streams uint64
	state   *desired.State
	nodes   map[string]*sim
	snap    *Snapshot
	plans   int // that were made
}

// sim is a node of a world.
type sim struct {
	stream   uint64
	seq      uint64
	capacity float64
	status   *enginepb.Status
	mute     string
	gpu      *fleetpb.Gpu
	memory   uint64
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, fleet: New(2500*time.Millisecond, epoch), now: epoch, nodes: map[string]*sim{}}
	w.desire(two)
	return w
}

// desire makes the objects of the text what is desired, and known to all clients.
func (w *world) desire(text string) {
	w.t.Helper()
	f, err := config.Parse("mesh.yaml", []byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	w.state = desired.Next(w.state, f, nil)
	w.fleet.Step(w.now, Desired{desired.Published{State: w.state}})
	w.fleet.Step(w.now, Pushed{w.state.Version})
}

// restart is an xds that knows nothing yet but what is desired.
func (w *world) restart() {
	w.fleet = New(2500*time.Millisecond, w.now)
	w.fleet.Step(w.now, Desired{desired.Published{State: w.state}})
	w.fleet.Step(w.now, Pushed{w.state.Version})
}

// join adds a node whose engine is idle, or whose agent is back.
func (w *world) join(names ...string) {
	for _, name := range names {
		w.streams++
		if n := w.nodes[name]; n != nil {
			n.stream, n.seq = w.streams, 0
			continue
		}
		w.nodes[name] = &sim{stream: w.streams, status: &enginepb.Status{
			Node: name, State: enginepb.State_IDLE, HttpAddress: address(name, 80),
			GrpcAddress: address(name, 81), ShardAddress: address(name, 82),
		}}
	}
}

func address(name string, port int) string {
	return fmt.Sprintf("10.0.0.%d:%d", name[len(name)-1]-'a'+1, port)
}

// leave ends the stream of a node's agent.
func (w *world) leave(name string) {
	n := w.nodes[name]
	w.fleet.Step(w.now, Closed{Node: name, Stream: n.stream})
	n.stream = 0
}

// report lets a node report now.
func (w *world) report(name string) {
	n := w.nodes[name]
	if n.stream == 0 {
		return
	}
	n.seq++
	r := &fleetpb.NodeReport{
		Node: name, Seq: n.seq, Sent: timestamppb.New(w.now), EngineError: n.mute,
		Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 1, Capacity: n.capacity, ModelMemoryBytes: n.memory},
	}
	if n.mute == "" {
		r.Engine = n.status
	}
	if n.gpu != nil {
		r.Telemetry.Gpus = []*fleetpb.Gpu{n.gpu}
	}
	w.fleet.Step(w.now, Reported{Stream: n.stream, Report: r})
}

// decide takes a snapshot; engines follow its directives at once.
func (w *world) decide() *Snapshot {
	w.snap = w.fleet.Decide(w.now)
	if w.snap.Plan != nil {
		w.plans++
	}
	answer(w.fleet, w.snap, w.now)
	for name, a := range w.snap.Directives {
		if a.Releases() {
			w.nodes[name].status = &enginepb.Status{
				Node: name, State: enginepb.State_IDLE, Generation: a.GetGeneration(), ControlEpoch: a.GetControlEpoch(),
				HttpAddress: address(name, 80), GrpcAddress: address(name, 81), ShardAddress: address(name, 82),
			}
			continue
		}
		w.nodes[name].status = &enginepb.Status{
			Node: name, State: enginepb.State_READY, Generation: a.GetGeneration(), ControlEpoch: a.GetControlEpoch(), Assignment: a,
			HttpAddress: address(name, 80), GrpcAddress: address(name, 81), ShardAddress: address(name, 82),
		}
	}
	return w.snap
}

// beat lets every node report and decides.
func (w *world) beat() *Snapshot {
	for name := range w.nodes {
		w.report(name)
	}
	return w.decide()
}

// run lets time pass with a beat each 500 ms, except for the silent nodes.
func (w *world) run(d time.Duration, silent ...string) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(500 * time.Millisecond)
		for name := range w.nodes {
			if !slices.Contains(silent, name) {
				w.report(name)
			}
		}
		w.decide()
	}
}

// up is a world in which all is well.
func up(t *testing.T) *world {
	w := newWorld(t)
	w.join("node-a", "node-b", "node-c")
	w.run(time.Second)
	w.want("m-0 READY 1000", "m-1 READY 1000")
	return w
}

// want compares the endpoints, as "replica state weight", with an ! in front of
// one that is marked unhealthy.
func (w *world) want(endpoints ...string) {
	w.t.Helper()
	var got []string
	for _, e := range w.snap.Endpoints {
		s := fmt.Sprintf("%s %s %d", e.Replica, e.State, e.Weight)
		if e.Membership == Unhealthy {
			s = "!" + s
		}
		got = append(got, s)
	}
	if diff := cmp.Diff(endpoints, got); diff != "" {
		w.t.Errorf("endpoints differ (-want +got):\n%s", diff)
	}
}

func (w *world) wantCondition(text string) {
	w.t.Helper()
	for _, c := range w.snap.Conditions {
		if strings.Contains(c.Text, text) {
			return
		}
	}
	w.t.Errorf("no condition says %q: %v", text, w.snap.Conditions)
}

func TestPlansAsSoonAsAllAreThere(t *testing.T) {
	w := newWorld(t)
	w.join("node-a", "node-b")
	if s := w.beat(); len(s.Directives) > 0 || s.Settled {
		t.Fatalf("two of three nodes: directives %v, settled %v; want to wait", s.Directives, s.Settled)
	}
	w.join("node-c")
	s := w.beat()
	if len(s.Directives) != 3 || !s.Settled {
		t.Fatalf("all nodes: directives %v, settled %v", s.Directives, s.Settled)
	}
	w.want("m-0 NOT_READY 0", "m-1 NOT_READY 0")
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
	if len(w.snap.Directives) > 0 || len(w.snap.Conditions) > 0 {
		t.Errorf("all is well, and yet %v %v", w.snap.Directives, w.snap.Conditions)
	}
}

func TestSpareNodeIsReleased(t *testing.T) {
	w := up(t)
	w.join("node-d")
	w.report("node-d")
	if s := w.decide(); len(s.Directives) != 1 || !s.Directives["node-d"].Releases() {
		t.Fatalf("directives %v; want to say to the spare node that there is nothing for it", s.Directives)
	}
	w.run(5 * time.Second)
	if s := w.beat(); len(s.Directives) > 0 {
		t.Errorf("directives %v; it was said", s.Directives)
	}
	w.run(time.Minute, "node-c") // which is lost
	if got := w.nodes["node-d"].status.GetAssignment().GetReplica(); got != "m-1" {
		t.Errorf("the spare node serves %q, want m-1", got)
	}
}

func TestPlansWhatFitsAfterSettling(t *testing.T) {
	w := newWorld(t)
	w.join("node-a", "node-b")
	w.run(2 * time.Second)
	if w.snap.Settled {
		t.Error("settled too early")
	}
	w.run(time.Second)
	if !w.snap.Settled {
		t.Error("not settled after its time")
	}
	w.want("m-0 READY 1000")
	w.wantCondition("replica m-1 is not placed")
	w.join("node-c")
	w.run(time.Second)
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestRestartAdoptsWhatRuns(t *testing.T) {
	w := up(t)
	before := w.nodes["node-a"].status.GetGeneration()
	w.restart()
	w.join("node-a", "node-b")
	w.report("node-a")
	w.report("node-b")
	if w.decide(); w.snap.Settled || len(w.snap.Endpoints) > 0 {
		t.Error("decided although node-c has not reported")
	}
	w.join("node-c")
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
	if !w.snap.Settled || len(w.snap.Directives) > 0 || w.nodes["node-a"].status.GetGeneration() != before {
		t.Errorf("settled %v, directives %v; want the running replicas as they are", w.snap.Settled, w.snap.Directives)
	}
}

func TestRestartDoesNotWaitForTheHeadsPeers(t *testing.T) {
	w := up(t)
	w.restart()
	delete(w.nodes, "node-b") // its agent is away; its engine serves
	w.join("node-a", "node-c")
	w.run(3 * time.Second)
	w.want("m-0 SUSPECT 500", "m-1 READY 1000")
}

func TestSilentAgent(t *testing.T) {
	w := up(t)
	w.run(2*time.Second, "node-c") // its timeout of 1.5 s is over
	w.want("m-0 READY 1000", "m-1 SUSPECT 500")
	w.wantCondition("node-c silent for 2 s")
	w.run(5*time.Second, "node-c")
	w.want("m-0 READY 1000", "m-1 SUSPECT 250")
	w.run(10*time.Second, "node-c")
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
	w.run(500 * time.Millisecond)
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestOwnSleepIsNobodysSilence(t *testing.T) {
	w := up(t)
	const slept = time.Minute
	w.now = w.now.Add(slept)
	w.fleet.Excuse(w.now, slept)
	w.decide()
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestClosedStream(t *testing.T) {
	w := up(t)
	w.leave("node-c")
	w.decide()
	w.want("m-0 READY 1000", "m-1 SUSPECT 500")
	w.run(14500 * time.Millisecond)
	w.want("m-0 READY 1000", "m-1 SUSPECT 125")
	w.run(time.Second)
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
	w.join("node-c")
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestHeadVouchesForSilentShard(t *testing.T) {
	w := up(t)
	w.leave("node-b")
	w.run(time.Minute - time.Second)
	w.want("m-0 SUSPECT 125", "m-1 READY 1000")
	for _, n := range w.snap.Nodes {
		if n.Name == "node-b" && (n.State != notReady || !strings.Contains(n.Reason, "closed")) {
			t.Errorf("node-b itself: %v %q", n.State, n.Reason)
		}
	}
	w.nodes["node-a"].status.State = enginepb.State_BROKEN
	w.beat()
	w.want("m-0 NOT_READY 0", "m-1 READY 1000")
}

func TestOwnTimeout(t *testing.T) {
	w := up(t)
	n := w.nodes["node-c"]
	n.seq++
	w.fleet.Step(w.now, Reported{Stream: n.stream, Report: &fleetpb.NodeReport{
		Node: "node-c", Seq: n.seq, Timeout: durationpb.New(10 * time.Second), Engine: n.status, Telemetry: &fleetpb.Telemetry{},
	}})
	w.run(9*time.Second, "node-c")
	w.want("m-0 READY 1000", "m-1 READY 1000")
	w.run(time.Second, "node-c")
	w.want("m-0 READY 1000", "m-1 SUSPECT 500")
}

func TestEngineNotReadyLeavesAtOnce(t *testing.T) {
	w := up(t)
	changes := w.snap.Changes
	w.nodes["node-b"].status = clone(w.nodes["node-b"].status, enginepb.State_BROKEN, "shard died")
	w.beat()
	w.want("m-0 NOT_READY 0", "m-1 READY 1000")
	if w.snap.Changes == changes {
		t.Error("the change is not to be pushed at once")
	}
	if r := w.snap.Endpoints[0].Reason; r != "node-b: broken: shard died" {
		t.Errorf("reason %q", r)
	}
	w.wantCondition("replica m-0 takes no requests: node-b: broken: shard died")
}

func clone(s *enginepb.Status, state enginepb.State, reason string) *enginepb.Status {
	return &enginepb.Status{
		Node: s.Node, State: state, Reason: reason, Generation: s.Generation, ControlEpoch: s.ControlEpoch, Assignment: s.Assignment,
		HttpAddress: s.HttpAddress, GrpcAddress: s.GrpcAddress, ShardAddress: s.ShardAddress, Epoch: s.Epoch, Speed: s.Speed,
	}
}

func TestHungEngineIsMarkedBeforeItLeaves(t *testing.T) {
	w := up(t)
	w.nodes["node-c"].mute = "silent: nothing heard for 1s"
	w.beat()
	w.want("m-0 READY 1000", "!m-1 NOT_READY 1")
	w.run(2500 * time.Millisecond)
	w.want("m-0 READY 1000", "!m-1 NOT_READY 1")
	w.run(500 * time.Millisecond)
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
	w.wantCondition("node-c: engine silent for 3 s")
	w.nodes["node-c"].mute = ""
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestUnreachableEngineLeavesAtOnce(t *testing.T) {
	w := up(t)
	w.nodes["node-c"].mute = "unreachable: connection refused"
	w.beat()
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
}

func TestRestartedEngineGetsItsDirectiveAgain(t *testing.T) {
	w := up(t)
	had := w.nodes["node-c"].status
	w.nodes["node-c"].status = &enginepb.Status{
		Node: "node-c", State: enginepb.State_IDLE, HttpAddress: had.HttpAddress, GrpcAddress: had.GrpcAddress, ShardAddress: had.ShardAddress,
	}
	w.report("node-c")
	s := w.decide()
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
	if a := s.Directives["node-c"]; a.GetGeneration() != had.GetGeneration() {
		t.Errorf("directive %v, want the same assignment again", a)
	}
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestDirectiveIsRepeatedEachSecond(t *testing.T) {
	w := newWorld(t)
	w.join("node-a", "node-b", "node-c")
	for name := range w.nodes {
		w.report(name)
	}
	count := 0
	for range 21 { // 2 s
		if w.fleet.Decide(w.now).Directives["node-a"] != nil {
			count++
		}
		w.now = w.now.Add(100 * time.Millisecond)
	}
	if count != 2 && count != 3 {
		t.Errorf("sent %d times in 2 s to an engine that doesn't follow", count)
	}
}

func TestWeights(t *testing.T) {
	w := up(t)
	w.nodes["node-a"].capacity, w.nodes["node-c"].capacity = 100, 50
	w.run(time.Second)
	w.want("m-0 READY 1000", "m-1 READY 500")
	w.nodes["node-c"].gpu = &fleetpb.Gpu{Uuid: "GPU-1", ClocksEventReasons: 0x40, ClockRatio: 0.6}
	w.run(time.Second)
	w.want("m-0 READY 1000", "m-1 READY 300")
	w.wantCondition("node-c has 60 % of its speed: GPU 0 (GPU-1) is throttled")
	w.nodes["node-c"].gpu.Lost = true
	w.run(500 * time.Millisecond)
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
	w.wantCondition("is lost")
}

func TestDriftIsPushedSeldom(t *testing.T) {
	w := up(t)
	w.nodes["node-a"].capacity, w.nodes["node-c"].capacity = 100, 100
	w.run(time.Second)
	w.nodes["node-c"].capacity = 97
	w.run(2 * time.Second)
	w.want("m-0 READY 1000", "m-1 READY 1000") // less than 5 % is noise
	pushes := 0
	for i := range 20 { // 2 s of steady decline
		w.nodes["node-c"].capacity = 90 - float64(2*i)
		w.now = w.now.Add(100 * time.Millisecond)
		old := w.snap.Endpoints[1].Weight
		if w.beat(); w.snap.Endpoints[1].Weight != old {
			pushes++
		}
	}
	if pushes < 3 || pushes > 5 {
		t.Errorf("%d pushes in 2 s, want one each 500 ms", pushes)
	}
}

func TestNewerStreamReplacesTheOlder(t *testing.T) {
	w := up(t)
	n := w.nodes["node-c"]
	old := n.stream
	w.join("node-c")
	w.report("node-c")
	w.fleet.Step(w.now, Closed{Node: "node-c", Stream: old})
	w.fleet.Step(w.now, Reported{Stream: old, Report: &fleetpb.NodeReport{Node: "node-c", EngineError: "stale"}})
	w.decide()
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestLateReportDoesNotReopenAStream(t *testing.T) {
	w := up(t)
	n := w.nodes["node-c"]
	w.fleet.Step(w.now, Closed{Node: "node-c", Stream: n.stream})
	w.report("node-c")
	w.decide()
	w.want("m-0 READY 1000", "m-1 SUSPECT 500")
}

func TestLostNodeIsReplaced(t *testing.T) {
	w := up(t)
	w.join("node-d")
	w.leave("node-b")
	w.run(55 * time.Second)
	w.want("m-0 SUSPECT 125", "m-1 READY 1000")
	w.run(10 * time.Second)
	w.want("m-0 READY 1000", "m-1 READY 1000")
	if got := w.snap.Endpoints[0].Nodes; !slices.Equal(got, []string{"node-a", "node-d"}) {
		t.Errorf("m-0 is on %v", got)
	}
	w.run(10 * time.Minute)
	if len(w.snap.Nodes) != 3 {
		t.Errorf("%d nodes are shown, want node-b forgotten", len(w.snap.Nodes))
	}
}

func TestTwoEnginesAtOneAddress(t *testing.T) {
	w := up(t)
	s := clone(w.nodes["node-c"].status, enginepb.State_READY, "")
	s.HttpAddress = w.nodes["node-a"].status.HttpAddress
	w.nodes["node-c"].status = s
	w.beat()
	w.want("m-0 READY 1000", "m-1 NOT_READY 0")
}

func TestView(t *testing.T) {
	w := up(t)
	w.leave("node-c")
	v := w.decide().View(2, nil)
	var got []string
	for _, n := range v.GetNodes() {
		got = append(got, fmt.Sprintf("%s %s %d", n.GetNode(), n.GetState(), n.GetWeight()))
	}
	want := []string{"node-a READY 1000", "node-b READY 0", "node-c SUSPECT 500"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes differ (-want +got):\n%s", diff)
	}
	if v.GetAdsClients() != 2 || len(v.GetConditions()) != 1 || v.GetConditions()[0].GetNext() == "" {
		t.Errorf("clients %d, conditions %v", v.GetAdsClients(), v.GetConditions())
	}
}
