package layout

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
)

var (
	day     = time.UnixMicro(1_000_000)
	later   = time.UnixMicro(2_000_000)
	backend = &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, Weights: "/m.gguf", Slots: 1, Threads: 1, ContextTokens: 4096}
)

func spec(name string, stages int, nodes ...string) Spec {
	return Spec{Model: "m", Replica: name, Backend: backend, Shares: slices.Repeat([]float32{1}, stages), Nodes: nodes}
}

func node(name string) Node {
	return Node{Name: name, Usable: true, Engine: name + ":1", Shard: name + ":2"}
}

// make1 makes a plan without anything to end before it.
func make1(specs []Spec, nodes []Node, previous []Replica, now time.Time) Plan {
	return Make(Input{Specs: specs, Nodes: nodes, Previous: Plan{Replicas: previous}, Published: true, Now: now})
}

func running(n Node, r Replica, stage int) Node {
	n.Running = r.Assignment(stage)
	return n
}

// short writes a plan as "replica@generation=node,node".
func short(p Plan) []string {
	var all []string
	for _, r := range p.Replicas {
		all = append(all, fmt.Sprintf("%s@%d=%s", r.Spec.Replica, r.Version.Generation, strings.Join(r.Nodes(), ",")))
	}
	for _, u := range p.Unplaced {
		all = append(all, u.Condition().Text)
	}
	return all
}

func TestMake(t *testing.T) {
	two := []Spec{spec("m-0", 2), spec("m-1", 1)}
	had := make1(two, []Node{node("a"), node("b"), node("c")}, nil, day).Replicas
	without := func(n Node) Node { n.Usable = false; return n }
	lost := func(n Node) Node { n.Usable, n.Lost = false, true; return n }
	moved := func(n Node) Node { n.Engine = "elsewhere:1"; return n }
	tests := []struct {
		name     string
		specs    []Spec
		nodes    []Node
		previous []Replica
		want     []string
	}{
		{
			name: "by name, in order", specs: two, nodes: []Node{node("c"), node("a"), node("b")},
			want: []string{"m-0@2000000=a,b", "m-1@2000000=c"},
		},
		{
			name: "what fits is placed", specs: two, nodes: []Node{node("a")},
			want: []string{"m-1@2000000=a", "replica m-0 is not placed: it needs 2 free nodes, and there is only a"},
		},
		{
			name: "nobody is there", specs: two[1:],
			want: []string{"replica m-1 is not placed: it needs 1 free node, and there is none"},
		},
		{
			name: "what runs is adopted", specs: two,
			nodes: []Node{running(node("a"), had[1], 0), running(node("b"), had[0], 1), node("c"), node("d")},
			// What counts is where the assignment says it runs, not who reports it.
			want: []string{"m-0@1000000=a,b", "m-1@1000000=c"},
		},
		{
			name: "one stage alone speaks for its replica", specs: two,
			nodes: []Node{running(node("b"), had[0], 1), node("c"), node("d")},
			want:  []string{"m-0@1000000=a,b", "m-1@2000000=c"},
		},
		{
			name: "a node that is away keeps its part", specs: two, previous: had,
			nodes: []Node{node("a"), without(node("b")), node("c"), node("d")},
			want:  []string{"m-0@1000000=a,b", "m-1@1000000=c"},
		},
		{
			name: "a lost one does not", specs: two, previous: had,
			nodes: []Node{node("a"), lost(node("b")), node("c"), node("d")},
			want:  []string{"m-0@2000000=a,d", "m-1@1000000=c"},
		},
		{
			name: "new addresses are a new generation", specs: two, previous: had,
			nodes: []Node{node("a"), moved(node("b")), node("c")},
			want:  []string{"m-0@2000000=a,b", "m-1@1000000=c"},
		},
		{
			name: "named nodes are kept free", specs: []Spec{spec("m-0", 1), spec("m-1", 1, "a")},
			nodes: []Node{node("a"), node("b")},
			want:  []string{"m-0@2000000=b", "m-1@2000000=a"},
		},
		{
			name: "named nodes may be missing", specs: []Spec{spec("m-0", 2, "a", "x")}, nodes: []Node{node("a"), node("b")},
			want: []string{"replica m-0 is not placed: x doesn't report"},
		},
		{
			name: "another shape is another plan", specs: []Spec{spec("m-0", 1)}, previous: had, nodes: []Node{node("a"), node("b")},
			want: []string{"m-0@2000000=a"},
		},
		{
			name: "no weights", specs: []Spec{{Model: "m", Replica: "m-0", Shares: []float32{1}}}, nodes: []Node{node("a")},
			want: []string{"replica m-0 is not placed: model m has no weights"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan := make1(tt.specs, tt.nodes, tt.previous, later)
			if diff := cmp.Diff(tt.want, short(plan)); diff != "" {
				t.Errorf("plan differs (-want +got):\n%s", diff)
			}
			if plan.Complete() != (len(plan.Replicas) == len(tt.specs)) {
				t.Errorf("Complete() = %v with %d of %d replicas", plan.Complete(), len(plan.Replicas), len(tt.specs))
			}
		})
	}
}

func TestVersionsOnlyGrow(t *testing.T) {
	had := make1([]Spec{spec("m-0", 1)}, []Node{node("a")}, nil, later).Replicas
	other := []Spec{{Model: "m", Replica: "m-0", Backend: &enginepb.Backend{Weights: "/other.gguf"}, Shares: []float32{1}}}
	in := Input{Specs: other, Nodes: []Node{running(node("a"), had[0], 0)}, Published: true, Now: day, Last: had[0].Version} // the clock went back
	if got := Make(in).Replicas[0].Version; !got.After(had[0].Version) {
		t.Errorf("version %v after %v", got, had[0].Version)
	}
	in.Nodes[0].Running.Generation = math.MaxUint64
	in.Nodes[0].Version = in.Nodes[0].Running.Version()
	in.Last = enginepb.Version{Epoch: 1} // as whoever met that version continues
	if got := Make(in).Replicas[0].Version; !got.After(in.Nodes[0].Version) {
		t.Errorf("version %v after %v", got, in.Nodes[0].Version)
	}
}

func TestSameVersionWithAnotherContentIsReplaced(t *testing.T) {
	had := make1([]Spec{spec("m-0", 1)}, []Node{node("a")}, nil, day).Replicas
	n := running(node("a"), had[0], 0)
	n.Running = proto.CloneOf(n.Running)
	n.Running.Backend.Weights = "/other.gguf"
	n.Version = n.Running.Version()
	plan := Make(Input{Specs: []Spec{spec("m-0", 1)}, Nodes: []Node{n}, Previous: Plan{Replicas: had}, Published: true, Now: day, Last: had[0].Version})
	if got := plan.Replicas[0]; !got.Version.After(n.Version) || got.Spec.Backend.GetWeights() != "/m.gguf" {
		t.Errorf("planned %v of %v, want a version after %v of what is desired", got.Version, got.Spec.Backend, n.Version)
	}
}

func TestShardAddressOnlyWhereItIsUsed(t *testing.T) {
	plan := make1([]Spec{spec("m-0", 2), spec("m-1", 1)}, []Node{node("a"), node("b"), node("c")}, nil, day)
	if got := plan.Replicas[0].Stages[1].GetShardAddress(); got != "b:2" {
		t.Errorf("stage 1 of 2 has shard address %q", got)
	}
	if got := plan.Replicas[1].Stages[0].GetShardAddress(); got != "" {
		t.Errorf("the only stage has shard address %q", got)
	}
}

// TestPlansHold checks on random fleets what must always be true: a node has one
// part at most, and planning again changes nothing.
func TestPlansHold(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		specs, nodes := randomFleet(r)
		plan := make1(specs, nodes, nil, day)
		seen := map[string]string{}
		for _, rep := range plan.Replicas {
			for _, name := range rep.Nodes() {
				if seen[name] != "" {
					t.Fatalf("%s serves %s and %s", name, seen[name], rep.Spec.Replica)
				}
				seen[name] = rep.Spec.Replica
			}
		}
		again := Make(Input{Specs: specs, Nodes: nodes, Previous: plan, Published: true, Now: later})
		n := len(plan.Replicas)
		if diff := cmp.Diff(short(plan)[:n], short(again)[:n]); diff != "" {
			t.Fatalf("the plan is not stable (-first +second):\n%s", diff)
		}
	}
}

// randomFleet returns specs and nodes, some of which run something, also nonsense.
func randomFleet(r *rand.Rand) ([]Spec, []Node) {
	var specs []Spec
	for i := range 1 + r.IntN(4) {
		specs = append(specs, spec(fmt.Sprintf("m-%d", i), 1+r.IntN(3)))
	}
	var nodes []Node
	for i := range r.IntN(8) {
		n := node(string(rune('a' + i)))
		n.Lost = r.IntN(8) == 0
		n.Usable = !n.Lost && r.IntN(4) > 0
		if r.IntN(2) == 0 {
			n.Running = randomAssignment(r)
		}
		nodes = append(nodes, n)
	}
	return specs, nodes
}

func randomAssignment(r *rand.Rand) *enginepb.Assignment {
	a := &enginepb.Assignment{
		Generation: r.Uint64N(1000), Model: "m", Replica: fmt.Sprintf("m-%d", r.IntN(5)), Backend: backend,
	}
	for range 1 + r.IntN(3) {
		name := string(rune('a' + r.IntN(9)))
		a.Stages = append(a.Stages, &enginepb.Stage{Node: name, EngineAddress: name + ":1", ShardAddress: name + ":2", Share: 1})
	}
	return a
}
