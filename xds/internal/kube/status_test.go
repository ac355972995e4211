package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/kubeapi"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
)

// seen is a snapshot for the objects, of these endpoints.
func seen(j judgement, endpoints ...fleet.Endpoint) *fleet.Snapshot {
	s := &fleet.Snapshot{Desired: j.published.State, Settled: true, Endpoints: endpoints, Placed: map[string][]string{}, Waits: map[string]string{}}
	for _, e := range endpoints {
		s.Placed[e.Replica] = e.Nodes
	}
	return s
}

func ready(replica, node string, weight uint32) fleet.Endpoint {
	return fleet.Endpoint{Model: "m", Replica: replica, Nodes: []string{node}, State: fleetpb.EndpointState_READY, Membership: fleet.Healthy, Weight: weight}
}

func down(replica, node, reason string) fleet.Endpoint {
	return fleet.Endpoint{Model: "m", Replica: replica, Nodes: []string{node}, State: fleetpb.EndpointState_NOT_READY, Reason: node + ": " + reason}
}

// inShort is a status in short: reason, then each condition as Type=True(Reason), then rows.
func inShort(s kubeapi.ModelStatus) []string {
	all := []string{s.Ready + " " + s.Reason + " on " + s.Nodes}
	for _, c := range s.Conditions {
		all = append(all, fmt.Sprintf("%s=%s(%s)", c.Type, c.Status, c.Reason))
	}
	for _, r := range s.Rows {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %d %s", r.Name, r.State, r.Weight, r.Reason)))
	}
	return all
}

func TestModelStatus(t *testing.T) {
	const two = `{"weights":"/m.gguf","replicas":2}`
	tests := []struct {
		name string
		edit func(*fleet.Snapshot)
		spec string
		eps  []fleet.Endpoint
		want []string
	}{
		{
			name: "all ready", eps: []fleet.Endpoint{ready("m-0", "a", 3), ready("m-1", "b", 1)},
			want: []string{"2/2 AllReady on a,b", "Accepted=True(Valid)", "Planned=True(Placed)", "Ready=True(AllReady)", "Progressing=False(Stable)", "Degraded=False(AsDesired)", "m-0 Ready 75", "m-1 Ready 25"},
		},
		{
			name: "one starts", eps: []fleet.Endpoint{ready("m-0", "a", 1), down("m-1", "b", "starting: backend is starting")},
			edit: func(s *fleet.Snapshot) {
				s.Nodes = []fleet.Node{{Name: "b", Report: &fleetpb.NodeReport{Engine: &enginepb.Status{State: enginepb.State_STARTING}}}}
			},
			want: []string{"1/2 Starting on a,b", "Accepted=True(Valid)", "Planned=True(Placed)", "Ready=True(SomeReady)", "Progressing=True(Starting)", "Degraded=False(AsDesired)", "m-0 Ready 100", "m-1 Starting 0 b: starting: backend is starting"},
		},
		{
			name: "one has no place", eps: []fleet.Endpoint{ready("m-0", "a", 1)},
			edit: func(s *fleet.Snapshot) {
				s.Waits["m-1"] = "it needs 1 free node, and there is none"
			},
			want: []string{"1/2 Unplaced on a", "Accepted=True(Valid)", "Planned=False(Unplaced)", "Ready=True(SomeReady)", "Progressing=False(Stable)", "Degraded=True(Unplaced)", "m-0 Ready 100", "m-1 Unplaced 0 it needs 1 free node, and there is none"},
		},
		{
			name: "one is silent", eps: []fleet.Endpoint{ready("m-0", "a", 1), down("m-1", "b", "its nodeagent is silent for more than 15s")},
			want: []string{"1/2 Failed on a,b", "Accepted=True(Valid)", "Planned=True(Placed)", "Ready=True(SomeReady)", "Progressing=False(Stable)", "Degraded=True(Failed)", "m-0 Ready 100", "m-1 Ejected 0 b: its nodeagent is silent for more than 15s"},
		},
		{
			name: "one drains", eps: []fleet.Endpoint{ready("m-0", "a", 1), down("m-1", "b", "leaves: its Pod ends")},
			want: []string{"1/2 Draining on a,b", "Accepted=True(Valid)", "Planned=True(Placed)", "Ready=True(SomeReady)", "Progressing=True(Draining)", "Degraded=False(AsDesired)", "m-0 Ready 100", "m-1 Draining 0 b: leaves: its Pod ends"},
		},
		{
			name: "one moves", eps: []fleet.Endpoint{ready("m-0", "a", 1), down("m-1", "c", "its engine has nothing assigned yet"), ready("m-1@b", "b", 1)},
			edit: func(s *fleet.Snapshot) {
				s.Waits["m-1"] = "moves away from b (cordoned)"
				s.Nodes = []fleet.Node{{Name: "c", Report: &fleetpb.NodeReport{Engine: &enginepb.Status{State: enginepb.State_IDLE}}}}
			},
			want: []string{"2/3 RollingOut on a,b,c", "Accepted=True(Valid)", "Planned=True(Placed)", "Ready=True(SomeReady)", "Progressing=True(RollingOut)", "Degraded=False(AsDesired)", "m-0 Ready 50", "m-1 Starting 0 c: its engine has nothing assigned yet", "m-1@b Ready 50"},
		},
		{
			name: "nothing is desired", spec: `{"weights":"/m.gguf","replicas":0}`,
			want: []string{"0/0 NoneReady on ", "Accepted=True(Valid)", "Planned=True(Placed)", "Ready=False(NoneReady)", "Progressing=False(Stable)", "Degraded=False(AsDesired)"},
		},
		{
			name: "refused, and never was good", spec: `{"replicas":-1}`,
			want: []string{"0/0 Invalid on ", "Accepted=False(Invalid)", "Planned=True(Placed)", "Ready=False(NoneReady)", "Progressing=False(Stable)", "Degraded=False(AsDesired)"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.spec == "" {
				tt.spec = two
			}
			j := testRules(nil).judge([]object{model("m", 1, 4, tt.spec)}, judgement{})
			snap := seen(j, tt.eps...)
			if tt.edit != nil {
				tt.edit(snap)
			}
			s := modelStatus(j.verdicts[0], snap, "http://gateway")
			if diff := cmp.Diff(tt.want, inShort(s)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if s.ObservedGeneration != 4 || s.Selector != "serves.millrace.dev/m=true" || s.Address != "http://gateway" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestRefusedEditSaysWhatStaysInForce(t *testing.T) {
	j := testRules(nil).judge([]object{model("m", 1, 3, `{"weights":"/m.gguf"}`)}, judgement{})
	j = testRules(nil).judge([]object{model("m", 1, 4, `{"weights":"/m.gguf","replicas":-1}`)}, j)
	s := modelStatus(j.verdicts[0], seen(j, ready("m-0", "a", 1)), "")
	c := s.Conditions[0]
	if want := "spec.replicas: -1; must be ≥ 0; generation 3 stays in force"; c.Message != want || c.ObservedGeneration != 4 || s.Message != want {
		t.Errorf("%+v, want %q", c, want)
	}
	if s.InForce == nil || s.InForce.Generation != 3 || string(s.InForce.Spec.Raw) != `{"weights":"/m.gguf"}` {
		t.Errorf("in force: %+v", s.InForce)
	}
	if s.Conditions[2].ObservedGeneration != 3 || s.Conditions[2].Status != metav1.ConditionTrue {
		t.Errorf("ready: %+v, want that of generation 3", s.Conditions[2])
	}
}

func TestOnlyChangesAreWritten(t *testing.T) {
	j := testRules(nil).judge([]object{model("m", 1, 1, `{"weights":"/m.gguf","replicas":2}`)}, judgement{})
	status := func(had kubeapi.ModelStatus, at time.Time, snap *fleet.Snapshot) kubeapi.ModelStatus {
		s := modelStatus(j.verdicts[0], snap, "")
		keepTimes(&s.Summary, &had.Summary, at)
		keepRowTimes(s.Rows, had.Rows, at)
		keepWeights(s.Rows, had.Rows)
		return s
	}
	first := status(kubeapi.ModelStatus{}, born, seen(j, ready("m-0", "a", 50), ready("m-1", "b", 50)))
	var back kubeapi.ModelStatus // as the API server gives it back
	statusOf(unstructuredOf(first), &back)
	later := born.Add(time.Hour)
	if s := status(back, later, seen(j, ready("m-0", "a", 54), ready("m-1", "b", 46))); !equal(s, back) {
		t.Errorf("a weight that drifts is written: %+v", s.Rows)
	}
	if s := status(back, later, seen(j, ready("m-0", "a", 60), ready("m-1", "b", 40))); equal(s, back) || s.Rows[0].Since != back.Rows[0].Since {
		t.Errorf("a share that is lost is not written: %+v", s.Rows)
	}
	s := status(back, later, seen(j, ready("m-0", "a", 60), down("m-1", "b", "broken: x")))
	if equal(s, back) || !s.Rows[1].Since.Time.Equal(later) || !s.Rows[0].Since.Time.Equal(born) {
		t.Errorf("rows %+v, want the second one to have changed", s.Rows)
	}
	if got := s.Conditions[0].LastTransitionTime; !got.Time.Equal(born) {
		t.Errorf("Accepted has changed at %s", got)
	}
}

// unstructuredOf returns an object with a status as the cache has it.
func unstructuredOf(status any) unstructured.Unstructured {
	return unstructured.Unstructured{Object: map[string]any{"status": asJSON(status)}}
}
