package fleet

import (
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
)

const one = head + "kind: Model\nmetadata: {name: m}\nspec: {weights: /m.gguf}\n"

// clustered is a world in which Kubernetes says so of its nodes.
func clustered(t *testing.T, text string, nodes ...string) *world {
	w := newWorld(t)
	w.desire(text)
	w.join(nodes...)
	w.cluster(nil)
	w.run(3 * time.Second)
	return w
}

// cluster lets Kubernetes say that all nodes are well, but for those.
func (w *world) cluster(but map[string]ClusterNode, gone ...string) {
	all := make(map[string]ClusterNode)
	for name := range w.nodes {
		all[name] = ClusterNode{Engine: true}
	}
	for name, c := range but {
		all[name] = c
	}
	for _, name := range gone {
		delete(all, name)
	}
	w.fleet.Step(w.now, ClusterObserved{all})
}

func TestCordonedNodeIsLeftOnceItsReplicaTakesRequestsElsewhere(t *testing.T) {
	w := clustered(t, one, "node-a", "node-b")
	w.want("m-0 READY 1000")
	w.cluster(map[string]ClusterNode{"node-a": {Engine: true, Cordoned: "cordoned"}})
	w.now = w.now.Add(100 * time.Millisecond)
	w.beat()
	w.want("m-0 NOT_READY 0", "m-0@node-a READY 1000")
	if o := w.snap.Objects[0]; o.Ready != 1 || !o.Conditions[1].Status {
		t.Errorf("while it moves: %+v", o)
	}
	w.nodes["node-b"].status.State = enginepb.State_STARTING // for long
	w.run(10 * time.Second)
	w.want("m-0 NOT_READY 0", "m-0@node-a READY 1000")
	w.nodes["node-b"].status.State = enginepb.State_READY
	w.run(time.Second)
	w.want("m-0 READY 1000")
	if got := w.nodes["node-a"].status.GetAssignment(); got != nil {
		t.Errorf("node-a still runs %v", got)
	}
	w.wantCondition("node node-a is being drained: cordoned")
}

func TestLeavingNodeGetsNoNewRequests(t *testing.T) {
	w := clustered(t, two, "node-a", "node-b", "node-c")
	w.cluster(map[string]ClusterNode{"node-b": {Engine: true, Leaving: "its Pod ends"}})
	w.beat()
	w.want("m-0 NOT_READY 0", "m-1 READY 1000")
	w.cluster(map[string]ClusterNode{"node-b": {Engine: true, NotReady: "kubelet stopped posting"}})
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
	w.wantCondition("Kubernetes does not reach node node-b: kubelet stopped posting")
}

func TestWhoLeavesServesOnWhereNobodyElseDoes(t *testing.T) {
	ends := ClusterNode{Engine: true, Leaving: "its Pod ends"}
	draining := func(w *world, names ...string) {
		for _, name := range names {
			w.nodes[name].status = clone(w.nodes[name].status, enginepb.State_DRAINING, "the engine ends")
		}
	}
	tests := []struct {
		name   string
		happen func(w *world)
		want   []string
	}{
		{"all Pods end", func(w *world) {
			w.cluster(map[string]ClusterNode{"node-a": ends, "node-b": ends, "node-c": ends})
		}, []string{"m-0 SUSPECT 1", "m-1 SUSPECT 1"}},
		{"all engines drain", func(w *world) { draining(w, "node-a", "node-c") }, []string{"m-0 SUSPECT 1", "m-1 SUSPECT 1"}},
		{"Pods end whose engines drain", func(w *world) {
			draining(w, "node-a", "node-b", "node-c")
			w.cluster(map[string]ClusterNode{"node-a": ends, "node-b": ends, "node-c": ends})
		}, []string{"m-0 SUSPECT 1", "m-1 SUSPECT 1"}},
		{"one replica stays", func(w *world) { draining(w, "node-a") }, []string{"m-0 NOT_READY 0", "m-1 READY 1000"}},
		{"another is broken", func(w *world) {
			draining(w, "node-a")
			w.nodes["node-c"].status = clone(w.nodes["node-c"].status, enginepb.State_BROKEN, "backend died")
		}, []string{"m-0 SUSPECT 1", "m-1 NOT_READY 0"}},
		{"a broken one leaves", func(w *world) {
			w.nodes["node-b"].status = clone(w.nodes["node-b"].status, enginepb.State_BROKEN, "shard died")
			w.cluster(map[string]ClusterNode{"node-a": ends, "node-b": ends, "node-c": ends})
		}, []string{"m-0 NOT_READY 0", "m-1 SUSPECT 1"}},
		{"the last agent has ended", func(w *world) {
			w.cluster(map[string]ClusterNode{"node-a": ends, "node-b": ends, "node-c": ends})
			w.leave("node-c")
		}, []string{"m-0 SUSPECT 1", "m-1 NOT_READY 0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := clustered(t, two, "node-a", "node-b", "node-c")
			tt.happen(w)
			w.beat()
			w.want(tt.want...)
			for _, e := range w.snap.Endpoints {
				if (e.State == suspect) != (e.Membership == Leaving) {
					t.Errorf("%s: state %v, membership %v", e.Replica, e.State, e.Membership)
				}
			}
		})
	}
}

func TestDeletedNodeIsLostAtOnce(t *testing.T) {
	w := clustered(t, one, "node-a", "node-b")
	w.cluster(nil, "node-a")
	w.beat()
	w.want("m-0 NOT_READY 0", "m-0@node-a SUSPECT 1") // it still answers
	w.leave("node-a")
	w.run(2*time.Second, "node-a")
	w.want("m-0 READY 1000")
	if got := w.nodes["node-b"].status.GetAssignment().GetReplica(); got != "m-0" {
		t.Errorf("node-b runs %q", got)
	}
}

func TestNodeThatKubernetesNeverKnewIsNoneOfItsBusiness(t *testing.T) {
	w := clustered(t, one, "node-a")
	w.fleet.cluster = nil
	w.fleet.Step(w.now, ClusterObserved{map[string]ClusterNode{"another": {}}})
	w.run(time.Second)
	w.want("m-0 READY 1000")
}

func TestFollowerWaitsForTheNodesOfTheCluster(t *testing.T) {
	w := newWorld(t)
	w.fleet = Follower(10*time.Second, epoch)
	w.desire("kind: Policy\napiVersion: millrace.dev/v1alpha1\nmetadata: {name: default}\n" + one)
	if w.decide(); w.snap.Settled {
		t.Error("settled before Kubernetes has said who is to report")
	}
	w.fleet.Step(w.now, ClusterObserved{map[string]ClusterNode{"node-a": {Engine: true}}})
	w.run(2 * time.Second)
	if w.snap.Settled {
		t.Error("settled before the node has reported")
	}
	w.run(10 * time.Second)
	if !w.snap.Settled {
		t.Error("not settled after its time")
	}
}
