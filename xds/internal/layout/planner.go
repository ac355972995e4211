package layout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
)

// planner is the state of one Make.
type planner struct {
	in Input
	// names of all nodes, sorted.
	names []string
	// nodes by name.
	nodes map[string]Node
	// specs by the replica's name.
	specs map[string]Spec
	// had has the assignment in force of each replica, by its name: that of the plan in
	// force, or else what its nodes run.
	had map[string]*enginepb.Assignment
	// planned has the replicas of the plan in force.
	planned map[string]bool
	// refused has what an engine has refused to run in place of it, by replica, and why
	// its reason.
	refused map[string]*enginepb.Assignment
	why     map[string]string
	// refusedBy has a replica of each model whose engine refuses a change.
	refusedBy map[string]string
	// taken has the replica of each node that has one, by the node's name.
	taken map[string]string
	// reserved has the replica that names a node of its own, by the node's name.
	reserved map[string]string
	// next is the version for what is new.
	next enginepb.Version
	// ending has what is to end by the plan in force, by replica.
	ending map[string][]Retiring
	// moved are of the plan in force, or found running, what is left behind of replicas
	// that move.
	moved []Replica
	// busy has a replica of each model that is on its way up, as far as it is known.
	busy map[string]string

	// placed has the replicas in force, by the index of their spec; nil: it has none.
	placed []*Replica
	// faults has why a replica has no place that was nowhere; nil: it was somewhere.
	faults []*Unplaced
	// changes are the replicas in force that are to change, in the order of the specs.
	changes []edit
	// leaving are in force and not desired.
	leaving  []*Replica
	outgoing []*Replica // that have moved and are kept
	retiring []Retiring
	waits    map[string]string
	unplaced []Unplaced
	// parked has the replicas that wait for nothing but what a person does about a node
	// that leaves: nobody waits for them.
	parked map[string]bool
}

// edit is a replica in force that is not as desired.
type edit struct {
	// spec is the index of its spec.
	spec int
	// from is what is in force.
	from *Replica
	// to is what it is to become on the nodes that it has; nil: it has to leave them.
	to *Replica
}

func newPlanner(in Input) *planner {
	p := &planner{
		in:        in,
		nodes:     make(map[string]Node, len(in.Nodes)),
		specs:     make(map[string]Spec, len(in.Specs)),
		had:       make(map[string]*enginepb.Assignment, len(in.Specs)),
		planned:   make(map[string]bool, len(in.Specs)),
		refused:   make(map[string]*enginepb.Assignment),
		why:       make(map[string]string),
		refusedBy: make(map[string]string),
		taken:     make(map[string]string, len(in.Nodes)),
		reserved:  make(map[string]string),
		ending:    make(map[string][]Retiring),
		busy:      make(map[string]string),
		next:      enginepb.Version{Epoch: in.Last.Epoch, Generation: max(in.Last.Generation+1, uint64(max(1, in.Now.UnixMicro())))},
		placed:    make([]*Replica, len(in.Specs)),
		faults:    make([]*Unplaced, len(in.Specs)),
		waits:     make(map[string]string),
		parked:    make(map[string]bool),
	}
	for _, n := range in.Nodes {
		p.names = append(p.names, n.Name)
		p.nodes[n.Name] = n
	}
	slices.Sort(p.names)
	for _, s := range in.Specs {
		p.specs[s.Replica] = s
	}
	for _, t := range in.Previous.Retiring {
		p.ending[t.Had.GetReplica()] = append(p.ending[t.Had.GetReplica()], t)
	}
	p.inForce()
	p.keepMissing()
	p.carry()
	return p
}

// inForce finds the assignment in force of each replica.
func (p *planner) inForce() {
	for _, r := range p.in.Previous.Replicas {
		if r.Moved {
			p.moved = append(p.moved, r)
			continue
		}
		name, a := r.Spec.Replica, r.Assignment(0)
		p.had[name], p.planned[name] = a, true
		head := p.nodes[a.GetStages()[0].GetNode()]
		if no := r.Refused; no != nil && (!head.Usable || head.Refused == no.Version()) {
			p.refused[name] = no // else the engine is another one, and may take it
		}
		if head.Refused == a.Version() {
			p.refused[name] = a
			if head.Running.GetReplica() == name {
				p.had[name] = head.Running
			}
		}
		if head.Refused != (enginepb.Version{}) && head.Refused == p.refused[name].Version() {
			p.why[name] = head.RefusedWhy
		}
	}
	running := make(map[string]*enginepb.Assignment)
	for _, name := range p.names {
		a := p.nodes[name].Running
		if a == nil || p.ends(a) {
			continue
		}
		// Nodes of one replica may be at different versions: the latest one holds.
		if known := running[a.GetReplica()]; known == nil || known.Version().Compare(a.Version()) < 0 {
			running[a.GetReplica()] = a
		}
	}
	for name, a := range running {
		if p.had[name] == nil {
			p.had[name] = a
		}
	}
	p.findMoved()
}

// keepMissing has planned replicas without a place stay what they are where they run.
func (p *planner) keepMissing() {
	for i, spec := range p.in.Specs {
		if had := p.had[spec.Replica]; spec.Missing != "" && had != nil {
			p.in.Specs = slices.Clone(p.in.Specs)
			kept := specOf(had)
			kept.Planned, kept.Missing = true, spec.Missing
			p.in.Specs[i], p.specs[spec.Replica] = kept, kept
		}
	}
}

// ends reports whether the assignment is to end by the plan in force.
func (p *planner) ends(a *enginepb.Assignment) bool {
	return slices.ContainsFunc(p.ending[a.GetReplica()], func(t Retiring) bool { return t.Runs(a) })
}

// carry takes over what is to end and still runs. What is desired again, and runs on
// all of its nodes, goes back into force under a new version.
func (p *planner) carry() {
	for _, t := range p.in.Previous.Retiring {
		name := t.Had.GetReplica()
		var left []string
		for _, n := range t.Nodes {
			if n := p.nodes[n]; !n.Lost && t.Runs(n.Running) {
				left = append(left, n.Name)
			}
		}
		if len(left) == 0 {
			continue
		}
		if spec, desired := p.specs[name]; desired && p.had[name] == nil && len(left) == len(t.Had.GetStages()) && p.stays(spec, t.Had) {
			if back := p.at(spec, t.Had).Assignment(0); enginepb.SameProcess(back, t.Had) {
				back.ControlEpoch, back.Generation = p.next.Epoch, p.next.Generation
				p.had[name], p.planned[name] = back, true
				continue
			}
		}
		t.Nodes = left
		p.retiring = append(p.retiring, t)
		for _, n := range left {
			p.taken[n] = name
		}
	}
}

// adopt keeps the desired replicas where they are, and notes which are to change:
// those of the plan in force, or those that are only found running.
func (p *planner) adopt(planned bool) {
	for i, spec := range p.in.Specs {
		had := p.had[spec.Replica]
		if p.planned[spec.Replica] != planned || had == nil {
			continue
		}
		if !planned && p.stale(had) || !p.take(spec.Replica, had) {
			delete(p.had, spec.Replica)
			continue
		}
		if spec.Missing != "" {
			p.park(spec, spec.Missing)
		}
		var to *Replica
		if p.stays(spec, had) {
			to = p.at(spec, had)
			if p.refused[spec.Replica] == nil && equal(to.Assignment(0), had) && !p.overtaken(had) {
				p.placed[i] = to // as nearly always
				continue
			}
		}
		kept := &Replica{Spec: specOf(had), Version: had.Version(), Stages: had.GetStages()}
		p.placed[i] = kept
		if to == nil {
			p.changes = append(p.changes, edit{spec: i, from: kept})
			continue
		}
		no := p.refused[spec.Replica]
		switch a := to.Assignment(0); {
		case equal(a, had) && !p.overtaken(had):
			p.placed[i] = to
			if no != nil && no.Version() == had.Version() { // and it runs nothing else
				p.waits[spec.Replica] = "its engine refuses it: " + p.why[spec.Replica]
			}
		case no != nil && equal(a, no):
			kept.Refused = no
			p.refusedBy[spec.Model] = spec.Replica
			p.waits[spec.Replica] = "its engine refuses it: " + p.why[spec.Replica]
		case enginepb.SameProcess(a, had):
			to.Version = p.next
			p.placed[i] = to
		default:
			p.changes = append(p.changes, edit{spec: i, from: kept, to: to})
		}
	}
}

// adoptLeaving keeps what is not desired any more in force as long as it takes
// requests: its turn to end comes after what is desired has changed.
func (p *planner) adoptLeaving() {
	var names []string
	for name := range p.had {
		if _, desired := p.specs[name]; !desired {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		had := p.had[name]
		if !p.answers(name, had) || !p.take(name, had) {
			continue
		}
		p.leaving = append(p.leaving, &Replica{Spec: specOf(had), Version: had.Version(), Stages: had.GetStages(), Leaving: true})
	}
}

// take gives the nodes of an assignment to its replica; false: it can't stay there.
func (p *planner) take(name string, a *enginepb.Assignment) bool {
	seen := make(map[string]bool, len(a.GetStages()))
	for _, s := range a.GetStages() {
		n := s.GetNode()
		if seen[n] || p.taken[n] != "" || p.nodes[n].Lost {
			return false
		}
		seen[n] = true
	}
	for n := range seen {
		p.taken[n] = name
	}
	return true
}

// stale reports whether a node of an assignment has a part in a later one of another
// replica: what the rest of its nodes still run is nothing any more.
func (p *planner) stale(a *enginepb.Assignment) bool {
	return slices.ContainsFunc(a.GetStages(), func(s *enginepb.Stage) bool {
		r := p.nodes[s.GetNode()].Running
		return r.Version().Compare(a.Version()) > 0 && r.GetReplica() != a.GetReplica() &&
			slices.Contains(nodesOf(r.GetStages()), s.GetNode())
	})
}

// overtaken reports whether a node of an assignment has taken a later one, or the same
// version with another content, so that it would refuse this one.
func (p *planner) overtaken(a *enginepb.Assignment) bool {
	for i, s := range a.GetStages() {
		n := p.nodes[s.GetNode()]
		if n.Version.After(a.Version()) || n.Version == a.Version() && !runs(n.Running, a, i) {
			return true
		}
	}
	return false
}

// runs reports whether what a node runs is its stage of an assignment.
func runs(running, a *enginepb.Assignment, stage int) bool {
	return running.GetModel() == a.GetModel() && running.GetReplica() == a.GetReplica() && int(running.GetStage()) == stage && equal(running, a)
}

// drop takes a replica out of force: its nodes are free once they run nothing.
func (p *planner) drop(r *Replica) {
	for _, n := range r.Nodes() {
		delete(p.taken, n)
	}
	p.leaving = slices.DeleteFunc(p.leaving, func(l *Replica) bool { return l == r })
	for i := range p.placed {
		if p.placed[i] == r {
			p.placed[i] = nil
		}
	}
}

// stays reports whether what is desired can be had on the nodes of an assignment.
func (p *planner) stays(spec Spec, had *enginepb.Assignment) bool {
	return had.GetModel() == spec.Model && len(had.GetStages()) == len(spec.Shares) &&
		(len(spec.Nodes) == 0 || slices.Equal(spec.Nodes, nodesOf(had.GetStages())))
}

// at returns what is desired on the nodes of an assignment, at its version.
func (p *planner) at(spec Spec, had *enginepb.Assignment) *Replica {
	r := &Replica{Spec: spec, Version: had.Version()}
	for i, s := range had.GetStages() {
		r.Stages = append(r.Stages, p.stage(spec, i, s))
	}
	return r
}

// specOf returns what an assignment runs as if it was desired.
func specOf(a *enginepb.Assignment) Spec {
	s := Spec{Model: a.GetModel(), Replica: a.GetReplica(), Backend: a.GetBackend()}
	for _, stage := range a.GetStages() {
		s.Shares = append(s.Shares, stage.GetShare())
	}
	return s
}

// equal reports whether two assignments of one replica differ at most in version
// and stage.
func equal(a, b *enginepb.Assignment) bool {
	return proto.Equal(a.GetBackend(), b.GetBackend()) &&
		slices.EqualFunc(a.GetStages(), b.GetStages(), func(a, b *enginepb.Stage) bool { return proto.Equal(a, b) })
}

// stage returns stage i of a replica on the node of had, at the node's present
// addresses; those of had where the node hasn't reported.
func (p *planner) stage(spec Spec, i int, had *enginepb.Stage) *enginepb.Stage {
	s := &enginepb.Stage{
		Node:          had.GetNode(),
		ShardAddress:  had.GetShardAddress(),
		EngineAddress: had.GetEngineAddress(),
		Share:         spec.Shares[i],
	}
	if n := p.nodes[had.GetNode()]; n.Usable {
		s.ShardAddress, s.EngineAddress = n.Shard, n.Engine
	}
	if len(spec.Shares) == 1 {
		s.ShardAddress = "" // nobody asks a shard: the head has all layers
	}
	return s
}

// up reports whether all nodes of a replica were READY with it when last seen, and none
// of them leaves.
func (p *planner) up(name string, a *enginepb.Assignment) bool {
	return p.answers(name, a) && !slices.ContainsFunc(a.GetStages(), func(s *enginepb.Stage) bool { return !p.nodes[s.GetNode()].Ready })
}

// answers reports whether all nodes of a replica answer with it, though some may leave: it
// is its model's last resort.
func (p *planner) answers(name string, a *enginepb.Assignment) bool {
	for _, s := range a.GetStages() {
		n := p.nodes[s.GetNode()]
		runs := n.Running.GetReplica() == name && (n.Running.Version() == a.Version() || enginepb.SameProcess(n.Running, a))
		if n.Lost || !n.Ready && !n.Answers || !runs {
			return false
		}
	}
	return len(a.GetStages()) > 0
}

// alive reports whether all of these nodes report now.
func (p *planner) alive(stages []*enginepb.Stage) bool {
	return !slices.ContainsFunc(stages, func(s *enginepb.Stage) bool { return !p.nodes[s.GetNode()].Usable })
}

// retireStrays ends what nodes run that is not in force.
func (p *planner) retireStrays() {
	strays := make(map[string]*Retiring) // by replica and its nodes
	for _, name := range p.names {
		n := p.nodes[name]
		a := n.Running
		if a == nil || n.Lost || p.taken[name] != "" {
			continue
		}
		key := a.GetReplica() + " " + strings.Join(nodesOf(a.GetStages()), " ")
		t := strays[key]
		if t == nil {
			t = &Retiring{Had: a, Version: p.next}
			strays[key] = t
		}
		if t.Nodes = append(t.Nodes, name); t.Had.Version().Compare(a.Version()) < 0 {
			t.Had = a
		}
	}
	for _, name := range slices.Sorted(maps.Keys(strays)) {
		p.retiring = append(p.retiring, *strays[name])
	}
}

// reserve keeps the nodes that a replica names, and doesn't have, from others.
func (p *planner) reserve(spec Spec) {
	for _, name := range spec.Nodes {
		if p.reserved[name] == "" {
			p.reserved[name] = spec.Replica
		}
	}
}

// placeNew finds nodes for the desired replicas that are nowhere, before others change:
// they may be needed meanwhile.
func (p *planner) placeNew() {
	for i, spec := range p.in.Specs {
		if p.placed[i] == nil {
			p.reserve(spec)
		}
	}
	for _, c := range p.changes {
		if c.to == nil {
			p.reserve(p.in.Specs[c.spec])
		}
	}
	for i, spec := range p.in.Specs {
		if p.placed[i] == nil {
			p.placed[i], p.faults[i] = p.place(spec)
		}
	}
}

// placeAll finds nodes for the desired replicas that have none.
func (p *planner) placeAll() {
	for i, spec := range p.in.Specs {
		if p.placed[i] != nil {
			continue
		}
		var why *Unplaced
		if p.placed[i], why = p.place(spec); why != nil {
			why = cmp.Or(p.faults[i], why)
			p.waits[spec.Replica] = why.Why
			p.unplaced = append(p.unplaced, *why)
			p.demand(spec)
		}
	}
}

// place finds nodes for a replica that has none.
func (p *planner) place(spec Spec) (*Replica, *Unplaced) {
	if spec.Backend.GetWeights() == "" && spec.Backend.GetKind() != enginepb.Backend_OPENAI {
		return nil, &Unplaced{
			Replica: spec.Replica, Model: spec.Model, Why: fmt.Sprintf("model %s has no weights", spec.Model),
			code: "no-weights", next: "set spec.weights of the model to the path of its weights",
		}
	}
	if spec.Missing != "" {
		return nil, &Unplaced{
			Replica: spec.Replica, Model: spec.Model, Why: spec.Missing,
			next: "add nodes or memory, lower replicas, contextTokens or slots of the model, or take smaller weights; millrace plan shows what fits",
		}
	}
	names, why := p.free(spec), ""
	if len(spec.Nodes) > 0 {
		names, why = p.named(spec)
	} else if len(names) < len(spec.Shares) {
		why = fmt.Sprintf("it needs %d free %s, and there %s", len(spec.Shares), plural(len(spec.Shares)), list(names))
	}
	if why != "" {
		return nil, &Unplaced{Replica: spec.Replica, Model: spec.Model, Why: why}
	}
	r := &Replica{Spec: spec, Version: p.next}
	for i, name := range names[:len(spec.Shares)] {
		p.taken[name] = spec.Replica
		r.Stages = append(r.Stages, p.stage(spec, i, &enginepb.Stage{Node: name}))
	}
	return r, nil
}

// free returns the nodes that a replica may have, by name.
func (p *planner) free(spec Spec) []string {
	var names []string
	for _, name := range p.names {
		owner, n := p.reserved[name], p.nodes[name]
		if n.Usable && n.Cordoned == "" && n.Running == nil && p.taken[name] == "" && (owner == "" || owner == spec.Replica) {
			names = append(names, name)
		}
	}
	return names
}

// named returns the nodes that spec names, or why it can't have them.
func (p *planner) named(spec Spec) (names []string, why string) {
	var faults []string
	for _, name := range spec.Nodes {
		switch n := p.nodes[name]; {
		case p.taken[name] != "":
			faults = append(faults, fmt.Sprintf("%s serves %s", name, p.taken[name]))
		case n.Cordoned != "":
			faults = append(faults, name+" is not to be used: "+n.Cordoned)
		case !n.Usable:
			faults = append(faults, name+" doesn't report")
		case n.Running != nil:
			faults = append(faults, fmt.Sprintf("%s still runs %s", name, n.Running.GetReplica()))
		}
	}
	return spec.Nodes, strings.Join(faults, ", ")
}

// plan returns what was decided.
func (p *planner) plan() Plan {
	plan := Plan{Retiring: p.retiring, Waits: p.waits, Unplaced: p.unplaced}
	for _, r := range slices.Concat(p.placed, p.leaving, p.outgoing) {
		if r != nil {
			plan.Replicas = append(plan.Replicas, *r)
		}
	}
	return plan
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
