package planner

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func texts(steps []Step) []string {
	var all []string
	for _, s := range steps {
		all = append(all, s.Text)
	}
	return all
}

func TestReplan(t *testing.T) {
	one, any := big(), big()
	any.Goal.Replicas = 0
	other := big()
	other.Model.Name, other.Goal.Replicas = "other", 1
	whole := func(model string, nodes ...string) Layout {
		l := Layout{Model: model}
		for _, n := range nodes {
			l.Replicas = append(l.Replicas, Replica{Stages: []Stage{{n, 48}}, TensorParallel: 1})
		}
		return l
	}
	split := func(a, b string) Layout {
		return Layout{Model: "big", Replicas: []Replica{{Stages: []Stage{{a, 24}, {b, 24}}, TensorParallel: 1}}}
	}
	a, b, c := node("a", 40, 100), node("b", 40, 100), node("c", 40, 100)
	tests := []struct {
		name     string
		previous []Layout
		nodes    []Node
		requests []Request
		want     []string
		nodesOf  string // of the first model's replicas
	}{
		{name: "nothing runs", nodes: []Node{a}, requests: []Request{one}, want: []string{"start big whole on a"}, nodesOf: "a"},
		{name: "what runs stays", previous: []Layout{whole("big", "b")}, nodes: []Node{a, b, c}, requests: []Request{one}, nodesOf: "b"},
		{name: "what is a little better is left alone", previous: []Layout{whole("big", "b")}, nodes: []Node{node("a", 40, 115), b}, requests: []Request{one}, nodesOf: "b"},
		{
			name: "what is much better is moved to, and started first", previous: []Layout{whole("big", "b")}, nodes: []Node{node("a", 40, 300), b}, requests: []Request{one},
			want: []string{"start big whole on a", "stop big whole on b"}, nodesOf: "a",
		},
		{name: "a node joins", previous: []Layout{whole("big", "a")}, nodes: []Node{a, b}, requests: []Request{any}, want: []string{"start big whole on b"}, nodesOf: "a b"},
		{name: "a node leaves", previous: []Layout{whole("big", "a", "b")}, nodes: []Node{b}, requests: []Request{any}, nodesOf: "b"},
		{
			name: "one of two stages is lost", previous: []Layout{split("a", "b")}, nodes: []Node{node("a", 20, 100), node("c", 20, 100)}, requests: []Request{one},
			want: []string{"start big on a and c: 38 + 10 layers"}, nodesOf: "a c",
		},
		{
			name: "a node shrinks", previous: []Layout{whole("big", "a")}, nodes: []Node{node("a", 20, 100), node("b", 20, 100)}, requests: []Request{one},
			want: []string{"start big on a and b: 38 + 10 layers"}, nodesOf: "a b",
		},
		{name: "the last one is not stopped for a better one in its place", previous: []Layout{split("a", "b")}, nodes: []Node{a, node("b", 20, 10)}, requests: []Request{one}, nodesOf: "a b"},
		{
			name: "fewer are asked for", previous: []Layout{whole("big", "a", "b")}, nodes: []Node{a, node("b", 40, 200)}, requests: []Request{one},
			want: []string{"stop big whole on a"}, nodesOf: "b",
		},
		{
			name: "a new model takes from one that has several", previous: []Layout{whole("big", "a", "b")}, nodes: []Node{a, b}, requests: []Request{any, other},
			want: []string{"stop big whole on b", "start other whole on b"}, nodesOf: "a",
		},
		{name: "a new model takes no last one", previous: []Layout{whole("big", "a")}, nodes: []Node{a}, requests: []Request{any, other}, nodesOf: "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			layouts, steps := Replan(tt.previous, Fleet{Nodes: tt.nodes}, tt.requests)
			if got := texts(steps); !slices.Equal(got, tt.want) {
				t.Errorf("steps %q, want %q", got, tt.want)
			}
			var nodes []string
			for _, r := range layouts[0].Replicas {
				for _, s := range r.Stages {
					nodes = append(nodes, s.Node)
				}
			}
			if got := strings.Join(nodes, " "); got != tt.nodesOf {
				t.Errorf("on %s, want %s; %s", got, tt.nodesOf, layouts[0].Why)
			}
		})
	}
}

// TestReplanKeepsOneWorking carries the steps of random changes out one by one: devices are
// free when they are used, a model that works never stops to, and the steps lead to the
// layouts.
func TestReplanKeepsOneWorking(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 11))
	for range 4 {
		f, requests := randomFleet(rnd, 3+rnd.IntN(8), 1+rnd.IntN(3))
		layouts := Make(f, requests)
		for range 2 {
			f.Nodes = changed(rnd, f.Nodes)
			before := newField(f)
			free, working := before.devices(), map[string][]string{}
			for i, l := range layouts {
				for _, r := range l.Replicas {
					if _, ok := before.still(requests[i], r, free); ok {
						before.take(free, r, -1)
						working[l.Model] = append(working[l.Model], keyOf(r))
					}
				}
			}
			next, steps := Replan(layouts, f, requests)
			for _, s := range steps {
				all := working[s.Model]
				if at := slices.Index(all, keyOf(s.Replica)); s.Stop {
					if at < 0 || len(all) == 1 {
						t.Errorf("%s; of %d that work", s.Text, len(all))
					}
					working[s.Model] = slices.Delete(all, at, at+1)
					before.take(free, s.Replica, 1)
				} else {
					working[s.Model] = append(all, keyOf(s.Replica))
					before.take(free, s.Replica, -1)
				}
				if slices.Min(free) < 0 {
					t.Errorf("%s: a device is used twice", s.Text)
				}
			}
			for _, l := range next {
				var keys []string
				for _, r := range l.Replicas {
					keys = append(keys, keyOf(r))
				}
				slices.Sort(keys)
				slices.Sort(working[l.Model])
				if !slices.Equal(keys, working[l.Model]) {
					t.Errorf("%s: the steps lead to %q, not to %q", l.Model, working[l.Model], keys)
				}
			}
			if again, steps := Replan(next, f, requests); len(steps) > 0 && slices.EqualFunc(again, next, func(a, b Layout) bool { return total(a.Replicas) < total(b.Replicas) }) {
				t.Errorf("a second plan undoes the first: %q", texts(steps))
			}
			layouts = next
		}
	}
}

// changed takes a node away, makes one smaller or slower, or adds one.
func changed(rnd *rand.Rand, nodes []Node) []Node {
	nodes = slices.Clone(nodes)
	at := rnd.IntN(len(nodes))
	switch rnd.IntN(4) {
	case 0:
		if len(nodes) > 1 {
			nodes = slices.Delete(nodes, at, at+1)
		}
	case 1:
		nodes[at].Memory /= 2
	case 2:
		nodes[at].Decode /= 4
	case 3:
		more := nodes[at]
		more.Name += "x"
		nodes = append(nodes, more)
	}
	return nodes
}
