package mesh

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/status"
	"millrace.dev/millrace/xds/fleetpb"
)

// TestProbeWakesNobody has all replicas dormant: Envoy is asked for the list of models alone.
func TestProbeWakesNobody(t *testing.T) {
	code := http.StatusServiceUnavailable
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/models" {
			t.Errorf("asked %s", r.URL)
		}
		w.WriteHeader(code)
	}))
	defer gateway.Close()
	view := &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{nodeView("a", "m-0", 0, true, ""), nodeView("c", "m-1", 0, true, "")}}
	view.Nodes[0].Report.Engine.Assignment.Backend = &enginepb.Backend{OnDemand: true}
	view.Nodes[1].Report.Engine.Load = &enginepb.Load{Wake: durationpb.New(time.Millisecond)}
	m := &mesh{plan: Plan{Listen: gateway.Listener.Addr().String()}, first: wanted}
	if err := m.probe(t.Context(), view); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("while Envoy refuses: %v", err)
	}
	code = http.StatusOK
	if err := m.probe(t.Context(), view); err != nil {
		t.Error(err)
	}
}

// notPlaced is xds' word of a replica without a place.
func notPlaced(replica string) *fleetpb.Unplaced {
	return &fleetpb.Unplaced{Replica: replica, Reason: "it needs 1 free node, and there is none"}
}

// oneShutOut has two models: m on a node in service and n on none, as the only free node is drained.
func oneShutOut() (*fleetpb.FleetView, []replica) {
	view := &fleetpb.FleetView{
		Nodes:    []*fleetpb.NodeView{nodeView("a", "m-0", 0, true, ""), {Node: "b", Drain: &fleetpb.Drain{}, Report: &fleetpb.NodeReport{Engine: &enginepb.Status{}}}},
		Unplaced: []*fleetpb.Unplaced{notPlaced("n-0"), notPlaced("n-1")},
	}
	for _, n := range view.Nodes {
		n.Report.Engine.GrpcAddress = "127.0.0.1:1"
	}
	return view, []replica{{model: "m", name: "m-0", stages: 1}, {model: "n", name: "n-0", stages: 1}, {model: "n", name: "n-1", stages: 1}}
}

func TestModelsWithoutAPlaceAreNotWaitedFor(t *testing.T) {
	tests := []struct {
		name string
		edit func(*fleetpb.FleetView)
		want string
	}{
		{"drained", func(*fleetpb.FleetView) {}, "[m-0]"},
		{"nothing is drained", func(v *fleetpb.FleetView) { v.Nodes[1].Drain = nil }, "[m-0 n-0 n-1]"},
		{"a node has not reported", func(v *fleetpb.FleetView) { v.Nodes[0].Report.Engine.GrpcAddress = "" }, "[m-0 n-0 n-1]"},
		{"one replica has a place", func(v *fleetpb.FleetView) { v.Unplaced = v.Unplaced[:1] }, "[m-0 n-0 n-1]"},
		{"nobody has asked for one", func(v *fleetpb.FleetView) {
			v.Nodes[1].Drain, v.Unplaced[0].Asleep, v.Unplaced[1].Asleep = nil, true, true
		}, "[m-0]"},
		{"xds has not decided", func(v *fleetpb.FleetView) { v.Unplaced = nil }, "[m-0 n-0 n-1]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			view, rs := oneShutOut()
			tt.edit(view)
			left, out := shutOut(view, awake(view, rs), 2)
			var names []string
			for _, r := range left {
				names = append(names, r.name)
			}
			if got := fmt.Sprint(names); got != tt.want || (len(out) == 1) != (tt.name == "drained") {
				t.Errorf("waits for %s, %q, want %s", got, out, tt.want)
			}
		})
	}
}

// TestReadyNamesWhatIsNotServed has one model served, and the other without a place.
func TestReadyNamesWhatIsNotServed(t *testing.T) {
	gateway, _ := fakeAPI(t, "m-0", http.StatusOK, oneTokenAnswer)
	var said bytes.Buffer
	view, rs := oneShutOut()
	m := &mesh{plan: Plan{Listen: gateway, Engines: map[string]string{"a": "", "b": ""}}, first: rs, show: &console{err: &said}}
	m.view.Store(view)
	if err := m.awaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NOT SERVED: model n: ", "drained: b; millrace undrain b takes it back\n"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q, want %q", said.String(), want)
		}
	}
}

// TestBackWaitsForNobodyElse: another replica is broken.
func TestBackWaitsForNobodyElse(t *testing.T) {
	r := status.Report{
		Source: "xds", Nodes: []status.Node{{Node: "a"}, {Node: "b", Replica: "m-0", State: "NOT_READY", Reason: "broken"}},
		Objects: []status.Object{{Replicas: []string{"m-0"}}},
	}
	for node, want := range map[string]bool{"a": true, "b": false} {
		if text, done := (NodeOptions{Node: node}).back(r); done != want {
			t.Errorf("%s: %q, %t, want %t", node, text, done, want)
		}
	}
	r.Nodes[0].Drain = &status.Drain{}
	if text, done := (NodeOptions{Node: "a"}).back(r); done {
		t.Errorf("still drained: %q, %t", text, done)
	}
}
