package fleet

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	headers "millrace.dev/millrace/internal/weights"
	"millrace.dev/millrace/xds/internal/auto"
)

const gib = 1 << 30

// answer gives a fleet the plan that a snapshot asks for. Weights at /twelve are of 12 GiB in 24
// layers; no others can be read.
func answer(f *Fleet, s *Snapshot, now time.Time) {
	if s.Plan == nil {
		return
	}
	f.Step(now, Planned{Input: s.Plan, Output: auto.Make(*s.Plan, func(path string) (headers.Shape, error) {
		if path != "/twelve" {
			return headers.Shape{}, os.ErrNotExist
		}
		return headers.Shape{Layers: 24, LayerBytes: gib / 2, Hidden: 64, Heads: 8, KVHeads: 8, KVBytesPerToken: 1}, nil
	})})
}

// twelve is a model without a layout.
func twelve(replicas int) string {
	return head + fmt.Sprintf("kind: Model\nmetadata: {name: m}\nspec: {weights: /twelve, replicas: %d}\n", replicas)
}

// sized is a world of nodes with so much memory for models, in GiB, from node-a on.
func sized(t *testing.T, replicas int, gibs ...uint64) *world {
	w := newWorld(t)
	w.desire(twelve(replicas))
	for i, g := range gibs {
		name := "node-" + string(rune('a'+i))
		w.join(name)
		w.nodes[name].memory = g * gib
	}
	w.run(4 * time.Second)
	return w
}

// lies writes where the replicas that take requests lie.
func (w *world) lies() string {
	var all []string
	for _, e := range w.snap.Endpoints {
		if e.Membership == Healthy {
			all = append(all, e.Replica+" on "+strings.Join(e.Nodes, ","))
		}
	}
	return strings.Join(all, "; ")
}

func (w *world) wantLies(want string) {
	w.t.Helper()
	if got := w.lies(); got != want {
		w.t.Errorf("replicas: %q, want %q; waits %v, conditions %v", got, want, w.snap.Waits, w.snap.Conditions)
	}
}

// layoutOf returns the text of the model's layout.
func (w *world) layoutOf() string {
	for _, o := range w.snap.Objects {
		if o.Kind == "Model" {
			return o.Layout
		}
	}
	return ""
}

func TestAModelThatFitsNoNodeIsSplit(t *testing.T) {
	w := sized(t, 1, 1, 7, 7)
	w.wantLies("m-0 on node-b,node-c")
	if got := w.layoutOf(); !strings.Contains(got, "2 stages on node-b and node-c: 13 + 11 layers") || !strings.Contains(got, "alone lacks 5.1 GiB") {
		t.Errorf("layout %q", got)
	}
}

func TestAModelThatCannotFitSaysWhatIsMissing(t *testing.T) {
	w := sized(t, 1, 4, 4)
	w.wantLies("")
	w.wantCondition("replica m-0 is not placed: it needs 4.1 GiB more")
	w.join("node-c")
	w.nodes["node-c"].memory = 6 * gib
	w.run(2 * time.Second)
	if got := w.nodesOf("m-0"); len(got) != 3 {
		t.Errorf("m-0 on %v", got)
	}
}

// nodesOf returns the nodes of a replica that takes requests.
func (w *world) nodesOf(replica string) []string {
	w.t.Helper()
	for _, e := range w.snap.Endpoints {
		if (e.Replica == replica || e.Moves == replica) && e.Membership >= Leaving {
			return e.Nodes
		}
	}
	w.t.Fatalf("%s takes no requests: %v", replica, w.snap.Waits)
	return nil
}

// TestANodeIsLost has the model laid out on what is left, and stay there when the node is back.
func TestANodeIsLost(t *testing.T) {
	for stage, within := range []time.Duration{18 * time.Second, 3 * time.Second} { // a head's engine may live, though its agent is dead
		w := sized(t, 1, 7, 7, 7)
		had := w.nodesOf("m-0")
		dead, died := had[stage], w.now
		w.leave(dead)
		if stage > 0 {
			w.nodes[had[0]].status.State = enginepb.State_BROKEN
		}
		w.run(within, dead)
		now := w.nodesOf("m-0")
		if len(now) != 2 || slices.Contains(now, dead) {
			t.Errorf("%s died %v ago: on %v", dead, w.now.Sub(died), now)
		}
		w.join(dead)
		w.nodes[dead].status = idle(dead)
		w.run(30 * time.Minute)
		if got := w.nodesOf("m-0"); !slices.Equal(got, now) {
			t.Errorf("it is back: on %v, want %v", got, now)
		}
	}
}

// TestAStreamThatEndsAfterSilenceBeginsNothingAnew: a head that hangs is replaced as soon as one
// whose connection ends at once.
func TestAStreamThatEndsAfterSilenceBeginsNothingAnew(t *testing.T) {
	w := sized(t, 1, 7, 7, 7)
	dead := w.nodesOf("m-0")[0]
	w.run(13*time.Second, dead)
	w.leave(dead)
	w.run(6*time.Second, dead)
	if now := w.nodesOf("m-0"); slices.Contains(now, dead) {
		t.Errorf("m-0 on %v, %s is dead", now, dead)
	}
}

// TestAnAgentThatIsSilentCostsNothing: its engine serves on.
func TestAnAgentThatIsSilentCostsNothing(t *testing.T) {
	w := sized(t, 1, 7, 7, 7)
	had := w.nodesOf("m-0")
	w.leave(had[1])
	w.run(10*time.Second, had[1])
	if got := w.snap.Placed["m-0"]; !slices.Equal(got, had) {
		t.Errorf("m-0 on %v, had %v", got, had)
	}
}

func TestARestartedControlPlaneMovesNothing(t *testing.T) {
	for late := range 3 {
		w := sized(t, 1, 7, 7, 7)
		had := w.nodesOf("m-0")
		w.restart()
		w.run(time.Second, "node-"+string(rune('a'+late)))
		w.run(10 * time.Second)
		if got := w.nodesOf("m-0"); !slices.Equal(got, had) {
			t.Errorf("m-0 on %v, had %v", got, had)
		}
	}
}

// TestASlowNodeIsLeft for one that is known to be faster, the new one first.
func TestASlowNodeIsLeft(t *testing.T) {
	w := sized(t, 2, 16, 16)
	slow, fast := w.nodesOf("m-0")[0], w.nodesOf("m-1")[0]
	for _, name := range []string{slow, fast} {
		w.nodes[name].status.Speed = &enginepb.Speed{Decode: 10, Prefill: 100}
	}
	w.run(10 * time.Second)
	w.desire(twelve(1))
	w.run(10 * time.Minute)
	began := w.now
	for w.nodesOf("m-0")[0] == slow && w.now.Sub(began) < 20*time.Minute {
		if n := w.nodes[slow].status; n.GetAssignment() != nil {
			n.Speed = &enginepb.Speed{Decode: 4, Prefill: 40}
		}
		w.run(500 * time.Millisecond)
	}
	if took := w.now.Sub(began); took < time.Minute || took > 10*time.Minute {
		t.Errorf("moved after %v", took)
	}
	w.run(time.Hour)
	if got := w.nodesOf("m-0"); got[0] != fast {
		t.Errorf("m-0 on %v, want %s", got, fast)
	}
}

// TestNodesThatComeAndGo by chance never cost a model its last replica as long as one has its
// nodes, and do not make layouts flap: a replica moves only when a node of it went.
func TestNodesThatComeAndGo(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 12))
		w := sized(t, 2, 7, 7, 13, 7, 5, 13)
		if w.lies() == "" {
			t.Fatalf("seed %d: nothing serves", seed)
		}
		names := []string{"node-a", "node-b", "node-c", "node-d", "node-e", "node-f"}
		away := map[string]bool{}
		for step := range 40 {
			had := map[string][]string{}
			for _, e := range w.snap.Endpoints {
				if e.Membership == Healthy {
					had[e.Replica] = e.Nodes
				}
			}
			name := names[rnd.IntN(len(names))]
			if away[name] {
				w.join(name)
				w.nodes[name].status = idle(name)
				delete(away, name)
			} else if len(away) < 2 {
				w.leave(name)
				away[name] = true
				for r, nodes := range had { // a replica whose node dies is broken at its head
					if slices.Contains(nodes, name) && nodes[0] != name {
						w.nodes[nodes[0]].status.State = enginepb.State_BROKEN
					}
					_ = r
				}
			}
			plans := w.plans
			w.run(time.Duration(2+rnd.IntN(20))*time.Second, keys(away)...)
			if w.plans-plans > 12 {
				t.Fatalf("seed %d step %d: %d plans", seed, step, w.plans-plans)
			}
			for r, nodes := range had {
				whole := !slices.ContainsFunc(nodes, func(n string) bool { return away[n] || n == name })
				if now := w.snap.Placed[r]; whole && !slices.Equal(now, nodes) {
					t.Fatalf("seed %d step %d: %s moved from %v to %v, and only %s changed", seed, step, r, nodes, now, name)
				}
			}
		}
	}
}

func idle(name string) *enginepb.Status {
	return &enginepb.Status{
		Node: name, State: enginepb.State_IDLE, HttpAddress: address(name, 80), GrpcAddress: address(name, 81), ShardAddress: address(name, 82),
	}
}

func keys(all map[string]bool) (names []string) {
	for n := range all {
		names = append(names, n)
	}
	return names
}

// TestADrainedNodeIsLeft with the replica that is planned there, the new one first.
func TestADrainedNodeIsLeft(t *testing.T) {
	w := sized(t, 1, 7, 7, 7, 16)
	was := w.nodesOf("m-0")[0]
	for range 3 {
		w.fleet.Step(w.now, Drains{Nodes: map[string]string{was: "by hand"}})
		for range 20 {
			w.run(500 * time.Millisecond)
			w.nodesOf("m-0") // somebody serves all the time
		}
		now := w.nodesOf("m-0")
		if slices.Contains(now, was) {
			t.Fatalf("m-0 on %v, %s is drained", now, was)
		}
		was = now[0]
	}
}

// TestOtherModelsKeepTheirNodes: what is written comes first.
func TestOtherModelsKeepTheirNodes(t *testing.T) {
	w := newWorld(t)
	w.desire(twelve(1) + head + "kind: Model\nmetadata: {name: k}\nspec: {weights: /k, layout: [{nodes: [node-a]}]}\n" +
		head + "kind: Model\nmetadata: {name: l}\nspec: {weights: /l, layout: [{stages: 1}]}\n")
	w.join("node-a", "node-b", "node-c", "node-d")
	for _, n := range w.nodes {
		n.memory = 8 * gib
	}
	w.run(6 * time.Second)
	w.wantLies("m-0 on node-c,node-d; k-0 on node-a; l-0 on node-b")
}
