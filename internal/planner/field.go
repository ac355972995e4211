package planner

import (
	"slices"
	"strconv"
	"strings"
)

// unmeasured is the speed of a device where none was measured, in bytes of weights per
// second: what a device's memory does, by its order of magnitude.
const unmeasured = 10e9

// field is a fleet without gaps.
type field struct {
	Fleet
	// measured is whether any decode speed is.
	measured bool
	at       map[string]int // index by name
	// domains are what fails together with each node, as a number.
	domains []int
}

func newField(fleet Fleet) *field {
	f := &field{Fleet: fleet, at: make(map[string]int, len(fleet.Nodes))}
	f.Nodes = slices.Clone(fleet.Nodes)
	decode := median(f.Nodes, func(n Node) float64 { return n.Decode })
	prefill := median(f.Nodes, func(n Node) float64 { return n.Prefill })
	f.measured = decode > 0
	for i := range f.Nodes {
		n := &f.Nodes[i]
		f.at[n.Name] = i
		n.Devices = max(1, n.Devices)
		if n.Decode <= 0 {
			n.Decode = orElse(decode, unmeasured)
		}
		if n.Prefill <= 0 {
			n.Prefill = orElse(prefill, n.Decode)
		}
	}
	f.number()
	return f
}

// median returns that of the positive values, the upper one of two; 0: there is none.
func median(nodes []Node, of func(Node) float64) float64 {
	var all []float64
	for _, n := range nodes {
		if v := of(n); v > 0 {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func orElse(v, other float64) float64 {
	if v > 0 {
		return v
	}
	return other
}

// link returns that between two nodes, or devices of one.
func (f *field) link(a, b int) Link {
	if a == b {
		return f.Nodes[a].Between
	}
	if len(f.Links) == 0 {
		return f.Link
	}
	x, y := f.Nodes[a].Name, f.Nodes[b].Name
	if l, known := f.Links[[2]string{x, y}]; known {
		return l
	}
	if l, known := f.Links[[2]string{y, x}]; known {
		return l
	}
	return f.Link
}

// number gives nodes that fail together the same number.
func (f *field) number() {
	known := map[string]int{}
	for i, n := range f.Nodes {
		at := i
		if n.Domain != "" {
			if _, there := known[n.Domain]; !there {
				known[n.Domain] = i
			}
			at = known[n.Domain]
		}
		f.domains = append(f.domains, at)
	}
}

// domain is what fails together with a node.
func (f *field) domain(node int) int { return f.domains[node] }

// devices returns how many each node has.
func (f *field) devices() []int {
	all := make([]int, len(f.Nodes))
	for i, n := range f.Nodes {
		all[i] = n.Devices
	}
	return all
}

// key names a group by its nodes in order and their layers.
func (t *task) key(g group) string {
	var b strings.Builder
	for _, s := range g.stages {
		b.WriteString(t.field.Nodes[t.units[s.unit].node].Name + "/" + strconv.Itoa(s.layers) + " ")
	}
	return b.String()
}

// keyOf is key of a replica.
func keyOf(r Replica) string {
	var b strings.Builder
	for _, s := range r.Stages {
		b.WriteString(s.Node + "/" + strconv.Itoa(s.Layers) + " ")
	}
	return b.String()
}
