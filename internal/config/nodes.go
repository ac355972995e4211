package config

import (
	"reflect"
	"strconv"
	"time"

	"millrace.dev/millrace/internal/regular"
)

// Nodes is what `millrace plan -nodes` reads: the nodes that models are laid out on. It is one
// YAML document.
type Nodes struct {
	// MeasuredWith is the model that decode and prefill were measured with. Default: the
	// first of the configuration.
	MeasuredWith string `json:"measuredWith,omitempty"`
	// Nodes are the nodes, at most 10000.
	Nodes []PlanNode `json:"nodes"`
	// Link is what was measured between nodes that Links have nothing of. Default: no cost.
	Link PlanLink `json:"link,omitempty"`
	// Links are pairs of nodes that differ, at most 100000.
	Links []PlanLink `json:"links,omitempty"`
}

// PlanNode is a node for a plan.
type PlanNode struct {
	// Name of the node.
	Name string `json:"name"`
	// Memory is what each of its devices has for a model.
	Memory Bytes `json:"memory"`
	// Devices is how many equal ones there are, 1 to 1024. Default 1.
	Devices int `json:"devices,omitempty"`
	// Decode and Prefill are what one device does with the model of measuredWith, in tokens per
	// second, 0 to 1e9. Default 0: not measured; then it counts as the median of the others.
	Decode  float32 `json:"decode,omitempty"`
	Prefill float32 `json:"prefill,omitempty"`
	// Domain is what fails together, such as a rack. Default: the node alone.
	Domain string `json:"domain,omitempty"`
	// Link is what was measured between its devices. Default: no cost.
	Link PlanLink `json:"link,omitempty"`
}

// PlanLink is what was measured between two nodes.
type PlanLink struct {
	// Between names the two; of links alone.
	Between []string `json:"between,omitempty"`
	// Bandwidth is in bytes per second. Default 0: without a bound.
	Bandwidth Bytes `json:"bandwidth,omitempty"`
	// Latency is in one direction, 0s to 1m. Default 0s.
	Latency Duration `json:"latency,omitempty"`
}

const (
	maxPlanNodes = 10_000
	maxPlanLinks = 100_000
	maxSpeed     = 1e9 // tokens per second
)

// LoadNodes reads the file at path. Its error is one Fault a line, or that of reading it.
func LoadNodes(path string) (Nodes, error) {
	b, err := regular.Read(path, MaxFile)
	if err != nil {
		return Nodes{}, err
	}
	return ParseNodes(path, b)
}

// ParseNodes reads the text of the file of the given name.
func ParseNodes(name string, text []byte) (n Nodes, err error) {
	d := decoder{lines: map[string]int{"": 1}}
	if doc, fault := single(text, "an object with nodes"); fault != nil {
		d.faults = append(d.faults, *fault)
	} else {
		d.value("", doc, reflect.ValueOf(&n).Elem())
		d.check(n.validate())
	}
	for i := range d.faults {
		d.faults[i].File = name
	}
	if err := join(d.faults); err != nil {
		return Nodes{}, err
	}
	return n, nil
}

func (n Nodes) validate() []Fault {
	var r rules
	r.between("nodes", len(n.Nodes), 1, maxPlanNodes)
	r.between("links", len(n.Links), 0, maxPlanLinks)
	known := map[string]bool{}
	for i, node := range n.Nodes {
		at := "nodes[" + strconv.Itoa(i) + "]"
		node.validate(at, &r)
		if known[node.Name] {
			r.broken(at+".name", "%q; is already the name of another node", node.Name)
		}
		known[node.Name] = true
	}
	n.Link.validate("link", &r)
	if len(n.Link.Between) > 0 {
		r.broken("link.between", "must be left out: link is of all nodes; links have pairs")
	}
	for i, l := range n.Links {
		at := "links[" + strconv.Itoa(i) + "]"
		l.validate(at, &r)
		if len(l.Between) != 2 || l.Between[0] == l.Between[1] || !known[l.Between[0]] || !known[l.Between[1]] {
			r.broken(at+".between", "%.200q; must be two nodes of this file", l.Between)
		}
	}
	return r
}

func (n PlanNode) validate(at string, r *rules) {
	r.matches(at+".name", n.Name, nodeName)
	r.holds(at+".memory", n.Memory, 1, 1<<50)
	if n.Devices != 0 {
		r.between(at+".devices", n.Devices, 1, 1024)
	}
	r.within(at+".decode", n.Decode, 0, maxSpeed)
	r.within(at+".prefill", n.Prefill, 0, maxSpeed)
	r.short(at+".domain", n.Domain, 63)
	n.Link.validate(at+".link", r)
	if len(n.Link.Between) > 0 {
		r.broken(at+".link.between", "must be left out: it is between the node's devices")
	}
}

func (l PlanLink) validate(at string, r *rules) {
	r.holds(at+".bandwidth", l.Bandwidth, 0, 1<<50)
	r.lasts(at+".latency", l.Latency, 0, time.Minute)
}
