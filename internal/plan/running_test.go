package plan

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/placing"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/xds/fleetpb"
)

const gib = 1 << 30

func small() subject {
	return subject{Request: planner.Request{
		Model: planner.Model{Name: "m", Layers: 30, LayerBytes: gib / 10, Spans: true},
		Goal:  planner.Goal{Replicas: 2, Context: 128},
	}}
}

// onNode is a node that runs a stage; replica empty: it is free.
func onNode(name, addr, replica string, decode float64, stages ...*enginepb.Stage) *fleetpb.NodeView {
	v := &fleetpb.NodeView{Node: name, State: fleetpb.EndpointState_NOT_READY, Report: &fleetpb.NodeReport{
		Telemetry: &fleetpb.Telemetry{MemoryTotalBytes: 30 * gib}, Engine: &enginepb.Status{GrpcAddress: addr},
	}}
	if replica == "" {
		return v
	}
	v.State = fleetpb.EndpointState_READY
	a := &enginepb.Assignment{Model: "m", Replica: replica, Stages: stages, Backend: &enginepb.Backend{}}
	for i, s := range stages {
		if s.GetNode() == name {
			a.Stage = uint32(i)
		}
	}
	v.Report.Engine.Assignment, v.Report.Engine.Speed = a, &enginepb.Speed{Decode: decode}
	return v
}

func TestObserved(t *testing.T) {
	two := []*enginepb.Stage{{Node: "a", Share: 1}, {Node: "b", Share: 2}}
	gpus := onNode("d", "10.0.0.2:1", "", 0)
	gpus.Report.Telemetry.Gpus = []*fleetpb.Gpu{{MemoryTotalBytes: 80 * gib}, {MemoryTotalBytes: 40 * gib}, {Lost: true}}
	broken := onNode("e", "10.0.0.3:1", "m-1", 0, &enginepb.Stage{Node: "e", Share: 1})
	broken.State = fleetpb.EndpointState_NOT_READY
	view := &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{
		onNode("a", "127.0.0.1:1", "m-0", 10, two...), onNode("b", "127.0.0.1:2", "m-0", 0, two...), onNode("c", "127.0.0.1:3", "", 0), gpus, broken,
	}}
	const machine = 9 * gib // of 30 GiB, three nodes' part, nine tenths of it
	want := []planner.Node{
		{Name: "a", Memory: machine, Decode: 10 * 30 * (gib / 10)}, {Name: "b", Memory: machine, Decode: 10 * 30 * (gib / 10)}, {Name: "c", Memory: machine},
		{Name: "d", Devices: 2, Memory: 36 * gib},
	}
	fleet, layouts := observed(view, []subject{small()})
	if diff := cmp.Diff(want, fleet.Nodes); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	runs := []planner.Replica{
		{Stages: []planner.Stage{{Node: "a", Layers: 10}, {Node: "b", Layers: 20}}, TensorParallel: 1},
		{Stages: []planner.Stage{{Node: "e", Layers: 30}}, TensorParallel: 1},
	}
	if diff := cmp.Diff(runs, layouts[0].Replicas); diff != "" {
		t.Errorf("replicas (-want +got):\n%s", diff)
	}
}

// TestObservedLeavesOutWhatIsTaken: drained nodes, those of others' models, and those of which nothing is known.
func TestObservedLeavesOutWhatIsTaken(t *testing.T) {
	empty, busy := onNode("a", "10.0.0.1:1", "", 0), onNode("b", "10.0.0.2:1", "m-0", 10, &enginepb.Stage{Node: "b", Share: 1})
	empty.Drain, busy.Drain = &fleetpb.Drain{}, &fleetpb.Drain{}
	other := onNode("c", "10.0.0.3:1", "k-0", 10, &enginepb.Stage{Node: "c", Share: 1})
	other.Report.Engine.Assignment.Model = "k"
	unheard := onNode("d", "", "", 0)
	unheard.Report.Engine = nil
	view := &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{empty, busy, other, unheard, onNode("e", "10.0.0.5:1", "", 0)}}
	fleet, layouts := observed(view, []subject{small()})
	if len(fleet.Nodes) != 1 || fleet.Nodes[0].Name != "e" {
		t.Errorf("nodes %+v, want e alone", fleet.Nodes)
	}
	if len(layouts[0].Replicas) != 1 {
		t.Errorf("replicas %+v, want the one that runs on b still", layouts[0].Replicas)
	}
}

// TestRanksOfOneEngine holds that vLLM's ranks are stages on one node.
func TestRanksOfOneEngine(t *testing.T) {
	got := placing.Replica(&enginepb.Assignment{Stages: []*enginepb.Stage{{Node: "a", Share: 1}}, Backend: &enginepb.Backend{PipelineParallel: 3, TensorParallel: 2}}, 32)
	want := planner.Replica{TensorParallel: 2, Stages: []planner.Stage{{Node: "a", Layers: 10}, {Node: "a", Layers: 11}, {Node: "a", Layers: 11}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("replica (-want +got):\n%s", diff)
	}
}

// TestStepsOfAMesh: a node is gone, and another is free.
func TestStepsOfAMesh(t *testing.T) {
	view := &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{
		onNode("a", "10.0.0.1:1", "m-0", 10, &enginepb.Stage{Node: "a", Share: 1}), onNode("b", "10.0.0.2:1", "", 0),
	}}
	s := small()
	fleet, previous := observed(view, []subject{s})
	p := planned{subjects: []subject{s}, running: true}
	p.layouts, p.steps = planner.Replan(previous, fleet, []planner.Request{s.Request})
	var text, asJSON bytes.Buffer
	if err := p.show(Options{Out: &text}); err != nil || !strings.Contains(text.String(), "from what runs to that, in this order:\n  1. start m whole on b\n") {
		t.Errorf("%v, printed\n%s", err, text.String())
	}
	var got planView
	if err := p.show(Options{Out: &asJSON, JSON: true}); err != nil || json.Unmarshal(asJSON.Bytes(), &got) != nil {
		t.Fatalf("%v, printed\n%s", err, asJSON.String())
	}
	if diff := cmp.Diff([]stepView{{Model: "m", Do: "start", Nodes: []string{"b"}, Text: "start m whole on b"}}, got.Steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if p.missing() != nil {
		t.Errorf("missing: %v", p.missing())
	}
}
