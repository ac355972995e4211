package layout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"millrace.dev/millrace/engine/enginepb"
)

// A replica on a cordoned node moves first and leaves then: while it starts elsewhere
// under a new version, what it leaves behind serves on. Where the node leaves, too, that is
// the last resort of its model: it gets requests while no other replica takes any.

// findMoved finds what is left behind that no plan knows: an xds before this one has
// moved it.
func (p *planner) findMoved() {
	for _, name := range p.names {
		n := p.nodes[name]
		a := n.Running
		had := p.had[a.GetReplica()]
		if a == nil || a.GetStage() != 0 || had == nil || had.Version().Compare(a.Version()) <= 0 || p.ends(a) || p.cordoned(a.GetStages()) == "" && !p.specs[a.GetReplica()].Planned {
			continue
		}
		known := slices.ContainsFunc(p.moved, func(r Replica) bool { return r.Stages[0].GetNode() == name })
		if !known && !slices.Equal(nodesOf(had.GetStages()), nodesOf(a.GetStages())) {
			p.moved = append(p.moved, Replica{Spec: specOf(a), Version: a.Version(), Stages: a.GetStages(), Leaving: true, Moved: true})
		}
	}
}

// adoptMoved keeps what is left behind until the replica takes requests where it went.
func (p *planner) adoptMoved() {
	for _, r := range p.moved {
		i := slices.IndexFunc(p.in.Specs, func(s Spec) bool { return s.Replica == r.Spec.Replica })
		if i < 0 || !p.answers(r.Spec.Replica, r.Assignment(0)) {
			continue
		}
		if to := p.placed[i]; to != nil && p.up(to.Spec.Replica, to.Assignment(0)) || !p.take(r.Spec.Replica, r.Assignment(0)) {
			continue
		}
		p.outgoing = append(p.outgoing, &r)
		p.waits[r.Spec.Replica] = "moves away from " + cmp.Or(p.cordoned(r.Stages), strings.Join(r.Nodes(), ", "))
	}
}

// move places replicas anew that are on cordoned nodes and name no nodes. Those that can't
// move stay.
func (p *planner) move() {
	for i, spec := range p.in.Specs {
		r := p.placed[i]
		if r == nil || p.changing(i) {
			continue
		}
		why := p.cordoned(r.Stages)
		if why == "" {
			continue
		}
		if spec.Missing != "" {
			p.park(spec, fmt.Sprintf("must move from %s; %s", why, spec.Missing))
			continue
		}
		if spec.Planned {
			p.park(spec, fmt.Sprintf("must move from %s; its layout is being planned", why))
			continue
		}
		if len(spec.Nodes) > 0 {
			p.park(spec, fmt.Sprintf("can't move from %s, which its spec.layout names: name another node there, or none", why))
			continue
		}
		if free := len(p.free(spec)); free < len(spec.Shares) {
			p.park(spec, fmt.Sprintf("must move from %s; it needs %d free %s, and there %s", why, len(spec.Shares), plural(len(spec.Shares)), list(p.free(spec))))
			continue
		}
		if p.answers(spec.Replica, r.Assignment(0)) {
			p.leaveBehind(r)
			p.waits[spec.Replica] = "moves away from " + why
		} else {
			p.drop(r)
		}
		p.placed[i], _ = p.place(spec)
	}
}

// leaveBehind keeps what a replica has, until it takes requests where it goes.
func (p *planner) leaveBehind(r *Replica) {
	old := *r
	old.Leaving, old.Moved = true, true
	p.outgoing = append(p.outgoing, &old)
}

// outruns reports whether a replica that has to leave its nodes, because one is cordoned or
// others are planned, can start on those first.
func (p *planner) outruns(c edit) bool {
	spec := p.in.Specs[c.spec]
	if p.cordoned(c.from.Stages) == "" && !spec.Planned || !p.answers(spec.Replica, c.from.Assignment(0)) {
		return false
	}
	if len(spec.Nodes) == 0 {
		return len(p.free(spec)) >= len(spec.Shares)
	}
	return !slices.ContainsFunc(c.from.Nodes(), func(n string) bool { return slices.Contains(spec.Nodes, n) })
}

// park notes that a replica stays where it is, and why.
func (p *planner) park(spec Spec, why string) {
	if p.waits[spec.Replica] == "" {
		p.waits[spec.Replica], p.parked[spec.Replica] = why, true
	}
}

// changing reports whether what is in force of a spec is to change.
func (p *planner) changing(spec int) bool {
	return slices.ContainsFunc(p.changes, func(c edit) bool { return c.spec == spec })
}

// cordoned returns which of the stages' nodes is cordoned, and why; empty: none is.
func (p *planner) cordoned(stages []*enginepb.Stage) string {
	for _, s := range stages {
		if why := p.nodes[s.GetNode()].Cordoned; why != "" {
			return fmt.Sprintf("%s (%s)", s.GetNode(), why)
		}
	}
	return ""
}
