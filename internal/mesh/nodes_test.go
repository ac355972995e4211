package mesh

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/internal/drained"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/status"
	"millrace.dev/millrace/xds/fleetpb"
)

// ended is the folder of a mesh that has ended.
func ended(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s := state.State{Dir: dir, Processes: []state.Process{{Name: "xds"}, {Name: "engine@node-a", Node: "node-a"}, {Name: "engine@node-b", Node: "node-b"}}}
	if _, err := state.Create(s); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNodesOfAMeshThatHasEnded(t *testing.T) {
	dir := ended(t)
	var out bytes.Buffer
	o := NodeOptions{Node: "node-a", Dir: dir, Timeout: time.Second, Out: &out}
	if err := DrainNode(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no mesh runs here") {
		t.Errorf("drain: %v", err)
	}
	if _, err := drained.Set(drained.In(dir), "node-a", true, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"node-a is in service when the mesh runs again\n", "node-a is not drained\n"} {
		out.Reset()
		if err := UndrainNode(t.Context(), o); err != nil || out.String() != want {
			t.Errorf("undrain: %q, %v, want %q", out.String(), err, want)
		}
	}
	for node, want := range map[string]string{"node-aa": "did you mean node-a?", "gpu": "must be one of node-a, node-b"} {
		o.Node = node
		if err := UndrainNode(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) || program.ExitCode(err) != program.ExitUsage {
			t.Errorf("undrain %s: %v", node, err)
		}
	}
	o.Dir = t.TempDir()
	if err := DrainNode(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no mesh was started here") {
		t.Errorf("drain where no mesh was: %v", err)
	}
}

func TestDrainIsRefusedOfTheLast(t *testing.T) {
	report := func(source string, n status.Node) status.Report {
		return status.Report{Source: source, Nodes: []status.Node{n}}
	}
	tests := []struct {
		name   string
		report status.Report
		want   string
	}{
		{"others serve", report("xds", status.Node{Node: "a"}), ""},
		{"nobody else serves", report("xds", status.Node{Node: "a", Sole: []string{"m", "k"}}), "a is the only node that serves m, k"},
		{"another node is the only one", report("xds", status.Node{Node: "b", Sole: []string{"m"}}), ""},
		{"it is drained already", report("xds", status.Node{Node: "a", Sole: []string{"m"}, Drain: &status.Drain{}}), ""},
		{"nobody knows", report("engines", status.Node{Node: "a"}), "xds does not answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := NodeOptions{Node: "a"}.admit(tt.report)
			if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || !strings.Contains(got, tt.want) && err != nil {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestDrainWaitsForWhatEndsByItself(t *testing.T) {
	tests := []struct {
		name  string
		drain *status.Drain
		force bool
		want  string
		done  bool
	}{
		{"not read yet", nil, false, "xds has not read it yet", false},
		{"requests run", &status.Drain{Requests: 2, Text: "2 requests run or wait"}, false, "draining: 2 requests run or wait", false},
		{"nothing is left", &status.Drain{Done: true, Text: "nothing runs there"}, false, "drained: nothing runs there", true},
		{"nobody else serves", &status.Drain{Serves: []string{"m"}, Text: "nobody else serves m"}, false, "draining: nobody else serves m", false},
		{"nobody else serves, by force", &status.Drain{Serves: []string{"m"}, Text: "nobody else serves m"}, true, "draining: nobody else serves m", true},
		{"it moves, by force", &status.Drain{Serves: []string{"m"}, Waits: []string{"w"}, Text: "w"}, true, "draining: w", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := status.Report{Source: "xds", Nodes: []status.Node{{Node: "a", Drain: tt.drain}}}
			if got, done := (NodeOptions{Node: "a", Force: tt.force}).drained(r); got != tt.want || done != tt.done {
				t.Errorf("%q, %t, want %q, %t", got, done, tt.want, tt.done)
			}
		})
	}
}

// TestDrainedReplicasAreNotWaitedFor at the start of a mesh.
func TestDrainedReplicasAreNotWaitedFor(t *testing.T) {
	drain := func(n *fleetpb.NodeView) *fleetpb.NodeView {
		n.Drain = &fleetpb.Drain{}
		return n
	}
	idle := &fleetpb.NodeView{Node: "c"}
	tests := []struct {
		name  string
		nodes []*fleetpb.NodeView
		want  string
	}{
		{"nothing is drained", []*fleetpb.NodeView{nodeView("a", "m-0", 0, true, ""), idle}, "m-0 m-1"},
		{"one stays on a drained node", []*fleetpb.NodeView{nodeView("a", "m-0", 0, true, ""), drain(nodeView("c", "m-1", 0, false, ""))}, "m-0"},
		{"one has no place", []*fleetpb.NodeView{nodeView("a", "m-0", 0, false, ""), drain(&fleetpb.NodeView{Node: "c"})}, "m-0"},
		{"one has moved", []*fleetpb.NodeView{drain(nodeView("a", "m-0", 0, false, "")), nodeView("b", "m-0", 0, true, ""), nodeView("c", "m-1", 0, true, "")}, "m-0 m-1"},
		{"none has a place", []*fleetpb.NodeView{drain(&fleetpb.NodeView{Node: "c"})}, "m-0 m-1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var names []string
			for _, r := range undrained(&fleetpb.FleetView{Nodes: tt.nodes}, wanted) {
				names = append(names, r.name)
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("waits for %q, want %q", got, tt.want)
			}
		})
	}
}
