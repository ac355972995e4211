package layout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// change carries out what may be changed now.
func (p *planner) change() {
	// What takes no requests may be changed at any time: an undo must get through to
	// what the change before it has broken.
	later := p.changes[:0:0]
	for _, c := range p.changes {
		switch r := c.from; {
		case !p.answers(r.Spec.Replica, r.Assignment(0)):
			p.apply(c)
		case c.to != nil && !p.up(r.Spec.Replica, r.Assignment(0)):
			p.park(p.in.Specs[c.spec], "changes when its nodes don't leave any more: as it is it is the last resort of "+r.Spec.Model)
		default:
			later = append(later, c)
		}
	}
	// What takes requests is taken down one at a time, in order. A replica that has to
	// leave its nodes does so when the others are there.
	for _, c := range later {
		if p.placed[c.spec] != c.from {
			continue // it was in the way of one before it
		}
		spec := p.in.Specs[c.spec]
		why := ""
		if c.to == nil {
			why = p.away(spec)
		}
		if why == "" {
			why = p.blocked(spec)
		}
		if why == "" {
			p.apply(c)
		} else {
			p.waits[spec.Replica] = why
		}
	}
	p.letGo()
}

// apply changes a replica, or takes it out of force, so that it is placed anew.
func (p *planner) apply(c edit) {
	if p.alive(c.from.Stages) {
		p.busy[p.in.Specs[c.spec].Model] = p.in.Specs[c.spec].Replica
	}
	switch {
	case c.to == nil && p.outruns(c):
		p.leaveBehind(c.from)
		p.placed[c.spec] = nil
		return
	case c.to == nil:
		p.drop(c.from)
		return
	}
	c.to.Version = p.next
	p.placed[c.spec] = c.to
}

// blocked returns why a replica that takes requests may not be taken down now; empty:
// it may.
func (p *planner) blocked(spec Spec) string {
	if name := cmp.Or(p.busy[spec.Model], p.moving(spec.Model, spec.Replica)); name != "" && name != spec.Replica {
		p.busy[spec.Model] = name
		return fmt.Sprintf("waits until %s, which was changed before it, takes requests", name)
	}
	if name := p.refusedBy[spec.Model]; name != "" {
		return fmt.Sprintf("waits for %s, whose engine refuses its new assignment", name)
	}
	others, rest := p.in.Others[spec.Model], 0
	for i, r := range p.placed {
		if r == nil || r.Spec.Model != spec.Model || p.in.Specs[i].Replica == spec.Replica || !p.alive(r.Stages) {
			continue
		}
		rest++
		if p.up(r.Spec.Replica, r.Assignment(0)) {
			others++
		}
	}
	for _, r := range p.leaving {
		if r.Spec.Model == spec.Model && p.alive(r.Stages) {
			others++
		}
	}
	if others == 0 && rest > 0 {
		return "waits until another replica of " + spec.Model + " takes requests"
	}
	return ""
}

// moving returns a replica of the model, but not that one, which a change has taken
// down and which is on its way up; empty: there is none. One whose nodes don't report
// is not waited for.
func (p *planner) moving(model, but string) string {
	for i, spec := range p.in.Specs {
		if spec.Model != model || spec.Replica == but {
			continue
		}
		r := p.placed[i]
		switch {
		case r == nil && slices.ContainsFunc(p.retiring, func(t Retiring) bool { return t.Had.GetReplica() == spec.Replica }):
			return spec.Replica
		case r == nil && p.had[spec.Replica] != nil && !p.retired(spec.Replica):
			return spec.Replica // it is taken down by this plan
		case r != nil && p.alive(r.Stages) && !p.up(spec.Replica, r.Assignment(0)):
			return spec.Replica
		}
	}
	return ""
}

// retired reports whether nothing of the replica runs any more.
func (p *planner) retired(name string) bool {
	for _, n := range p.nodes {
		if n.Running.GetReplica() == name && !n.Lost {
			return false
		}
	}
	return true
}

// away returns why a replica that has to leave its nodes can't have others yet; empty:
// it can. Who is in its way and has to leave, too, does so first.
func (p *planner) away(spec Spec) string {
	var faults []string
	if len(spec.Nodes) > 0 {
		for _, name := range spec.Nodes {
			switch holder := p.taken[name]; {
			case holder == spec.Replica:
			case holder != "":
				faults = append(faults, name+" serves "+holder)
				p.yield(holder, false)
			case !p.nodes[name].Usable:
				faults = append(faults, name+" doesn't report")
			}
		}
		return strings.Join(faults, ", ")
	}
	names := p.free(spec)
	for name, holder := range p.taken {
		if holder == spec.Replica && p.nodes[name].Usable {
			names = append(names, name)
		}
	}
	if len(names) >= len(spec.Shares) {
		return ""
	}
	for _, r := range slices.Clone(p.leaving) {
		p.yield(r.Spec.Replica, false)
	}
	slices.Sort(names)
	return fmt.Sprintf("it needs %d %s, and there %s", len(spec.Shares), plural(len(spec.Shares)), list(names))
}

// demand takes down who is in the way of a desired replica that has no place: what is
// not desired, and what has to leave a node that it names, or a node at all if it is
// of the same model.
func (p *planner) demand(spec Spec) {
	for _, name := range spec.Nodes {
		if holder := p.taken[name]; holder != "" {
			p.yield(holder, true)
		}
	}
	if len(spec.Nodes) > 0 {
		return
	}
	for _, r := range slices.Clone(p.leaving) {
		p.yield(r.Spec.Replica, true)
	}
	for _, c := range p.changes {
		if r := c.from; r == p.placed[c.spec] && c.to == nil && r.Spec.Model == spec.Model && len(p.free(spec))+len(r.Stages) >= len(spec.Shares) {
			p.yield(r.Spec.Replica, true)
		}
	}
}

// yield takes a replica out of force that is not desired, or has to leave its nodes;
// any other stays. Unless it must, one that takes requests waits for its turn.
func (p *planner) yield(name string, must bool) {
	for _, r := range slices.Clone(p.leaving) {
		if r.Spec.Replica == name && (p.in.Published || p.desires(r.Spec.Model)) {
			p.drop(r)
		}
	}
	for _, c := range p.changes {
		r := c.from
		if c.to == nil && r == p.placed[c.spec] && r.Spec.Replica == name && (must || p.blocked(p.in.Specs[c.spec]) == "") {
			p.apply(c)
		}
	}
}

// desires reports whether a replica of the model is desired.
func (p *planner) desires(model string) bool {
	return slices.ContainsFunc(p.in.Specs, func(s Spec) bool { return s.Model == model })
}

// letGo ends the replicas that are not desired any more, once the others of their
// model are as desired and one of them takes requests; all of them if there is to be
// none.
func (p *planner) letGo() {
	for _, r := range slices.Clone(p.leaving) {
		desired, up := 0, p.in.Others[r.Spec.Model]
		waits := p.moving(r.Spec.Model, "") != ""
		for i, spec := range p.in.Specs {
			if spec.Model != r.Spec.Model {
				continue
			}
			desired++
			waits = waits || p.waits[spec.Replica] != "" && !p.parked[spec.Replica]
			if now := p.placed[i]; now != nil && p.answers(spec.Replica, now.Assignment(0)) && (p.alive(now.Stages) || !p.up(spec.Replica, now.Assignment(0))) {
				up++
			}
		}
		if desired == 0 && p.in.Published || desired > 0 && up > 0 && !waits {
			p.drop(r)
		}
	}
}
