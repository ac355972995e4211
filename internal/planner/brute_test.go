package planner

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// brute is the naive twin: it tries every group of devices, every order of the ends and
// every split of the layers.
type brute struct {
	Request
	nodes []Node // one a device
	fleet Fleet
}

// cost returns a group's decode speed; 0: it doesn't fit, or is too slow.
func (b brute) cost(units, layers []int) float64 {
	m, g := b.Model, b.Goal
	var sum, slowest, in float64
	for i, u := range units {
		n := b.nodes[u]
		kv := float64(m.KVBytesPerToken) * float64(g.Context*g.Slots) / float64(m.Layers)
		memory := float64(m.Overhead) + float64(layers[i])*(float64(m.LayerBytes)+kv)
		bytes := float64(layers[i]) * float64(m.LayerBytes)
		if i == 0 && !(m.Tied && len(units) == 1) {
			memory += float64(m.EmbeddingBytes)
		}
		if i == len(units)-1 {
			memory += float64(m.HeadBytes)
			bytes += float64(m.HeadBytes)
		}
		if memory > float64(n.Memory) {
			return 0
		}
		d, p := bytes/n.Decode, bytes*float64(g.Prompt)/n.Prefill
		if i > 0 {
			l := b.fleet.Link
			if n.Name == b.nodes[units[0]].Name {
				l = n.Between
			}
			hop := func(tokens int) float64 {
				s := l.Latency.Seconds()
				if l.Bandwidth > 0 {
					s += float64(4*m.Hidden*tokens) / l.Bandwidth
				}
				return 2 * s
			}
			d, p = d+hop(1), p+hop(g.Prompt)
		}
		sum, in, slowest = sum+d, in+p, max(slowest, d)
	}
	if g.Token > 0 && sum > g.Token.Seconds() || g.FirstToken > 0 && in > g.FirstToken.Seconds() {
		return 0
	}
	if m.Overlap {
		return min(float64(g.Slots)/sum, 1/slowest)
	}
	return 1 / sum
}

// best returns the best that one group makes of all of these units, in any order.
func (b brute) best(units []int) float64 {
	best := 0.0
	permute(units, 0, func(order []int) {
		layers := make([]int, len(order))
		var split func(at, left int)
		split = func(at, left int) {
			if at == len(order)-1 {
				layers[at] = left
				best = max(best, b.cost(order, layers))
				return
			}
			for n := 1; n <= left-(len(order)-1-at); n++ {
				layers[at] = n
				split(at+1, left-n)
			}
		}
		if len(order) <= b.Model.Layers {
			split(0, b.Model.Layers)
		}
	})
	return best
}

func permute(all []int, at int, do func([]int)) {
	if at == len(all) {
		do(all)
		return
	}
	for i := at; i < len(all); i++ {
		all[at], all[i] = all[i], all[at]
		permute(all, at+1, do)
		all[at], all[i] = all[i], all[at]
	}
}

// solve returns the best number of replicas and what they generate together.
func (b brute) solve() (replicas int, decode float64) {
	worth := map[int]float64{}
	var assign func(unit int, groups [][]int)
	assign = func(unit int, groups [][]int) {
		if unit == len(b.nodes) {
			sum := 0.0
			for _, g := range groups {
				set := 0
				for _, u := range g {
					set |= 1 << u
				}
				if _, known := worth[set]; !known {
					worth[set] = b.best(slices.Clone(g))
				}
				if worth[set] == 0 {
					return
				}
				sum += worth[set]
			}
			n := len(groups)
			if b.Goal.Replicas > 0 && (n > b.Goal.Replicas || n < replicas) {
				return
			}
			if b.Goal.Replicas > 0 && n > replicas || sum > decode {
				replicas, decode = n, sum
			}
			return
		}
		assign(unit+1, groups) // it is free
		for i := range groups {
			of := slices.Clone(groups)
			of[i] = append(slices.Clone(of[i]), unit)
			assign(unit+1, of)
		}
		assign(unit+1, append(slices.Clone(groups), []int{unit}))
	}
	assign(0, nil)
	return replicas, decode
}

const gib = 1 << 30

// randomCase returns a small fleet with a model.
func randomCase(rnd *rand.Rand, devices int) (Fleet, Request) {
	f := Fleet{Link: Link{Bandwidth: 1e8 + rnd.Float64()*1e10, Latency: time.Duration(rnd.IntN(2_000_000))}}
	for n := 0; n < devices; {
		here := min(devices-n, 1+rnd.IntN(2))
		decode := 1e9 * (1 + 20*rnd.Float64())
		f.Nodes = append(f.Nodes, Node{
			Name: string(rune('a' + len(f.Nodes))), Devices: here, Memory: uint64(gib * (0.5 + 8*rnd.Float64())), Decode: decode,
			Prefill: decode * (5 + 20*rnd.Float64()), Between: Link{Bandwidth: 1e10, Latency: time.Duration(rnd.IntN(100_000))},
		})
		n += here
	}
	m := Model{
		Name: "m", Layers: 1 + rnd.IntN(8), LayerBytes: uint64(gib * (0.1 + rnd.Float64())), EmbeddingBytes: uint64(rnd.IntN(gib)), HeadBytes: uint64(rnd.IntN(gib)),
		KVBytesPerToken: uint64(rnd.IntN(200_000)), Hidden: 4096, Spans: true, Overlap: rnd.IntN(2) == 0, Overhead: uint64(rnd.IntN(gib / 4)),
	}
	if m.Tied = rnd.IntN(2) == 0; m.Tied {
		m.HeadBytes = m.EmbeddingBytes
	}
	g := Goal{Replicas: rnd.IntN(3), Context: 1024, Slots: 1 + rnd.IntN(4), Prompt: 256}
	if rnd.IntN(3) == 0 {
		g.Token = time.Duration(1e8 + rnd.Float64()*2e9)
	}
	if rnd.IntN(3) == 0 {
		g.FirstToken = time.Duration(1e9 + rnd.Float64()*30e9)
	}
	return f, Request{Model: m, Goal: g}
}

// TestNearTheOptimum holds the planner to every layout there is on small fleets.
func TestNearTheOptimum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	worst, placed := 1.0, 0
	for n := range 500 {
		f, r := randomCase(rnd, 1+rnd.IntN(5))
		b := brute{Request: r, fleet: f}
		for _, node := range f.Nodes {
			b.nodes = append(b.nodes, slices.Repeat([]Node{node}, node.Devices)...)
		}
		replicas, decode := b.solve()
		got := Make(f, []Request{r})[0]
		if decode > 0 {
			placed++
			worst = min(worst, got.Decode()/decode)
		}
		if got.Decode() < 0.98*decode || r.Goal.Replicas > 0 && len(got.Replicas) != replicas || got.Decode() > decode*(1+1e-6) {
			t.Errorf("case %d: %d replicas, %.3f tok/s; brute force: %d, %.3f\n%+v\n%+v\n%s", n, len(got.Replicas), got.Decode(), replicas, decode, f, r, got.Why)
		}
	}
	if placed < 200 {
		t.Errorf("%d cases have a layout; the cases are too hard", placed)
	}
	t.Logf("%d of 500 cases have a layout; the worst is %.4f of the optimum", placed, worst)
}

// TestSearchIsNearTheExact holds the search for large fleets to the exact layouts of
// fleets that are just small enough for them.
func TestSearchIsNearTheExact(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	var ratios []float64
	for range 16 {
		f, r := randomCase(rnd, exactly)
		field := newField(f)
		task := newTask(field, r, 1, field.devices())
		exact := task.pack(0, false)
		if len(exact) == 0 {
			continue
		}
		found := task.improve(task.greedy(false), rounds, false)
		if r.Goal.Replicas > 0 && len(found) < len(exact) {
			ratios = append(ratios, 0)
			continue
		}
		ratios = append(ratios, task.worth(found)/task.worth(exact))
	}
	slices.Sort(ratios)
	median, tenth := ratios[len(ratios)/2], ratios[len(ratios)/10]
	t.Logf("%d cases: median %.3f, tenth percentile %.3f, least %.3f of the exact", len(ratios), median, tenth, ratios[0])
	if median < 0.98 || tenth < 0.9 {
		t.Errorf("median %.3f, tenth percentile %.3f; want 0.98 and 0.9", median, tenth)
	}
}
