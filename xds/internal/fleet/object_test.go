package fleet

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
)

// statements writes conditions as "kind/name: +Type Reason field@generation", with - for
// those that are not so.
func statements(all []Object) []string {
	var lines []string
	for _, o := range all {
		for _, c := range o.Conditions {
			sign := map[bool]string{true: "+", false: "-"}[c.Status]
			lines = append(lines, strings.TrimSpace(o.Kind+"/"+o.Name+": "+sign+c.Type+" "+c.Reason+" "+c.Field))
		}
	}
	return lines
}

func TestObjects(t *testing.T) {
	f, err := config.Parse("mesh.yaml", []byte(two))
	if err != nil {
		t.Fatal(err)
	}
	state := desired.Next(nil, f, nil)
	both := []Endpoint{
		{Replica: "m-0", State: ready, Membership: Healthy},
		{Replica: "m-1", State: notReady, Reason: "node-c: starting"},
	}
	key := Key{config.KindModel, "m"}
	tests := []struct {
		name      string
		published desired.Published
		refusals  map[Key]string
		endpoints []Endpoint
		waits     map[string]string
		want      []string
	}{
		{name: "nothing is desired yet", published: desired.Published{}},
		{
			name: "one replica starts", published: desired.Published{State: state}, endpoints: both,
			want: []string{
				"Model/m: +Accepted InForce", "Model/m: -Ready ReplicasNotReady", "Model/m: +Progressing Starting",
				"Policy/default: +Accepted InForce", "Policy/default: +Ready InForce",
			},
		},
		{
			name: "faults of known and of new objects", published: desired.Published{State: state, Faults: []config.Fault{
				{Kind: "Policy", Name: "default", Path: "spec.x", Text: "no"}, {Kind: "Model", Name: "n", Path: "spec.y", Text: "no"}, {Text: "not YAML"},
			}},
			want: []string{
				"Model/m: +Accepted InForce", "Model/m: -Ready ReplicasNotReady", "Model/m: +Progressing Starting",
				"Policy/default: -Accepted Refused spec.x", "Policy/default: +Ready InForce", "Model/n: -Accepted Refused spec.y",
			},
		},
		{
			name: "a client refuses what is made of it", published: desired.Published{State: state}, refusals: map[Key]string{key: "gateway: no"},
			endpoints: []Endpoint{{Replica: "m-0", State: ready, Membership: Healthy}, {Replica: "m-1", State: ready, Membership: Healthy}},
			want: []string{
				"Model/m: -Accepted PushRefused", "Model/m: +Ready AllReplicasReady", "Model/m: -Progressing AsDesired",
				"Policy/default: +Accepted InForce", "Policy/default: +Ready InForce",
			},
		},
		{
			name: "an engine refuses", published: desired.Published{State: state}, endpoints: both,
			waits: map[string]string{"m-0": refusedBy + "backend.kind: no", "m-1": "waits"},
			want: []string{
				"Model/m: +Accepted InForce", "Model/m: -Ready ReplicasNotReady", "Model/m: -Progressing Refused backend.kind",
				"Policy/default: +Accepted InForce", "Policy/default: +Ready InForce",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := objects(tt.published, tt.refusals, &Snapshot{Endpoints: tt.endpoints, Waits: tt.waits}, nil, epoch)
			if diff := cmp.Diff(tt.want, statements(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again := objects(tt.published, tt.refusals, &Snapshot{Endpoints: tt.endpoints, Waits: tt.waits}, got, epoch.Add(time.Hour))
			for _, o := range again {
				for _, c := range o.Conditions {
					if !c.Since.Equal(epoch) {
						t.Errorf("%s %s since %v, though it is as before", o.Name, c.Type, c.Since)
					}
				}
			}
		})
	}
}

func TestFaultsAreShownThatBelongToNoObject(t *testing.T) {
	w := up(t)
	w.fleet.Step(w.now, Desired{desired.Published{State: w.state, Faults: config.Faults(errors.New("mesh.yaml: gone"))}})
	view := w.beat().View(0, nil)
	if c := view.GetConditions(); len(c) != 1 || c[0].GetText() != "mesh.yaml: gone" {
		t.Errorf("conditions %v", c)
	}
	if view.GetDesiredVersion() != 1 || len(view.GetObjects()) != 2 {
		t.Errorf("view %v", view)
	}
	all := w.snap.ObjectConditions()
	if len(all) != 1 || all[0].Severity != obs.Degraded {
		t.Errorf("/readyz shows %v, want the fault, as one that keeps xds from nothing", all)
	}
}

func TestNothingIsDecidedBeforeAnythingIsDesired(t *testing.T) {
	w := &world{t: t, fleet: New(time.Second, epoch), now: epoch, nodes: map[string]*sim{}}
	w.join("node-a", "node-b")
	w.run(5 * time.Second)
	if w.snap.Settled || len(w.snap.Directives) > 0 || len(w.snap.Nodes) != 2 {
		t.Errorf("snapshot %+v", w.snap)
	}
}
