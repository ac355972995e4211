package layout

import (
	"cmp"
	"slices"
	"strings"

	"millrace.dev/millrace/engine/enginepb"
)

// Observe returns what the nodes run as a plan that changes nothing: that of an xds that
// does not lead. It depends on the nodes' reports alone, so that every xds serves the
// same, whatever the leading one is about to do. The previous plan is not read.
func Observe(in Input) Plan {
	p := newPlanner(Input{Specs: in.Specs, Nodes: in.Nodes, Now: in.Now})
	groups := p.groups()
	plan := Plan{Waits: make(map[string]string)}
	var others []Replica
	for _, spec := range in.Specs {
		of := groups[spec.Replica]
		delete(groups, spec.Replica)
		if len(of) == 0 {
			const why = "no node runs it"
			plan.Waits[spec.Replica] = why
			plan.Unplaced = append(plan.Unplaced, Unplaced{Replica: spec.Replica, Model: spec.Model, Why: why, next: "see /readyz of the xds that holds the lease"})
			continue
		}
		plan.Replicas = append(plan.Replicas, of[0])
		for _, r := range of[1:] {
			if r.Leaving, r.Moved = true, true; p.answers(spec.Replica, r.Assignment(0)) {
				others = append(others, r)
			}
		}
	}
	for name, of := range groups {
		for i, r := range of {
			if r.Leaving, r.Moved = true, i > 0; p.answers(name, r.Assignment(0)) {
				others = append(others, r)
			}
		}
	}
	slices.SortFunc(others, func(a, b Replica) int { return strings.Compare(a.Name(), b.Name()) })
	plan.Replicas = append(plan.Replicas, others...)
	return plan
}

// groups returns what runs by the name of the replica: what takes requests first, then
// by version, the latest first.
func (p *planner) groups() map[string][]Replica {
	type key struct{ replica, nodes string }
	of := func(a *enginepb.Assignment) key {
		return key{a.GetReplica(), strings.Join(nodesOf(a.GetStages()), " ")}
	}
	latest := make(map[key]*enginepb.Assignment)
	for _, name := range p.names {
		a := p.nodes[name].Running
		if n := p.nodes[name]; a == nil || n.Lost {
			continue
		}
		if known := latest[of(a)]; known == nil || known.Version().Compare(a.Version()) < 0 {
			latest[of(a)] = a
		}
	}
	all := make(map[string][]Replica)
	for k, a := range latest {
		broken := slices.ContainsFunc(a.GetStages(), func(s *enginepb.Stage) bool {
			n, known := p.nodes[s.GetNode()]
			return known && n.Running != nil && of(n.Running) != k || n.Lost
		})
		if !broken {
			all[k.replica] = append(all[k.replica], Replica{Spec: specOf(a), Version: a.Version(), Stages: a.GetStages()})
		}
	}
	for name, of := range all {
		up := func(r Replica) int {
			switch a := r.Assignment(0); {
			case p.up(name, a):
				return 0
			case p.answers(name, a):
				return 1
			}
			return 2
		}
		slices.SortFunc(of, func(a, b Replica) int {
			return cmp.Or(cmp.Compare(up(a), up(b)), b.Version.Compare(a.Version), strings.Compare(a.Stages[0].GetNode(), b.Stages[0].GetNode()))
		})
	}
	return all
}
