package planner

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// big is a model of 48 layers of 0.5 GiB, with ends of 1 GiB.
func big() Request {
	return Request{
		Model: Model{Name: "big", Layers: 48, LayerBytes: gib / 2, EmbeddingBytes: gib, HeadBytes: gib, Parameters: 13 * gib, Hidden: 4096, Heads: 32, KVHeads: 8, Spans: true},
		Goal:  Goal{Replicas: 1, Context: 4096},
	}
}

func node(name string, memory float64, speed float64) Node {
	return Node{Name: name, Memory: uint64(memory * gib), Decode: speed * gib, Prefill: 20 * speed * gib}
}

func TestWhy(t *testing.T) {
	change := func(do func(*Request)) Request { r := big(); do(&r); return r }
	devices := func(n Node, many int) Node { n.Devices = many; return n }
	tests := []struct {
		name    string
		nodes   []Node
		request Request
		why     string
	}{
		{"whole on the fastest", []Node{node("a", 40, 100), node("b", 40, 200)}, big(), "whole on b, 48 layers, decode 8.0 tok/s predicted"},
		{
			"uneven nodes", []Node{node("a", 10, 100), node("b", 17, 500), node("c", 2, 50), node("d", 10, 80)}, big(),
			"2 stages on a and b: 16 + 32 layers, decode 8.8 tok/s predicted; b alone lacks 9.0 GiB",
		},
		{"without measurements", []Node{node("a", 40, 0)}, big(), "whole on a, 48 layers"},
		{
			"as many as fit", []Node{node("a", 40, 100), node("b", 40, 100), node("c", 20, 100), node("d", 20, 100)}, change(func(r *Request) { r.Goal.Replicas = 0 }),
			"2 replicas, each whole on a + b, 48 layers, decode 4.0 tok/s predicted; 2 stages on c and d: 38 + 10 layers, decode 4.0 tok/s predicted",
		},
		{"several on one node", []Node{devices(node("a", 14, 100), 4)}, change(func(r *Request) { r.Goal.Replicas, r.Model.Spans = 2, false }), "2 replicas, each 2 stages on a, 26 + 22 layers"},
		{
			"shared layers", []Node{devices(node("a", 14, 100), 2)}, change(func(r *Request) { r.Model.Tensor = true }),
			"whole on a, 48 layers over 2 devices each, decode 8.0 tok/s predicted",
		},
		{"too little memory", []Node{node("a", 5, 100), node("b", 5, 100)}, big(), "no place: it needs 16.0 GiB more, or a q4 variant"},
		{"no smaller variant", []Node{node("a", 5, 100)}, change(func(r *Request) { r.Model.Parameters = 0 }), "no place: it needs 21.0 GiB more"},
		{"not on one node", []Node{node("a", 20, 100), node("b", 20, 100)}, change(func(r *Request) { r.Model.Spans = false }), "no place: it needs 6.0 GiB more"},
		{"too slow", []Node{node("a", 40, 100)}, change(func(r *Request) { r.Goal.Token = 100 * time.Millisecond }), "no place: it needs faster nodes: a token takes 250ms at best, the goal is 100ms"},
		{"one of two", []Node{node("a", 40, 100), node("b", 20, 100)}, change(func(r *Request) { r.Goal.Replicas = 2 }), "1 of 2 replicas have a place, one more needs 6.0 GiB more"},
		{"nobody", nil, big(), "no place: it needs a free node"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := Make(Fleet{Nodes: tt.nodes}, []Request{tt.request})[0]
			if !strings.Contains(l.Why, tt.why) {
				t.Errorf("why: %s\nwant %s", l.Why, tt.why)
			}
		})
	}
}

// faultsOf returns what a layout breaks of what it may not.
func faultsOf(f Fleet, requests []Request, layouts []Layout) []string {
	var faults []string
	used, nodes := map[string]int{}, map[string]Node{}
	for _, n := range f.Nodes {
		n.Devices = max(1, n.Devices)
		nodes[n.Name] = n
	}
	for i, l := range layouts {
		m, g := requests[i].Model, requests[i].Goal
		if g.Replicas > 0 && len(l.Replicas) > g.Replicas {
			faults = append(faults, fmt.Sprintf("%s: %d replicas of %d", m.Name, len(l.Replicas), g.Replicas))
		}
		if (l.Missing == "") != (len(l.Replicas) >= max(1, g.Replicas)) || l.Why == "" {
			faults = append(faults, fmt.Sprintf("%s: %d replicas, missing %q, why %q", m.Name, len(l.Replicas), l.Missing, l.Why))
		}
		for _, r := range l.Replicas {
			layers := 0
			for k, s := range r.Stages {
				layers += s.Layers
				used[s.Node] += r.TensorParallel
				kv := float64(m.KVBytesPerToken) / float64(m.Layers) * float64(g.Context*max(1, g.Slots))
				memory := float64(m.Overhead) + float64(s.Layers)*(float64(m.LayerBytes)+kv)
				if k == 0 {
					memory += float64(m.EmbeddingBytes)
				}
				if k == len(r.Stages)-1 && !(m.Tied && k == 0) {
					memory += float64(m.HeadBytes)
				}
				if room := float64(nodes[s.Node].Memory) * float64(r.TensorParallel); memory > room*(1+1e-9) || s.Layers < 1 {
					faults = append(faults, fmt.Sprintf("%s: %d layers take %.0f of %.0f bytes on %s", m.Name, s.Layers, memory, room, s.Node))
				}
				if !m.Spans && s.Node != r.Stages[0].Node {
					faults = append(faults, m.Name+" spans nodes")
				}
			}
			if layers != m.Layers || g.Token > 0 && r.Token > g.Token || g.FirstToken > 0 && r.FirstToken > g.FirstToken {
				faults = append(faults, fmt.Sprintf("%s: %d of %d layers, %v, %v for %v, %v", m.Name, layers, m.Layers, r.Token, r.FirstToken, g.Token, g.FirstToken))
			}
		}
	}
	for name, n := range used {
		if n > nodes[name].Devices {
			faults = append(faults, fmt.Sprintf("%s: %d of %d devices", name, n, nodes[name].Devices))
		}
	}
	return faults
}

// randomFleet returns nodes of several kinds and models for them.
func randomFleet(rnd *rand.Rand, nodes, models int) (Fleet, []Request) {
	f := Fleet{Link: Link{Bandwidth: 1e9, Latency: 100 * time.Microsecond}}
	for i := range nodes {
		n := node(fmt.Sprintf("n%d", i), []float64{8, 16, 24, 80}[rnd.IntN(4)], []float64{50, 400, 900, 3000}[rnd.IntN(4)])
		n.Devices, n.Domain = []int{1, 1, 2, 8}[rnd.IntN(4)], fmt.Sprintf("rack-%d", i/16)
		n.Between = Link{Bandwidth: 50e9, Latency: 10 * time.Microsecond}
		f.Nodes = append(f.Nodes, n)
	}
	var all []Request
	for i := range models {
		layers := 16 + rnd.IntN(80)
		m := Model{
			Name: fmt.Sprintf("m%d", i), Layers: layers, LayerBytes: uint64(gib * (0.02 + rnd.ExpFloat64()*0.4)), EmbeddingBytes: gib / 4, HeadBytes: gib / 4,
			KVBytesPerToken: uint64(layers * 4096), Hidden: 8192, Heads: 64, KVHeads: 8, Overhead: gib / 4, Overlap: rnd.IntN(2) == 0,
		}
		m.Tensor = rnd.IntN(2) == 0
		m.Spans = !m.Tensor
		all = append(all, Request{Model: m, Goal: Goal{Replicas: rnd.IntN(4), Context: 8192, Slots: 1 + rnd.IntN(8)}})
	}
	return f, all
}

// TestLayoutsHold holds random layouts to what all must keep, and to being the same again.
func TestLayoutsHold(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	for range 12 {
		f, requests := randomFleet(rnd, 1+rnd.IntN(20), 1+rnd.IntN(5))
		layouts := Make(f, requests)
		for _, fault := range faultsOf(f, requests, layouts) {
			t.Error(fault)
		}
		again := Make(f, requests)
		for i := range layouts {
			if !slices.EqualFunc(layouts[i].Replicas, again[i].Replicas, func(a, b Replica) bool { return keyOf(a) == keyOf(b) }) {
				t.Errorf("%s: two plans of one fleet: %s and %s", layouts[i].Model, layouts[i].Why, again[i].Why)
			}
		}
	}
}

// TestReplicasStayInTheirDomain holds that replicas do not share their fate without need.
func TestReplicasStayInTheirDomain(t *testing.T) {
	var f Fleet
	for i, name := range []string{"a", "b", "c", "d"} {
		n := node(name, 15, 100)
		n.Domain = []string{"left", "right"}[i%2]
		f.Nodes = append(f.Nodes, n)
	}
	r := big()
	r.Goal.Replicas = 2
	for _, rep := range Make(f, []Request{r})[0].Replicas {
		if got := keyOf(rep); strings.Contains(got, "a/") != strings.Contains(got, "c/") {
			t.Errorf("a replica on %s: both domains", got)
		}
	}
}

func BenchmarkMake(b *testing.B) {
	f, requests := randomFleet(rand.New(rand.NewPCG(1, 1)), 1000, 100)
	for b.Loop() {
		Make(f, requests)
	}
}
