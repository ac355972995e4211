package page

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// noon is when the views of tests are made.
var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// engineOf is an engine with its part of a replica of smollm2 on nodes, of which it is one.
func engineOf(replica string, stage int, nodes ...string) *enginepb.Status {
	a := &enginepb.Assignment{Generation: 1, Model: "smollm2", Replica: replica, Stage: uint32(stage)}
	for _, n := range nodes {
		a.Stages = append(a.Stages, &enginepb.Stage{Node: n, EngineAddress: "127.0.0.1:1", Share: 1})
	}
	return &enginepb.Status{
		Node: nodes[stage], State: enginepb.State_READY, HttpAddress: "10.0.0." + nodes[stage][5:] + ":8000", Assignment: a,
		Load:  &enginepb.Load{Running: 1, Slots: 4, KvUsedTokens: 300, KvTotalTokens: 1000, CachedTokens: 250},
		Speed: &enginepb.Speed{Prefill: 812.34, Decode: 43.21},
	}
}

func nodeOf(e *enginepb.Status, weight uint32) *fleetpb.NodeView {
	return &fleetpb.NodeView{
		Node: e.GetNode(), State: fleetpb.EndpointState_READY, Weight: weight, Since: timestamppb.New(noon.Add(-time.Hour)), LastReport: timestamppb.New(noon.Add(-300 * time.Millisecond)),
		Report: &fleetpb.NodeReport{Node: e.GetNode(), Engine: e, Telemetry: &fleetpb.Telemetry{
			Source: fleetpb.Telemetry_HOST, CpuUtilization: 0.4321, Cpus: 8, MemoryUsedBytes: 5<<30 + 12345, MemoryTotalBytes: 16 << 30,
		}},
	}
}

// wellView is a mesh in which all is well: a replica on two nodes, one on the third.
func wellView() *fleetpb.FleetView {
	return &fleetpb.FleetView{
		At: timestamppb.New(noon), AdsClients: 2, DesiredVersion: 3,
		Nodes: []*fleetpb.NodeView{
			nodeOf(engineOf("smollm2-0", 0, "node-1", "node-2"), 500), nodeOf(engineOf("smollm2-0", 1, "node-1", "node-2"), 0), nodeOf(engineOf("smollm2-1", 0, "node-3"), 1000),
		},
		Objects: []*fleetpb.ObjectView{
			{Kind: "Model", Name: "smollm2", Generation: 1, Replicas: []string{"smollm2-0", "smollm2-1"}, ReadyReplicas: 2, Conditions: []*fleetpb.ObjectCondition{{Type: "Accepted", Status: true}}},
			{Kind: "Policy", Name: "default", Generation: 1},
		},
	}
}

// lose has the engine of a node not answer.
func lose(v *fleetpb.FleetView, at int) {
	n := v.Nodes[at]
	n.State, n.Reason, n.Weight, n.Report.Engine, n.Report.EngineError = fleetpb.EndpointState_NOT_READY, "its engine does not answer", 0, nil, "connection refused"
}

// scenarios are views of meshes in states that the page must show.
func scenarios() map[string]*fleetpb.FleetView {
	all := map[string]*fleetpb.FleetView{"well": wellView(), "empty": {At: timestamppb.New(noon)}}

	v := wellView()
	lose(v, 2)
	v.Conditions = append(v.Conditions, &fleetpb.Condition{Code: "replica-not-ready", Text: "replica smollm2-1 takes no requests: its engine does not answer", Next: "it is restarted automatically"})
	all["dying"] = v

	v = wellView()
	for i, r := range []int{0, 2} {
		l := v.Nodes[r].Report.Engine.Load
		l.Running, l.Waiting = 4, uint32(5+i)
	}
	all["overloaded"] = v

	v = wellView()
	v.Objects[0].Scaling = &fleetpb.Scaling{Mode: "auto", Desired: 3, Current: 2, Min: 1, Max: 4, Phase: "Growing", Reason: "4.2 requests a second need 3 replicas", Arrivals: 4.2317, Running: 8, Queued: 3, Cost: 2}
	v.Objects[0].Replicas = append(v.Objects[0].Replicas, "smollm2-2")
	v.Nodes = append(v.Nodes, &fleetpb.NodeView{Node: "node-4", State: fleetpb.EndpointState_NOT_READY, Reason: "has no part in any replica", LastReport: timestamppb.New(noon), Report: &fleetpb.NodeReport{Engine: &enginepb.Status{Node: "node-4", State: enginepb.State_IDLE}}})
	v.Unplaced = []*fleetpb.Unplaced{{Replica: "smollm2-2", Model: "smollm2", Reason: "waits for a node"}}
	all["scaling"] = v

	v = wellView()
	for i := range v.Nodes {
		lose(v, i)
	}
	v.Conditions = []*fleetpb.Condition{
		{Code: "replica-not-ready", Text: "replica smollm2-0 takes no requests"}, {Code: "model-down", Text: "model smollm2 has no replica that takes requests", Next: "start the nodes of its replicas"},
	}
	all["none"] = v

	v = wellView()
	v.Nodes[0].Report.Telemetry.Gpus = []*fleetpb.Gpu{
		{Uuid: "GPU-1", Name: "H200", Utilization: 0.876, MemoryUsedBytes: 100 << 30, MemoryTotalBytes: 141 << 30, TemperatureCelsius: 71.6, PowerWatts: 640.2, ClockRatio: 0.61, ClocksEventReasons: 0x44},
		{Uuid: "GPU-2", Name: "H200", Lost: true},
	}
	v.Nodes[1].Drain = &fleetpb.Drain{Why: "by hand", ByHand: true, Text: "1 request still runs"}
	v.Nodes[2].LastReport = timestamppb.New(noon.Add(-9 * time.Second))
	v.Nodes[2].Report.Timeout = durationpb.New(3 * time.Second)
	v.Endpoints = []*fleetpb.EndpointView{{Address: "10.1.0.1:8000", Models: []string{"smollm2"}, State: fleetpb.EndpointState_READY, Weight: 500, Source: "Endpoints/pool", Type: "vllm", Load: &enginepb.Load{Running: 2}}}
	v.Conditions = []*fleetpb.Condition{
		{Code: "node-slow", Text: "node-1 has 61 % of its speed: GPU 0 (GPU-1) is throttled (reasons 0x44)", Next: "check its cooling, power, memory and driver; it gets fewer requests meanwhile"},
		{Code: "node-silent", Text: "node-3 silent for 9 s: its nodeagent sends nothing", Next: "check that the nodeagent runs and reaches xds; its log says more"},
	}
	all["mixed"] = v
	return all
}

func TestBuild(t *testing.T) {
	well := Build(wellView(), nil)
	for name, v := range scenarios() {
		t.Run(name, func(t *testing.T) {
			before := well
			if name == "empty" {
				before = nil
			}
			b, err := json.MarshalIndent(Build(v, before), "", " ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(b, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(b)+"\n"); d != "" {
				t.Errorf("%s differs; review it, then run with -update (-want +got):\n%s", golden, d)
			}
		})
	}
}

// TestIdleFleetIsTheSameSnapshot holds that what flickers is no change.
func TestIdleFleetIsTheSameSnapshot(t *testing.T) {
	a, v := Build(wellView(), nil), wellView()
	v.At = timestamppb.New(noon.Add(500 * time.Millisecond))
	for _, n := range v.Nodes {
		n.LastReport = v.At
		n.Report.Telemetry.CpuUtilization += 0.001
		n.Report.Telemetry.MemoryUsedBytes += 1 << 20
	}
	if d := cmp.Diff(a, Build(v, a)); d != "" {
		t.Errorf("half a second later (-before +after):\n%s", d)
	}
}

// TestSnapshotsAreBounded of fleets of any size, with those in trouble in them.
func TestSnapshotsAreBounded(t *testing.T) {
	v := wellView()
	for range 2000 {
		v.Nodes = append(v.Nodes, nodeOf(engineOf("smollm2-1", 0, "node-3"), 1000))
	}
	lose(v, 2001)
	v.Nodes[2001].Node = "zz-broken"
	for range 1000 {
		v.Conditions = append(v.Conditions, &fleetpb.Condition{Code: "x", Text: strings.Repeat("y", 100)})
	}
	s := Build(v, nil)
	if len(s.Nodes) != mostShown || len(s.Problems) != mostShown || s.Hidden < 2400 || s.Nodes[mostShown-1].Name != "zz-broken" {
		t.Errorf("%d nodes, %d problems, %d hidden, the last node is %s", len(s.Nodes), len(s.Problems), s.Hidden, s.Nodes[len(s.Nodes)-1].Name)
	}
}

// FuzzBuild holds that no view breaks the page, and that its numbers are JSON's.
func FuzzBuild(f *testing.F) {
	f.Add(0.5, uint64(3), "node-1", int64(0), 4.2)
	f.Add(1e308, ^uint64(0), "", int64(-1), -4e-310)
	f.Fuzz(func(t *testing.T, share float64, n uint64, name string, seconds int64, rate float64) {
		v := wellView()
		v.Nodes[0].Report.Telemetry.CpuUtilization = 1 / (1 + max(0, min(share, 1e300)))
		v.Nodes[0].Report.Engine.Load.KvTotalTokens, v.Nodes[0].Report.Telemetry.MemoryUsedBytes = n, n
		v.Nodes[1].Node, v.Nodes[1].LastReport = name, &timestamppb.Timestamp{Seconds: seconds}
		v.Objects[0].Scaling = &fleetpb.Scaling{Arrivals: rate, Cost: share}
		v.At = &timestamppb.Timestamp{Seconds: seconds / 2}
		s := Build(v, Build(wellView(), nil))
		_ = Diff(Build(wellView(), nil), s)
		if seconds > -6e10 && seconds < 2e11 && len(encode(s)) == 0 {
			t.Error("nothing is encoded")
		}
	})
}
