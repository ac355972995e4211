package auto

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/internal/weights"
)

const gib = 1 << 30

// twelve is a model of 12 GiB in 24 layers, without a KV cache to speak of.
func twelve(path string) (weights.Shape, error) {
	if path == "" {
		return weights.Shape{}, errors.New("no such file")
	}
	return weights.Shape{Layers: 24, LayerBytes: gib / 2, Hidden: 64, Heads: 8, KVHeads: 8, KVBytesPerToken: 1}, nil
}

func model(name string, replicas int, runs ...Run) Model {
	m := config.NewModel(name)
	m.Spec.Weights, m.Spec.Replicas = "/w", replicas
	return Model{Name: name, Spec: m.Spec, Runs: runs}
}

func nodes(gibs ...int) (all []Node) {
	for i, g := range gibs {
		all = append(all, Node{Node: planner.Node{Name: string(rune('a' + i)), Memory: uint64(g) * gib}, Steady: true})
	}
	return all
}

// shown writes the places of a result.
func shown(r Result) string {
	var all []string
	for _, name := range r.Names() {
		p := r.Places[name]
		all = append(all, fmt.Sprintf("%s on %s: %v", name, strings.Join(p.Nodes, ","), p.Shares))
	}
	return strings.Join(all, "; ")
}

func TestMake(t *testing.T) {
	split := Run{"m-0", Place{Nodes: []string{"a", "b"}, Shares: []float32{12, 12}}}
	fast := nodes(8, 8, 16)
	fast[0].Decode, fast[1].Decode, fast[2].Decode = 1e9, 1e9, 10e9
	tests := []struct {
		name    string
		models  []Model
		nodes   []Node
		want    string
		missing string
		why     string
	}{
		{name: "whole where it fits", models: []Model{model("m", 1)}, nodes: nodes(8, 16), want: "m-0 on b: [24]"},
		{name: "split where none has room for all", models: []Model{model("m", 1)}, nodes: nodes(1, 7, 7), want: "m-0 on b,c: [13 11]", why: "b alone lacks 5.1 GiB"},
		{name: "over three", models: []Model{model("m", 1)}, nodes: nodes(5, 5, 5), want: "m-0 on a,c,b: [9 6 9]"},
		{name: "what is missing", models: []Model{model("m", 1)}, nodes: nodes(4, 4), missing: "needs 4."},
		{name: "what runs stays", models: []Model{model("m", 1, split)}, nodes: nodes(8, 8, 16), want: "m-0 on a,b: [12 12]"},
		{name: "so it does while moving isn't due", models: []Model{model("m", 1, split)}, nodes: fast, want: "m-0 on a,b: [12 12]"},
		{name: "it moves to what is much faster when it is", models: []Model{due(model("m", 1, split))}, nodes: fast, want: "m-0 on c: [24]"},
		{name: "not to a node that has just come", models: []Model{due(model("m", 1, split))}, nodes: unsteady(fast, 2), want: "m-0 on a,b: [12 12]"},
		{name: "not to one of which nothing was measured", models: []Model{due(model("m", 1, split))}, nodes: unmeasured(fast, 2), want: "m-0 on a,b: [12 12]"},
		{name: "another replica has a node that has just come", models: []Model{model("m", 2, split)}, nodes: unsteady(nodes(8, 8, 16), 2), want: "m-0 on a,b: [12 12]; m-1 on c: [24]"},
		{name: "a node is gone", models: []Model{model("m", 1, split)}, nodes: nodes(8, 0, 8), want: "m-0 on a,c: [15 9]"},
		{name: "a name that is free", models: []Model{model("m", 2, Run{"m-1", split.Place})}, nodes: nodes(8, 8, 16), want: "m-0 on c: [24]; m-1 on a,b: [12 12]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i := len(tt.nodes) - 1; i >= 0; i-- {
				if tt.nodes[i].Memory == 0 {
					tt.nodes = slices.Delete(slices.Clone(tt.nodes), i, i+1)
				}
			}
			r := Make(Input{Models: tt.models, Nodes: tt.nodes}, twelve).Models["m"]
			if diff := cmp.Diff(tt.want, shown(r)); diff != "" {
				t.Errorf("places (-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(r.Missing, tt.missing) || tt.missing == "" && r.Missing != "" || !strings.Contains(r.Why, tt.why) {
				t.Errorf("missing %q, why %q; want %q, %q", r.Missing, r.Why, tt.missing, tt.why)
			}
		})
	}
}

func due(m Model) Model {
	m.Due = true
	return m
}

func unsteady(all []Node, i int) []Node {
	all = slices.Clone(all)
	all[i].Steady = false
	return all
}

func unmeasured(all []Node, i int) []Node {
	all = slices.Clone(all)
	all[i].Decode = 0
	return all
}

func TestWeightsThatCannotBeReadHarmNoOtherModel(t *testing.T) {
	bad := model("bad", 1)
	bad.Spec.Weights = ""
	out := Make(Input{Models: []Model{bad, model("m", 1)}, Nodes: nodes(16)}, twelve)
	if got := out.Models["bad"].Unknown; got != "its layout is not planned: no such file" {
		t.Errorf("unknown: %q", got)
	}
	if got := shown(out.Models["m"]); got != "m-0 on a: [24]" {
		t.Errorf("m: %q", got)
	}
}

// TestPlansSettle has nodes come and go by chance: a plan that is asked for again with what
// came of it stays; what runs and can stay does while moving isn't due; and where it moves,
// something of the model runs on.
func TestPlansSettle(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 12))
		all := nodes(4, 5, 7, 8, 13, 14, 26)
		for i := range all {
			all[i].Decode = float64(1+rnd.IntN(5)) * 1e9
		}
		runs := map[string][]Run{}
		for step := range 12 {
			var there []Node
			for _, n := range all {
				if rnd.IntN(4) > 0 {
					there = append(there, n)
				}
			}
			in := Input{Nodes: there}
			for _, name := range []string{"m", "k"} {
				m := model(name, 1+int(seed%3))
				m.Due = rnd.IntN(2) == 0
				for _, r := range runs[name] { // fleet names only those whose nodes are there
					if !slices.ContainsFunc(r.Nodes, func(n string) bool { return !has(there, n) }) {
						m.Runs = append(m.Runs, r)
					}
				}
				in.Models = append(in.Models, m)
			}
			out := Make(in, twelve)
			checkMoves(t, in, out, fmt.Sprintf("seed %d step %d", seed, step))
			again := in
			again.Models = slices.Clone(in.Models)
			for i, m := range in.Models {
				runs[m.Name] = nil
				for _, name := range out.Models[m.Name].Names() {
					runs[m.Name] = append(runs[m.Name], Run{name, out.Models[m.Name].Places[name]})
				}
				again.Models[i].Runs, again.Models[i].Due = runs[m.Name], false
			}
			for name, r := range Make(again, twelve).Models {
				if got, want := shown(r), shown(out.Models[name]); got != want || len(r.Steps) > 0 {
					t.Fatalf("seed %d step %d: again %s, had %s, steps %v", seed, step, got, want, r.Steps)
				}
			}
		}
	}
}

func has(all []Node, name string) bool {
	return slices.ContainsFunc(all, func(n Node) bool { return n.Name == name })
}

func checkMoves(t *testing.T, in Input, out Output, at string) {
	taken := map[string]string{}
	for _, m := range in.Models {
		r := out.Models[m.Name]
		moved, kept := 0, 0
		for _, run := range m.Runs {
			if r.Places[run.Replica].Same(run.Place) {
				kept++
			} else {
				moved++
			}
		}
		if moved > 0 && !m.Due {
			t.Fatalf("%s: %s: %d replicas moved that had room: %v to %s", at, m.Name, moved, m.Runs, shown(r))
		}
		if len(r.Names()) < len(m.Runs) {
			t.Fatalf("%s: %s: %d replicas left of %d", at, m.Name, len(r.Names()), len(m.Runs))
		}
		if most := 2*moved + len(r.Names()) - len(m.Runs); len(r.Steps) > most {
			t.Fatalf("%s: %s: %d steps for %d moves: %v", at, m.Name, len(r.Steps), moved, r.Steps)
		}
		for name, p := range r.Places {
			for _, n := range p.Nodes {
				if other := taken[n]; other != "" || !has(in.Nodes, n) {
					t.Fatalf("%s: %s: %s has %s, too, or it is not there", at, name, other, n)
				}
				taken[n] = name
			}
		}
	}
}
