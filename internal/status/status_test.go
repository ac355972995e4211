package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/xds/fleetpb"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

var now = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }

func engineStatus(node, replica string, stage, stages int, st enginepb.State) *enginepb.Status {
	a := &enginepb.Assignment{Model: "smollm2", Replica: replica, Stage: uint32(stage)}
	for range stages {
		a.Stages = append(a.Stages, &enginepb.Stage{Node: node})
	}
	if stages == 2 {
		a.Stages[0].Node, a.Stages[1].Node = "node-a", "node-b"
	}
	return &enginepb.Status{
		Node: node, State: st, Assignment: a, Since: ago(time.Minute),
		Load:      &enginepb.Load{Running: 2, Waiting: 1, CachedTokens: 12345},
		Speed:     &enginepb.Speed{Decode: 45.25, Prefill: 300},
		Processes: []*enginepb.Process{{Role: "backend", RssBytes: 212 << 20}},
	}
}

// nightView is a fleet in which a shard is gone, a GPU is lost, and a node silent.
func nightView() *fleetpb.FleetView {
	cpu := &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 2, CpuUtilization: 0.35, MemoryTotalBytes: 24 << 30}
	gpu := &fleetpb.Telemetry{Source: fleetpb.Telemetry_NVML, Gpus: []*fleetpb.Gpu{
		{Name: "H200", Utilization: 0.8, MemoryUsedBytes: 70 << 30, MemoryTotalBytes: 140 << 30, TemperatureCelsius: 65},
		{Name: "H200", Lost: true, MemoryTotalBytes: 140 << 30},
	}}
	return &fleetpb.FleetView{
		At: ago(300 * time.Millisecond),
		Nodes: []*fleetpb.NodeView{
			{
				Node: "node-b", State: fleetpb.EndpointState_NOT_READY, Reason: "shard: signal: killed", Since: ago(4 * time.Second), LastReport: ago(0),
				Report: &fleetpb.NodeReport{Telemetry: cpu, Engine: engineStatus("node-b", "smollm2-0", 1, 2, enginepb.State_BROKEN)},
			},
			{
				Node: "node-a", State: fleetpb.EndpointState_NOT_READY, Reason: "its engine is silent", Since: ago(4 * time.Second), LastReport: ago(0),
				Report: &fleetpb.NodeReport{Telemetry: cpu, EngineError: "silent"},
			},
			{
				Node: "node-c", State: fleetpb.EndpointState_READY, Weight: 1000, Since: ago(3 * time.Hour), LastReport: ago(0),
				Report: &fleetpb.NodeReport{Telemetry: gpu, Engine: engineStatus("node-c", "smollm2-1", 0, 1, enginepb.State_READY)},
			},
			{
				Node: "node-d", State: fleetpb.EndpointState_SUSPECT, Reason: "silent for 6s", Since: ago(6 * time.Second), LastReport: ago(6 * time.Second),
				Report: &fleetpb.NodeReport{EngineError: "engine silent"},
			},
		},
		Endpoints: []*fleetpb.EndpointView{
			{
				Address: "10.0.0.2:8000", Models: []string{"smollm2", "a", "b"}, State: fleetpb.EndpointState_READY, Since: ago(time.Hour), Weight: 900,
				Source: "Endpoints/pool", Type: "vllm", Load: &enginepb.Load{Running: 2, Waiting: 1}, Speed: &enginepb.Speed{Decode: 45},
				EventsError: "not connected to 10.0.0.2:5557 yet",
			},
			{
				Address: "10.0.0.3:8000", Models: []string{"smollm2"}, State: fleetpb.EndpointState_NOT_READY, Reason: "nobody answers: connection refused",
				Since: ago(8 * time.Second), Source: "Endpoints/pool", Type: "openai",
			},
		},
		Conditions: []*fleetpb.Condition{{Code: "no-room", Text: "smollm2-2 has no node", Next: "start another node"}},
		Objects: []*fleetpb.ObjectView{
			{Kind: "Model", Name: "smollm2", Generation: 3, Replicas: []string{"smollm2-0", "smollm2-1"}, ReadyReplicas: 1, Conditions: []*fleetpb.ObjectCondition{
				{Type: "Accepted", Status: true, Reason: "InForce", ObservedGeneration: 3, Since: ago(time.Hour)},
				{Type: "Ready", Reason: "ReplicasNotReady", Message: "1 of 2 replicas take requests; not smollm2-0", ObservedGeneration: 3, Since: ago(4 * time.Second)},
				{Type: "Progressing", Reason: "AsDesired", ObservedGeneration: 3, Since: ago(time.Hour)},
			}},
			{Kind: "Model", Name: "fine", Generation: 1, Replicas: []string{"fine-0"}, ReadyReplicas: 1, Conditions: []*fleetpb.ObjectCondition{
				{Type: "Accepted", Status: true, Reason: "InForce", ObservedGeneration: 1, Since: ago(time.Hour)},
				{Type: "Ready", Status: true, Reason: "AllReplicasReady", ObservedGeneration: 1, Since: ago(time.Hour)},
				{Type: "Progressing", Reason: "AsDesired", ObservedGeneration: 1, Since: ago(time.Hour)},
			}},
			{Kind: "Policy", Name: "default", Generation: 2, Conditions: []*fleetpb.ObjectCondition{
				{Type: "Accepted", Status: true, Reason: "InForce", ObservedGeneration: 2, Since: ago(time.Hour)},
			}},
		},
	}
}

func nightState() state.State {
	return state.State{
		Dir: "/m", Logs: "/m/logs", Listen: "127.0.0.1:10000", Ready: true,
		Faults: []state.Fault{
			{Kind: "Policy", Name: "default", Field: "spec.explan", Text: "mesh.yaml:9: spec.explan: unknown field; did you mean explain?"},
			{Kind: "Model", Name: "new", Field: "spec.weights", Text: "mesh.yaml:14: spec.weights: missing"},
			{Text: "mesh.yaml:20: not YAML"},
		},
		Processes: []state.Process{
			{Name: "xds", Role: "xds", PID: 10, Status: state.Running, Since: now.Add(-3 * time.Hour)},
			{Name: "engine@node-c", Role: "engine", Node: "node-c", PID: 12, Status: state.Stopped, Since: now.Add(-3 * time.Hour), Reason: "stopped by a signal"},
			{Name: "engine@node-e", Role: "engine", Node: "node-e", PID: 13, Status: state.Running, Since: now.Add(-time.Minute), Restarts: 2, LastExit: "exit status 1"},
			{Name: "extproc", Role: "extproc", PID: 14, Status: state.Running, Since: now.Add(-time.Hour), Restarts: 9},
			{Name: "shard@node-b", Role: "shard", Node: "node-b", Status: state.Down, Since: now.Add(-4 * time.Second), Restarts: 3, Reason: "signal: killed"},
		},
	}
}

func TestTable(t *testing.T) {
	tests := []struct {
		name    string
		running bool
		source  string
		view    *fleetpb.FleetView
		width   int
	}{
		{name: "narrow", running: true, source: fromXDS, view: nightView(), width: 60},
		{name: "night", running: true, source: fromXDS, view: nightView()},
		{name: "xds-away", running: true, source: fromEngines, view: &fleetpb.FleetView{At: ago(0), Nodes: []*fleetpb.NodeView{
			asNode("node-c", engineStatus("node-c", "smollm2-1", 0, 1, enginepb.State_READY)),
		}}},
		{name: "down", source: fromNobody},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := write(&b, build(nightState(), tt.running, tt.source, tt.view, now), now, tt.width); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(b.String()) {
				if n := utf8.RuneCountInString(strings.TrimSpace(line)); tt.width > 0 && n > tt.width {
					t.Errorf("%d columns, want %d at most: %s", n, tt.width, line)
				}
			}
			path := filepath.Join("testdata", tt.name+".txt")
			if *update {
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("table differs from %s (-want +got):\n%s", path, diff)
			}
		})
	}
}

// TestBuildOfNothing wants no panic of what is empty or half there.
func TestBuildOfNothing(t *testing.T) {
	r := build(state.State{}, true, fromXDS, &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{{}, {Report: &fleetpb.NodeReport{}}}}, now)
	if err := write(&bytes.Buffer{}, r, now, 0); err != nil {
		t.Fatal(err)
	}
	if b, err := json.Marshal(r); err != nil || !bytes.Contains(b, []byte(`"conditions":[]`)) {
		t.Errorf("JSON %s, %v; want empty lists, not null", b, err)
	}
}

// fakes speak the real protocols.
type fakeXDS struct {
	fleetpb.UnimplementedFleetServer
}

func (fakeXDS) Watch(_ *fleetpb.WatchRequest, s grpc.ServerStreamingServer[fleetpb.FleetView]) error {
	return s.Send(nightView())
}

type fakeEngine struct {
	enginepb.UnimplementedEngineServer
}

func (fakeEngine) Watch(_ *enginepb.WatchRequest, s grpc.ServerStreamingServer[enginepb.Status]) error {
	return s.Send(engineStatus("node-c", "smollm2-1", 0, 1, enginepb.State_READY))
}

func serve(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return ln.Addr().String()
}

// TestSources asks real servers: xds, then the engines alone, then nobody.
func TestSources(t *testing.T) {
	xds := serve(t, func(s *grpc.Server) { fleetpb.RegisterFleetServer(s, fakeXDS{}) })
	engine := serve(t, func(s *grpc.Server) { enginepb.RegisterEngineServer(s, fakeEngine{}) })
	dir := t.TempDir()
	lock, err := state.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	store, err := state.Create(state.State{Dir: dir, Processes: []state.Process{
		{Name: "xds", Role: "xds", PID: os.Getpid(), Addrs: map[string]string{"grpc": xds}},
		{Name: "engine@node-c", Role: "engine", Node: "node-c", PID: os.Getpid(), Addrs: map[string]string{"grpc": engine}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	report := func() Report {
		t.Helper()
		r, err := gather(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := report(); r.Source != fromXDS || len(r.Nodes) != 4 {
		t.Errorf("report %+v, want four nodes as xds sees them", r)
	}
	if err := store.Update(func(s *state.State) { s.Find("xds").PID = 0 }); err != nil {
		t.Fatal(err)
	}
	if r := report(); r.Source != fromEngines || len(r.Nodes) != 1 || r.Nodes[0].Weight != nil || r.Nodes[0].State != ready {
		t.Errorf("report %+v, want the engine's own word and no weight", r)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = Run(t.Context(), Options{Dir: dir, Out: &out, JSON: true})
	if !errors.Is(err, errDown) || !strings.Contains(out.String(), `"running": false`) {
		t.Errorf("Run() = %v, %s; want that nothing runs", err, out.String())
	}
}

func TestNoMesh(t *testing.T) {
	if err := Run(t.Context(), Options{Dir: t.TempDir(), Out: &bytes.Buffer{}}); !errors.Is(err, state.ErrNone) {
		t.Errorf("Run() = %v, want ErrNone", err)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	lock, err := state.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := state.Create(state.State{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	if err := Run(ctx, Options{Dir: dir, Watch: true, JSON: true, Out: out}); err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestJSONSaysWhatABackendCanDo(t *testing.T) {
	e := engineStatus("node-a", "tiny-0", 0, 1, enginepb.State_READY)
	e.Assignment.Backend = &enginepb.Backend{Kind: enginepb.Backend_VLLM, Args: []string{"--dtype", "float32"}}
	e.Capabilities = &enginepb.Capabilities{ContextTokens: 4096, TensorParallel: 2, PipelineParallel: 1, DataParallel: 1, KvEvents: true}
	n := row(&fleetpb.NodeView{Node: "node-a", Report: &fleetpb.NodeReport{Engine: e}}, true)
	want := &Capabilities{Kind: "vllm", ContextTokens: 4096, TensorParallel: 2, PipelineParallel: 1, DataParallel: 1, KVEvents: true}
	if diff := cmp.Diff(want, n.Capabilities); diff != "" || len(n.Args) != 2 {
		t.Errorf("args %q (-want +got):\n%s", n.Args, diff)
	}
	if n := row(&fleetpb.NodeView{Node: "node-a"}, true); n.Capabilities != nil {
		t.Errorf("a silent node can %+v", n.Capabilities)
	}
}

func TestStateThatIsOutOfDateIsSaid(t *testing.T) {
	r := build(state.State{Dir: "/d", Stale: true}, true, fromXDS, nightView(), now)
	for _, c := range r.Conditions {
		if c.Code == "state-stale" && strings.Contains(c.Text, "state.json is out of date") && strings.Contains(c.Next, "/d") {
			return
		}
	}
	t.Errorf("conditions %v, none of which says so", r.Conditions)
}

func TestDrainedNodeShowsWhatIsLeft(t *testing.T) {
	v := &fleetpb.NodeView{Node: "node-a", State: fleetpb.EndpointState_NOT_READY, Reason: "leaves: by hand", Drain: &fleetpb.Drain{
		Why: "by hand", ByHand: true, Requests: 2, Waits: []string{"m-0 starts on node-b first"}, Text: "2 requests run or wait",
	}}
	if n := row(v, true); n.Reason != "draining: 2 requests run or wait" || n.Drain.Requests != 2 || !n.Drain.ByHand || n.Drain.Waits[0] != v.Drain.Waits[0] {
		t.Errorf("draining: %+v, %+v", n, n.Drain)
	}
	v.Drain = &fleetpb.Drain{Done: true, Text: "nothing runs there"}
	if n := row(v, true); n.Reason != "drained: nothing runs there" || !n.Drain.Done {
		t.Errorf("drained: %+v, %+v", n, n.Drain)
	}
	v.Drain = nil
	if n := row(v, true); n.Drain != nil || n.Reason != v.Reason {
		t.Errorf("in service: %+v, %+v", n, n.Drain)
	}
}
