// Package layout decides which node serves which part of which replica. Called
// by fleet, on every snapshot.
//
// Its one rule: what runs stays where it is. A replica is moved only when one of
// its nodes is lost or the configuration asks for something else, so that a
// restarted xds, which knows nothing, disturbs nobody.
package layout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
)

// Want is one replica that the configuration asks for.
type Want struct {
	// Model is the model's id in the API.
	Model string
	// Replica is the replica's name, unique in the fleet.
	Replica string
	// Backend is how each of its engines runs the inference engine.
	Backend *enginepb.Backend
	// Shares has the relative number of layers of each stage.
	Shares []float32
	// Nodes names the node of each stage; empty: any nodes.
	Nodes []string
}

// Node is a node as the planner sees it.
type Node struct {
	// Name of the node.
	Name string
	// Usable is whether the node reports now and its engine's addresses are
	// known, so that it can be given something new.
	Usable bool
	// Lost is whether the node has been away for so long that what it had is
	// to be laid out elsewhere.
	Lost bool
	// Engine is the "ip:port" of its engine's gRPC service, Shard where its
	// shard listens, or would.
	Engine, Shard string
	// Running is the assignment in force there; nil: none, or unknown.
	Running *enginepb.Assignment
}

// Replica is one replica with its place.
type Replica struct {
	// Want is what was asked for.
	Want Want
	// Generation is the version of the replica's assignments.
	Generation uint64
	// Stages has the replica's stages, the head first.
	Stages []*enginepb.Stage
}

// Assignment returns the assignment of the stage's node.
func (r Replica) Assignment(stage int) *enginepb.Assignment {
	return &enginepb.Assignment{
		Generation: r.Generation,
		Model:      r.Want.Model,
		Replica:    r.Want.Replica,
		Stage:      uint32(stage),
		Stages:     r.Stages,
		Backend:    r.Want.Backend,
	}
}

// Nodes returns the names of the replica's nodes, the head's first.
func (r Replica) Nodes() []string {
	names := make([]string, len(r.Stages))
	for i, s := range r.Stages {
		names[i] = s.GetNode()
	}
	return names
}

// Plan is where every replica goes.
type Plan struct {
	// Replicas that have a place, in the order in which they were wanted.
	Replicas []Replica
	// Conditions says which ones have none, and why.
	Conditions []obs.Condition
}

// Complete returns whether every replica has a place.
func (p Plan) Complete() bool { return len(p.Conditions) == 0 }

// Make lays the wanted replicas out over the nodes: first what previous says,
// then what the nodes run already, and what is left goes to free nodes in the
// order of their names. New generations are at least now, in microseconds.
func Make(wants []Want, nodes []Node, previous []Replica, now time.Time) Plan {
	p := newPlanner(nodes, previous, now)
	placed := make([]*Replica, len(wants))
	for i, w := range wants {
		placed[i] = p.keep(w, p.previous[w.Replica])
	}
	for i, w := range wants {
		if placed[i] == nil {
			placed[i] = p.keep(w, p.running[w.Replica])
		}
		if placed[i] == nil {
			p.reserve(w)
		}
	}
	var plan Plan
	for i, w := range wants {
		if placed[i] == nil {
			var why *obs.Condition
			if placed[i], why = p.place(w); why != nil {
				plan.Conditions = append(plan.Conditions, *why)
				continue
			}
		}
		plan.Replicas = append(plan.Replicas, *placed[i])
	}
	return plan
}

// planner is the state of one Make.
type planner struct {
	// names of all nodes, sorted.
	names []string
	// nodes by name.
	nodes map[string]Node
	// taken has the replica of each node that has one, by the node's name.
	taken map[string]string
	// reserved has the replica that names a node of its own, by the node's name.
	reserved map[string]string
	// previous and running have what there was, by the replica's name.
	previous, running map[string]*enginepb.Assignment
	// next is the generation for what is new.
	next uint64
}

func newPlanner(nodes []Node, previous []Replica, now time.Time) *planner {
	p := &planner{
		nodes:    make(map[string]Node, len(nodes)),
		taken:    make(map[string]string, len(nodes)),
		reserved: make(map[string]string),
		previous: make(map[string]*enginepb.Assignment, len(previous)),
		running:  make(map[string]*enginepb.Assignment, len(nodes)),
		next:     uint64(max(1, now.UnixMicro())),
	}
	for _, n := range nodes {
		p.names = append(p.names, n.Name)
		p.nodes[n.Name] = n
		p.run(n.Running)
	}
	slices.Sort(p.names)
	for _, r := range previous {
		p.previous[r.Want.Replica] = r.Assignment(0)
		p.next = max(p.next, r.Generation+1)
	}
	return p
}

// run notes an assignment in force. Nodes of one replica may be at different
// generations: the latest one holds.
func (p *planner) run(a *enginepb.Assignment) {
	if a == nil {
		return
	}
	p.next = max(p.next, a.GetGeneration()+1)
	if known := p.running[a.GetReplica()]; known == nil || known.GetGeneration() < a.GetGeneration() {
		p.running[a.GetReplica()] = a
	}
}

// keep returns the replica where had says it is, or nil if it can't stay there.
// It gets a new generation when its assignment must change.
func (p *planner) keep(w Want, had *enginepb.Assignment) *Replica {
	if had == nil || had.GetModel() != w.Model || len(had.GetStages()) != len(w.Shares) {
		return nil
	}
	seen := make(map[string]bool, len(had.GetStages()))
	for i, s := range had.GetStages() {
		name := s.GetNode()
		pinned := len(w.Nodes) > 0 && w.Nodes[i] != name
		if pinned || seen[name] || p.taken[name] != "" || p.nodes[name].Lost {
			return nil
		}
		seen[name] = true
	}
	r := &Replica{Want: w, Generation: had.GetGeneration()}
	for i, s := range had.GetStages() {
		p.taken[s.GetNode()] = w.Replica
		r.Stages = append(r.Stages, p.stage(w, i, s))
	}
	if !same(r, had) {
		r.Generation = p.next
	}
	return r
}

func same(r *Replica, had *enginepb.Assignment) bool {
	return proto.Equal(r.Want.Backend, had.GetBackend()) &&
		slices.EqualFunc(r.Stages, had.GetStages(), func(a, b *enginepb.Stage) bool { return proto.Equal(a, b) })
}

// stage returns stage i of a replica on the node of had, at the node's present
// addresses; those of had where the node hasn't reported.
func (p *planner) stage(w Want, i int, had *enginepb.Stage) *enginepb.Stage {
	s := &enginepb.Stage{
		Node:          had.GetNode(),
		ShardAddress:  had.GetShardAddress(),
		EngineAddress: had.GetEngineAddress(),
		Share:         w.Shares[i],
	}
	if n := p.nodes[had.GetNode()]; n.Usable {
		s.ShardAddress, s.EngineAddress = n.Shard, n.Engine
	}
	if len(w.Shares) == 1 {
		s.ShardAddress = "" // nobody asks a shard: the head has all layers
	}
	return s
}

// reserve keeps the nodes that w names away from replicas that name none.
func (p *planner) reserve(w Want) {
	for _, name := range w.Nodes {
		if p.reserved[name] == "" {
			p.reserved[name] = w.Replica
		}
	}
}

// place finds nodes for a replica that has none.
func (p *planner) place(w Want) (*Replica, *obs.Condition) {
	if w.Backend.GetWeights() == "" && w.Backend.GetKind() != enginepb.Backend_OPENAI {
		return nil, &obs.Condition{
			Code: "no-weights",
			Text: fmt.Sprintf("replica %s is not placed: model %s has no weights", w.Replica, w.Model),
			Next: "set spec.weights of the model to the path of its weights",
		}
	}
	names, why := p.free(w), ""
	if len(w.Nodes) > 0 {
		names, why = p.named(w)
	} else if len(names) < len(w.Shares) {
		why = fmt.Sprintf("it needs %d free %s, and there %s", len(w.Shares), plural(len(w.Shares)), list(names))
	}
	if why != "" {
		return nil, &obs.Condition{
			Code: "not-placed",
			Text: fmt.Sprintf("replica %s is not placed: %s", w.Replica, why),
			Next: "start more nodes, or lower spec.replicas or spec.layout of the model",
		}
	}
	r := &Replica{Want: w, Generation: p.next}
	for i, name := range names[:len(w.Shares)] {
		p.taken[name] = w.Replica
		r.Stages = append(r.Stages, p.stage(w, i, &enginepb.Stage{Node: name}))
	}
	return r, nil
}

// free returns the nodes that a replica may have, by name.
func (p *planner) free(w Want) []string {
	var names []string
	for _, name := range p.names {
		owner := p.reserved[name]
		if p.nodes[name].Usable && p.taken[name] == "" && (owner == "" || owner == w.Replica) {
			names = append(names, name)
		}
	}
	return names
}

// named returns the nodes that w names, or why it can't have them.
func (p *planner) named(w Want) (names []string, why string) {
	var faults []string
	for _, name := range w.Nodes {
		switch {
		case p.taken[name] != "":
			faults = append(faults, fmt.Sprintf("%s serves %s", name, p.taken[name]))
		case !p.nodes[name].Usable:
			faults = append(faults, name+" doesn't report")
		}
	}
	return w.Nodes, strings.Join(faults, ", ")
}

func plural(n int) string {
	if n == 1 {
		return "node"
	}
	return "nodes"
}

func list(names []string) string {
	switch len(names) {
	case 0:
		return "is none"
	case 1:
		return "is only " + names[0]
	default:
		return "are only " + strings.Join(names, ", ")
	}
}
