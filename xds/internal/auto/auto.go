// Package auto plans how models lie on nodes of which nobody has written a layout. fleet says
// what is known and what runs; the service around it calls Make beside fleet's loop, and fleet
// takes in what comes of it.
//
// A plan changes when nodes come, go or shrink, when models change, or when a node turns out
// slower than planned, and then as little as possible:
//
//	replica has no place, or its nodes are gone ─► it gets one, wherever there is room
//	another place is much better, and moving is due ─► it moves, to nodes that have been there
//	                                                  for a while; the new one starts first
//	else ─► it stays
//
// Its one rule: it is a function of its input, and what works is not taken down to make it
// better unless something of its model works meanwhile.
package auto

import (
	"cmp"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/placing"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/internal/weights"
)

// Input is what a plan depends on.
type Input struct {
	// Models are those to be laid out, in the order of the desired state.
	Models []Model
	// Nodes are those that may be used, by name.
	Nodes []Node
	// Early is whether nothing is to be planned yet, as nodes may not have reported: only
	// which weights can be read is asked for.
	Early bool
	// Attempt counts how often weights that could not be read have been tried again.
	Attempt int64
}

// Model is a model to be laid out.
type Model struct {
	Name string
	Spec config.ModelSpec
	// Names are those of its replicas; nil: by their number.
	Names []string
	// Runs are the replicas that have a place, by name.
	Runs []Run
	// Due is whether what runs may move to where it is better.
	Due bool
}

// Run is a replica with its place.
type Run struct {
	// Replica is its name.
	Replica string
	Place
}

// Place is where a replica lies.
type Place struct {
	// Nodes has the node of each stage, the head's first, Shares how many layers each has,
	// relatively.
	Nodes  []string
	Shares []float32
	// Decode and Prefill are tokens per second as they were predicted when the place was
	// chosen; 0: nothing was measured then.
	Decode, Prefill float64
}

// Same reports whether a replica runs alike in both places.
func (p Place) Same(o Place) bool {
	return slices.Equal(p.Nodes, o.Nodes) && slices.Equal(p.Shares, o.Shares)
}

// Node is a node that may be used.
type Node struct {
	planner.Node
	// Steady is whether it has been there for a while: what works moves to such nodes alone.
	Steady bool
}

// Output is a plan.
type Output struct {
	// Models has what was found for each, by name.
	Models map[string]Result
}

// Result is how a model lies on the nodes.
type Result struct {
	// Unknown is why nothing can be planned; empty: it can.
	Unknown string
	// Layers and Bytes are those of a replica's weights.
	Layers int
	Bytes  uint64
	// Places are by the name of the replica; who is not in it has none.
	Places map[string]Place
	// Why is the reason for a person, Missing what keeps replicas from having a place; empty:
	// all have one.
	Why, Missing string
	// Steps are what is to be done, in this order, for a person.
	Steps []string
}

// Make plans. shape reads the headers of weights.
func Make(in Input, shape func(path string) (weights.Shape, error)) Output {
	out := Output{Models: make(map[string]Result, len(in.Models))}
	p := plan{in: in, fleet: planner.Fleet{}, used: map[string]bool{}}
	for _, n := range in.Nodes {
		p.fleet.Nodes = append(p.fleet.Nodes, n.Node)
	}
	var known []Model
	for _, m := range in.Models {
		s, err := shape(m.Spec.Weights)
		if err != nil {
			out.Models[m.Name] = Result{Unknown: "its layout is not planned: " + err.Error()}
			continue
		}
		known = append(known, m)
		p.add(m, s)
	}
	if in.Early {
		for i, m := range known {
			out.Models[m.Name] = Result{Layers: p.requests[i].Model.Layers, Bytes: p.requests[i].Model.Bytes()}
		}
		return out
	}
	layouts := p.improve(known, p.repair())
	for i, m := range known {
		out.Models[m.Name] = p.result(m, p.requests[i], layouts[i])
	}
	return out
}

// plan is the state of one Make.
type plan struct {
	in       Input
	fleet    planner.Fleet
	requests []planner.Request
	previous []planner.Layout
	// used are nodes that serve something, by name.
	used map[string]bool
}

// add takes in a model whose weights are known.
func (p *plan) add(m Model, s weights.Shape) {
	r := placing.Request(m.Name, m.Spec, s)
	r.Goal.Replicas = max(1, m.Spec.Replicas)
	had := planner.Layout{Model: m.Name}
	for _, run := range m.Runs {
		had.Replicas = append(had.Replicas, run.replica(s.Layers))
	}
	p.requests, p.previous = append(p.requests, r), append(p.previous, had)
}

// replica returns the run as the planner sees it.
func (r Run) replica(layers int) planner.Replica {
	a := &enginepb.Assignment{}
	for i, n := range r.Nodes {
		a.Stages = append(a.Stages, &enginepb.Stage{Node: n, Share: r.Shares[i]})
	}
	return placing.Replica(a, layers)
}

// repair lets all stay that can, and finds places for the rest.
func (p *plan) repair() []planner.Layout {
	requests := slices.Clone(p.requests)
	for i := range requests {
		requests[i].Goal.Stay = true
	}
	layouts, _ := planner.Replan(p.previous, p.fleet, requests)
	return layouts
}

// improve moves what is due to where it is much better: to nodes that are steady, of known
// speed where any is known.
func (p *plan) improve(known []Model, layouts []planner.Layout) []planner.Layout {
	if !slices.ContainsFunc(known, func(m Model) bool { return m.Due }) {
		return layouts
	}
	for _, l := range layouts {
		for _, r := range l.Replicas {
			for _, s := range r.Stages {
				p.used[s.Node] = true
			}
		}
	}
	least := 0.0
	for _, n := range p.in.Nodes {
		if n.Decode > 0 && (least == 0 || n.Decode < least) {
			least = n.Decode
		}
	}
	fleet := p.fleet
	fleet.Nodes = nil
	for _, n := range p.in.Nodes {
		if n.Steady || p.used[n.Name] {
			n.Decode = cmp.Or(n.Decode, least)
			fleet.Nodes = append(fleet.Nodes, n.Node)
		}
	}
	requests := slices.Clone(p.requests)
	for i, m := range known {
		requests[i].Goal.Stay = !m.Due
	}
	better, more := planner.Replan(layouts, fleet, requests)
	if !slices.ContainsFunc(more, func(s planner.Step) bool { return s.Stop }) {
		return layouts
	}
	p.previous = better // what has moved may have made room
	return p.repair()
}

// result names the replicas of a layout: who stays keeps its name.
func (p *plan) result(m Model, r planner.Request, l planner.Layout) Result {
	res := Result{
		Layers: r.Model.Layers, Bytes: r.Model.Bytes(), Why: l.Why, Missing: l.Missing, Places: make(map[string]Place, len(l.Replicas)),
	}
	measured := slices.ContainsFunc(p.in.Nodes, func(n Node) bool { return n.Decode > 0 })
	var rest []Place
	for _, rep := range l.Replicas {
		place := placeOf(rep, measured)
		i := slices.IndexFunc(m.Runs, func(run Run) bool {
			_, named := res.Places[run.Replica]
			return !named && slices.Equal(run.replica(r.Model.Layers).Stages, rep.Stages)
		})
		if i < 0 {
			rest = append(rest, place)
			continue
		}
		res.Places[m.Runs[i].Replica] = m.Runs[i].Place
	}
	for i := 0; len(rest) > 0; i++ {
		name := config.Model{Metadata: config.Metadata{Name: m.Name}}.ReplicaName(i)
		if m.Names != nil {
			if i == len(m.Names) {
				break // there are to be fewer
			}
			name = m.Names[i]
		}
		if _, named := res.Places[name]; !named {
			res.Places[name], rest = rest[0], rest[1:]
		}
	}
	res.Steps = m.steps(res)
	return res
}

// steps says for each replica what is to be done. One that moves starts first, where it
// needs none of its nodes again.
func (m Model) steps(res Result) (all []string) {
	had := map[string]Place{}
	for _, run := range m.Runs {
		had[run.Replica] = run.Place
	}
	text := func(do string, p Place) {
		r := Run{Place: p}.replica(res.Layers)
		all = append(all, do+" "+m.Name+" "+r.String())
	}
	for _, name := range res.Names() {
		to := res.Places[name]
		was, ran := had[name]
		overlaps := slices.ContainsFunc(was.Nodes, func(n string) bool { return slices.Contains(to.Nodes, n) })
		switch {
		case !ran:
			text("start", to)
		case was.Same(to):
		case overlaps:
			text("stop", was)
			text("start", to)
		default:
			text("start", to)
			text("stop", was)
		}
	}
	return all
}

// placeOf returns where a replica lies, and what is predicted if anything was measured.
func placeOf(r planner.Replica, measured bool) Place {
	var p Place
	for _, s := range r.Stages {
		p.Nodes, p.Shares = append(p.Nodes, s.Node), append(p.Shares, float32(s.Layers))
	}
	if measured {
		p.Decode = r.Decode
		if s := r.FirstToken.Seconds(); s > 0 {
			p.Prefill = planner.Prompt / s
		}
	}
	return p
}

// Equal reports whether both lead to the same plan.
func (in *Input) Equal(o *Input) bool {
	if in == nil || o == nil {
		return in == o
	}
	return in.Attempt == o.Attempt && in.Early == o.Early && slices.EqualFunc(in.Models, o.Models, Model.equal) && slices.Equal(in.Nodes, o.Nodes)
}

// equal compares all that a plan depends on.
func (m Model) equal(o Model) bool {
	a, b := m.Spec, o.Spec
	same := m.Name == o.Name && m.Due == o.Due && a.Weights == b.Weights && a.Replicas == b.Replicas && a.Goal == b.Goal &&
		a.Backend.ContextTokens == b.Backend.ContextTokens && a.Backend.Slots == b.Backend.Slots
	return same && slices.Equal(m.Names, o.Names) && slices.EqualFunc(m.Runs, o.Runs, func(a, b Run) bool { return a.Replica == b.Replica && a.Place.Same(b.Place) })
}

// Names returns the names of a result's replicas that have a place, sorted.
func (r Result) Names() []string { return slices.Sorted(maps.Keys(r.Places)) }
