package mesh

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/xds/fleetpb"
)

func nodeView(node, replica string, stage uint32, ready bool, reason string) *fleetpb.NodeView {
	st := &enginepb.Status{Node: node, State: enginepb.State_STARTING, Reason: reason, Assignment: &enginepb.Assignment{Replica: replica, Stage: stage}}
	v := &fleetpb.NodeView{Node: node, State: fleetpb.EndpointState_NOT_READY, Report: &fleetpb.NodeReport{Node: node, Engine: st}}
	if ready {
		st.State, v.State = enginepb.State_READY, fleetpb.EndpointState_READY
	}
	return v
}

var wanted = []replica{{model: "m", name: "m-0", stages: 2}, {model: "m", name: "m-1", stages: 1}}

func TestMissingSaysWhatIsWaitedFor(t *testing.T) {
	tests := []struct {
		name   string
		view   *fleetpb.FleetView
		want   []string
		serves bool
	}{
		{name: "xds is silent", want: []string{"xds to answer"}},
		{
			name: "nobody reported",
			view: &fleetpb.FleetView{},
			want: []string{"m-0 (0 of 2 nodes reported)", "m-1 (0 of 1 nodes reported)"},
		},
		{
			name: "one replica is up, the other loads",
			view: &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{
				nodeView("a", "m-0", 0, false, "waits for its shard"), nodeView("b", "m-0", 1, false, ""), nodeView("c", "m-1", 0, true, ""),
			}},
			want:   []string{"m-0 (a starting: waits for its shard, b starting)"},
			serves: true,
		},
		{
			name: "all ready",
			view: &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{
				nodeView("a", "m-0", 0, true, ""), nodeView("b", "m-0", 1, true, ""), nodeView("c", "m-1", 0, true, ""),
			}},
			serves: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := missing(tt.view, wanted); strings.Join(got, "|") != strings.Join(tt.want, "|") {
				t.Errorf("missing() = %q, want %q", got, tt.want)
			}
			if got := serves(tt.view, wanted); got != tt.serves {
				t.Errorf("serves() = %v, want %v", got, tt.serves)
			}
		})
	}
}

// TestEndpointsOfOthersServe has models be served by engines that somebody else runs, beside
// replicas and alone.
func TestEndpointsOfOthersServe(t *testing.T) {
	theirs := func(state fleetpb.EndpointState_State, models ...string) *fleetpb.FleetView {
		return &fleetpb.FleetView{Endpoints: []*fleetpb.EndpointView{{Address: "10.0.0.2:8000", Models: models, State: state}}}
	}
	for _, tt := range []struct {
		name  string
		view  *fleetpb.FleetView
		ours  []replica
		serve bool
	}{
		{"alone", theirs(fleetpb.EndpointState_READY, "theirs"), nil, true},
		{"alone, and down", theirs(fleetpb.EndpointState_NOT_READY, "theirs"), nil, false},
		{"for a model of ours", theirs(fleetpb.EndpointState_READY, "k", "m"), wanted, true},
		{"for another one", theirs(fleetpb.EndpointState_READY, "theirs"), wanted, false},
		{"down, beside a replica", func() *fleetpb.FleetView {
			v := theirs(fleetpb.EndpointState_NOT_READY, "theirs")
			v.Nodes = []*fleetpb.NodeView{nodeView("c", "m-1", 0, true, "")}
			return v
		}(), wanted, true},
		{"none", &fleetpb.FleetView{}, nil, false},
	} {
		if got := serves(tt.view, tt.ours); got != tt.serve {
			t.Errorf("%s: serves() = %v, want %v", tt.name, got, tt.serve)
		}
	}
}

// TestChildrenAreCountedAcrossEngines uses this process's id: it is alive.
func TestChildrenAreCountedAcrossEngines(t *testing.T) {
	self := os.Getpid()
	s := &state.State{Processes: []state.Process{{Name: "engine@node-a", PID: self}, {Name: "xds", PID: self}}}
	status := func(role string, restarts uint32) *enginepb.Status {
		return &enginepb.Status{Processes: []*enginepb.Process{{Role: role, Pid: uint32(self), Address: "127.0.0.1:1", Restarts: restarts, Since: timestamppb.Now()}}}
	}
	c := children{node: "node-a"}
	c.apply(s, status("backend", 2))
	if p := s.Find("backend@node-a"); p.Restarts != 2 || p.PID != self || p.Addrs["http"] != "127.0.0.1:1" || s.Processes[1].Name != p.Name {
		t.Errorf("row %+v of %v", p, s.Processes)
	}

	s.Find("engine@node-a").PID = 0
	dropChildren(s, "node-a")
	c.apply(s, status("backend", 2)) // said before it died
	if p := s.Find("backend@node-a"); p.PID != 0 {
		t.Errorf("row %+v, want it dead with its engine", p)
	}

	engine := s.Find("engine@node-a")
	engine.PID, engine.Restarts = self, 1
	c.apply(s, &enginepb.Status{})
	c.apply(s, status("backend", 1))
	if p := s.Find("backend@node-a"); p.PID != self || p.Restarts != 4 {
		t.Errorf("row %+v, want 2 restarts before, the engine's, and 1 since", p)
	}

	c.apply(s, status("shard", 0))
	if s.Find("backend@node-a") != nil || s.Find("shard@node-a").Addrs["rpc"] == "" {
		t.Errorf("rows %+v, want the shard instead of the backend", s.Processes)
	}
}
