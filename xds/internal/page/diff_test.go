package page

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/xds/fleetpb"
)

func TestDiff(t *testing.T) {
	tests := []struct {
		name   string
		change func(v *fleetpb.FleetView)
		want   []string // kind, level, beginning of the text
		back   []string // of the change back
	}{
		{name: "nothing", change: func(*fleetpb.FleetView) {}},
		{
			name: "an engine is killed", change: func(v *fleetpb.FleetView) { lose(v, 2) },
			want: []string{"ejected bad smollm2-1 takes no requests: its engine does not answer"},
			back: []string{"reinstated good smollm2-1 takes requests"},
		},
		{
			name: "all engines are killed",
			change: func(v *fleetpb.FleetView) {
				lose(v, 0)
				lose(v, 1)
				lose(v, 2)
			},
			want: []string{"ejected bad smollm2-0 takes no requests", "ejected bad smollm2-1 takes no requests", "outage bad nobody serves model smollm2"},
			back: []string{"reinstated good smollm2-0", "reinstated good smollm2-1", "outage good model smollm2 is served"},
		},
		{
			name: "a node is silent", change: func(v *fleetpb.FleetView) { v.Nodes[1].LastReport = timestamppb.New(noon.Add(-time.Minute)) },
			want: []string{"left bad node node-2 does not report any more"}, back: []string{"joined good node node-2 reports again"},
		},
		{
			name: "a node is forgotten", change: func(v *fleetpb.FleetView) { v.Nodes = v.Nodes[:2] },
			want: []string{"ejected bad smollm2-1 takes no requests: no node has reported it", "left bad node node-3 is not known any more"},
			back: []string{"reinstated good smollm2-1", "joined good node node-3 has joined"},
		},
		{
			name: "a replica moves", change: func(v *fleetpb.FleetView) {
				v.Nodes[0] = nodeOf(engineOf("smollm2-0", 0, "node-1"), 500)
				v.Nodes[1] = &fleetpb.NodeView{Node: "node-2", State: fleetpb.EndpointState_NOT_READY, LastReport: v.At, Report: v.Nodes[1].Report}
				v.Nodes[1].Report.Engine.Assignment = nil
			},
			want: []string{"replanned info smollm2-0 goes from node-1 + node-2 to node-1"}, back: []string{"replanned info smollm2-0 goes from node-1 to node-1 + node-2"},
		},
		{
			name: "demand grows", change: func(v *fleetpb.FleetView) {
				v.Objects[0].Scaling = &fleetpb.Scaling{Desired: 3, Reason: "4 requests a second"}
			},
			want: []string{"scaled info model smollm2 is to have 3 replicas instead of 2: 4 requests a second"},
			back: []string{"scaled info model smollm2 is to have 2 replicas instead of 3"},
		},
		{
			name: "a policy is edited", change: func(v *fleetpb.FleetView) { v.Objects[1].Generation++ },
			want: []string{"config info Policy/default was changed"},
		},
		{
			name: "a bad edit", change: func(v *fleetpb.FleetView) {
				v.Objects[0].Conditions = []*fleetpb.ObjectCondition{{Type: "Accepted", Message: "spec.replicas: -1; must be ≥ 0"}}
			},
			want: []string{"config bad Model/smollm2 was refused: spec.replicas"}, back: []string{"config good Model/smollm2 is in order again"},
		},
		{
			name: "an object more", change: func(v *fleetpb.FleetView) {
				v.Objects = append(v.Objects, &fleetpb.ObjectView{Kind: "Endpoints", Name: "pool", Generation: 1})
				v.Endpoints = []*fleetpb.EndpointView{{Address: "10.1.0.1:8000", Models: []string{"smollm2"}, State: fleetpb.EndpointState_READY, Source: "Endpoints/pool"}}
			},
			want: []string{"config info Endpoints/pool is new", "joined info 10.1.0.1:8000 is new, named by Endpoints/pool"},
			back: []string{"config info Endpoints/pool was removed", "left info 10.1.0.1:8000 takes no requests any more"},
		},
		{
			name: "a node is drained", change: func(v *fleetpb.FleetView) { v.Nodes[1].Drain = &fleetpb.Drain{Text: "2 requests run"} },
			want: []string{"drain info node node-2 is drained: 2 requests run"}, back: []string{"drain info node node-2 is in service again"},
		},
		{
			name: "a GPU is hot", change: func(v *fleetpb.FleetView) {
				v.Nodes[0].Report.Telemetry.Gpus = []*fleetpb.Gpu{{Name: "H200", ClocksEventReasons: 0x40, ClockRatio: 0.5}}
			},
			want: []string{"slowed bad GPU 0 (H200) of node-1 is slowed down: hardware thermal slowdown"}, back: []string{"slowed good GPU 0 (H200) of node-1 is at full speed again"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := wellView(), wellView()
			for _, v := range []*fleetpb.FleetView{a, b} {
				if tt.name == "demand grows" {
					v.Objects[0].Scaling = &fleetpb.Scaling{Desired: 2}
				}
				if tt.name == "a GPU is hot" {
					v.Nodes[0].Report.Telemetry.Gpus = []*fleetpb.Gpu{{Name: "H200", ClockRatio: 1}}
				}
			}
			tt.change(b)
			old := Build(a, nil)
			now := Build(b, old)
			compare(t, "there", Diff(old, now), tt.want)
			if tt.back != nil {
				compare(t, "back", Diff(now, Build(a, now)), tt.back)
			}
			if got := Diff(now, now); len(got) != 0 {
				t.Errorf("between a snapshot and itself: %+v", got)
			}
			if got := Diff(nil, now); len(got) != 0 {
				t.Errorf("of a fleet of which nothing was known: %+v", got)
			}
		})
	}
}

func compare(t *testing.T, what string, got []Event, want []string) {
	t.Helper()
	var texts []string
	for _, e := range got {
		texts = append(texts, string(e.Kind)+" "+string(e.Level)+" "+e.Text)
	}
	if !slices.EqualFunc(texts, want, strings.HasPrefix) {
		t.Errorf("%s: %q, want %q", what, texts, want)
	}
}
