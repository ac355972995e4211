package fleet

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/internal/layout"
	"millrace.dev/millrace/xds/internal/turns"
)

const (
	// demandFor is how long a report of demand holds.
	demandFor = 5 * time.Second
	// closedFor is how long a replica has been closed until a report of its node shows that
	// nothing comes any more: what gateways had sent before they knew has arrived.
	closedFor = 300 * time.Millisecond
)

// Demanded is the requests that an extproc keeps because their models have no place. It
// replaces the one before of the same stream; without models it ends it.
type Demanded struct {
	// Stream is the number of the stream.
	Stream uint64
	// Models is by name. Queued are those that wait as all endpoints of their model are busy.
	Models, Queued map[string]turns.Demand
}

func (Demanded) event() {}

// demanded takes it in.
func (f *Fleet) demanded(now time.Time, ev Demanded) {
	if len(ev.Models)+len(ev.Queued) == 0 || f.desired.State == nil {
		delete(f.demand, ev.Stream)
		return
	}
	known := func(all map[string]turns.Demand) map[string]turns.Demand {
		of := map[string]turns.Demand{}
		for _, m := range f.desired.State.Models {
			if d, ok := all[m.Name]; ok {
				of[m.Name] = d
			}
		}
		return of
	}
	f.demand[ev.Stream] = demand{known(ev.Models), known(ev.Queued), now}
}

// demand is what one extproc has reported, and when.
type demand struct {
	models, queued map[string]turns.Demand
	at             time.Time
}

// waited adds up what extprocs keep waiting, by model.
func (f *Fleet) waited(now time.Time) map[string]turns.Demand {
	all := map[string]turns.Demand{}
	for stream, d := range f.demand {
		if now.Sub(d.at) >= demandFor {
			delete(f.demand, stream)
			continue
		}
		addUp(all, d.models)
	}
	return all
}

// queued adds up what waits in extprocs, by model, for whatever it does: what is waited, and more.
func (f *Fleet) queued(waited map[string]turns.Demand) map[string]turns.Demand {
	all := maps.Clone(waited)
	for _, d := range f.demand {
		addUp(all, d.queued)
	}
	return all
}

func addUp(all, more map[string]turns.Demand) {
	for model, one := range more {
		sum := all[model]
		if sum.Waiting == 0 || one.Since.Before(sum.Since) {
			sum.Since = one.Since
		}
		sum.Waiting += one.Waiting
		all[model] = sum
	}
}

// place is what is known of the place of a replica that is loaded on demand.
type place struct {
	turns.Turn
	// wakes is since when its model is being loaded; zero: it isn't.
	wakes time.Time
	// requests is how many its engine had had at the last report; below 0: there was none.
	requests int64
	// away is whether its node does not report.
	away bool
	// closes is the model for which it gives its place up; empty: it keeps it.
	closes string
}

// sharing is how replicas that are loaded on demand share nodes.
type sharing struct {
	// places are by replica; those without a place are kept for how long loading takes.
	places map[string]*place
	// asleep says why a replica has no place, by its name; hopeless has those that can't have
	// one.
	asleep   map[string]string
	hopeless map[string]bool
	// swaps counts the places that were given to another model.
	swaps uint64
}

// share returns the replicas that are to have places now.
func (f *Fleet) share(now time.Time, specs []layout.Spec, nodes []layout.Node) []layout.Spec {
	s := &f.sharing
	s.asleep, s.hopeless = map[string]string{}, map[string]bool{}
	if !slices.ContainsFunc(specs, onDemand) {
		s.places = nil
		return specs
	}
	in := turns.Input{Units: f.units(now, specs, nodes), Demand: f.waited(now), Now: now}
	for _, n := range nodes {
		in.Nodes = append(in.Nodes, turns.Node{Name: n.Name, Usable: n.Usable && n.Cordoned == "", Gone: n.Lost || n.Cordoned != ""})
	}
	var placed []layout.Spec
	for i, p := range turns.Decide(in) {
		spec := specs[i]
		if p.Has {
			placed = append(placed, spec)
		} else {
			s.asleep[spec.Replica], s.hopeless[spec.Replica] = p.Why, p.Hopeless
		}
		if onDemand(spec) {
			s.decided(spec.Replica, p, now)
		}
	}
	return placed
}

func onDemand(s layout.Spec) bool { return s.Backend.GetOnDemand() }

// decided remembers what was decided of a replica.
func (s *sharing) decided(replica string, p turns.Place, now time.Time) {
	at := s.places[replica]
	switch {
	case !p.Has:
		if !at.Placed.IsZero() {
			s.swaps++
		}
		*at = place{Turn: turns.Turn{Load: at.Load}, requests: -1}
		return
	case at.Placed.IsZero():
		at.Placed = now
	}
	if at.Asked, at.closes = p.Asked, p.For; p.For == "" {
		at.Closing, at.Quiet = time.Time{}, false
	} else if at.Closing.IsZero() {
		at.Closing = now
	}
}

// units returns all replicas that are desired with what is known of their places. One whose
// layout is being planned needs as many nodes as it is written to, any; one that has none by
// the plan needs none.
func (f *Fleet) units(now time.Time, specs []layout.Spec, nodes []layout.Node) []turns.Unit {
	lost := map[string]bool{}
	running := map[string]*enginepb.Assignment{} // by replica, the latest
	for _, n := range nodes {
		lost[n.Name] = n.Lost
		if a := n.Running; a != nil && !n.Lost && (running[a.GetReplica()] == nil || a.Version().After(running[a.GetReplica()].Version())) {
			running[a.GetReplica()] = a
		}
	}
	on := map[string][]string{}
	for _, r := range f.replicas {
		if !r.Leaving && !r.Moved {
			on[r.Spec.Replica] = r.Nodes()
		}
	}
	all := make([]turns.Unit, 0, len(specs))
	known := map[string]*place{}
	for _, spec := range specs {
		u := turns.Unit{Model: spec.Model, Replica: spec.Replica, Stages: len(spec.Shares), Nodes: spec.Nodes, OnDemand: onDemand(spec), On: on[spec.Replica]}
		if _, planned := f.auto.results[spec.Model]; spec.Missing != "" {
			if u.Nodes, u.Stages = nil, max(1, u.Stages); planned && len(u.On) == 0 {
				u.Stages = 0
			}
		}
		if a := running[spec.Replica]; a != nil && !f.planned {
			for _, st := range a.GetStages() {
				u.On = append(u.On, st.GetNode())
			}
		}
		if slices.ContainsFunc(u.On, func(n string) bool { return lost[n] }) {
			u.On = nil
		}
		if u.OnDemand {
			p := f.sharing.places[spec.Replica]
			if p == nil {
				p = &place{requests: -1}
			}
			known[spec.Replica] = p
			p.observe(now, f, &u)
			u.Turn = p.Turn
		}
		all = append(all, u)
	}
	f.sharing.places = known
	return all
}

// observe takes in what the head of a replica reports.
func (p *place) observe(now time.Time, f *Fleet, u *turns.Unit) {
	switch {
	case len(u.On) > 0 && p.Placed.IsZero():
		p.Placed = now // it was found running
	case len(u.On) == 0 && !f.planned:
		*p = place{Turn: turns.Turn{Load: p.Load}, requests: -1} // it was a mere plan
	}
	p.Busy, p.Loading, p.Broken, p.away = false, false, false, false
	p.Quiet = !p.Closing.IsZero() && now.Sub(p.Closing) >= closedFor // unless its engine says otherwise
	if len(u.On) == 0 {
		return
	}
	n := f.nodes[u.On[0]]
	if p.away = n == nil || !n.mute.IsZero(); n != nil {
		_, silent := n.silentSince(now)
		p.away = p.away || silent
	}
	if n == nil || n.engine.GetAssignment().GetReplica() != u.Replica || n.engine.GetAssignment().GetStage() != 0 {
		return
	}
	l := n.engine.GetLoad()
	p.Busy = l.GetRunning()+l.GetWaiting() > 0 // not the backend's own metrics: they are up to 10 s old
	total := int64(n.engine.GetTotals().GetRequests())
	if p.Busy || p.requests >= 0 && total != p.requests {
		p.Used = n.last
	}
	p.requests = total
	p.loads(n, now)
	p.Quiet = !p.Closing.IsZero() && !p.Busy && n.last.Sub(p.Closing) >= closedFor
}

// loads takes in whether the model is loaded there.
func (p *place) loads(n *node, now time.Time) {
	unloaded := n.engine.GetLoad().GetWake() != nil
	switch state := n.engine.GetState(); {
	case state == enginepb.State_BROKEN:
		p.Broken, p.wakes = true, time.Time{}
	case state != enginepb.State_READY:
	case unloaded && p.Busy:
		if p.Loading = true; p.wakes.IsZero() {
			p.wakes = now
		}
	case !unloaded && !p.wakes.IsZero():
		p.Load, p.Began, p.wakes = now.Sub(p.wakes), now, time.Time{}
	}
	if p.Began.IsZero() && n.serves() {
		p.Began = now
	}
}

// known reports whether nobody has no place only because nodes have not reported yet; all
// is whether all have that are to.
func (s *sharing) known(all bool) bool { return all || len(s.asleep) == 0 }

// shared returns the replicas that an xds which does not lead expects nodes to run: the one
// that leads decides which these are.
func (f *Fleet) shared(now time.Time, specs []layout.Spec, nodes []layout.Node) []layout.Spec {
	s := &f.sharing
	s.asleep, s.hopeless = map[string]string{}, map[string]bool{}
	if !slices.ContainsFunc(specs, onDemand) {
		return specs
	}
	var all []layout.Spec
	for i, u := range f.units(now, specs, nodes) {
		if u.OnDemand {
			p := s.places[u.Replica]
			p.closes, p.Closing = "", time.Time{}
		}
		if !u.OnDemand || slices.ContainsFunc(nodes, func(n layout.Node) bool { return n.Running.GetReplica() == u.Replica }) {
			all = append(all, specs[i])
		} else {
			s.asleep[u.Replica] = "asleep: its place is held by others"
		}
	}
	return all
}

// closing returns for which model a replica gives its place up; empty: it keeps it.
func (f *Fleet) closing(replica string) string {
	if p := f.sharing.places[replica]; p != nil {
		return p.closes
	}
	return ""
}

// settleSharing says of what layout could not place yet that it is loaded on demand and gets
// a place as soon as one is free, and adds those that can't have one. It returns which
// replicas have no place.
func (f *Fleet) settleSharing(plan *layout.Plan) []Unplaced {
	s := &f.sharing
	plan.Waits = maps.Clone(plan.Waits)
	if plan.Waits == nil {
		plan.Waits = map[string]string{}
	}
	byReplica := map[string]layout.Unplaced{}
	for _, u := range plan.Unplaced {
		byReplica[u.Replica] = u
	}
	plan.Unplaced = nil
	var all []Unplaced
	for _, spec := range f.specs {
		u, unplaced := byReplica[spec.Replica]
		p, why := s.places[spec.Replica], s.asleep[spec.Replica]
		switch {
		case why != "":
			u = layout.Unplaced{Replica: spec.Replica, Model: spec.Model, Why: why}
		case unplaced && p != nil && spec.Backend.GetWeights() != "":
			u.Why = "asleep: it is given a place: " + u.Why
			s.asleep[spec.Replica] = u.Why
		case !unplaced:
			continue
		}
		asleep := s.asleep[spec.Replica] != "" && !s.hopeless[spec.Replica]
		if all = append(all, Unplaced{Replica: u.Replica, Model: u.Model, Why: u.Why, Asleep: asleep}); asleep {
			delete(plan.Waits, spec.Replica)
			continue
		}
		plan.Waits[spec.Replica] = u.Why
		plan.Unplaced = append(plan.Unplaced, u)
	}
	return all
}

// Unplaced is a replica that is desired and has no place on nodes.
type Unplaced struct {
	Replica, Model string
	// Why is for a person. Asleep is whether nothing is wrong with that: it is loaded on
	// demand, and gets a place when requests wait for it.
	Why    string
	Asleep bool
}

// awaited returns what requests for models that are loaded on demand are to wait for while no
// endpoint takes them, by model. Of one that has an endpoint, it says so, too: gateways learn of
// what is to be waited for before the endpoint goes, and until after it has come.
func (f *Fleet) awaited(s *Snapshot) map[string]string {
	if len(f.sharing.places) == 0 && len(f.scaled) == 0 {
		return nil
	}
	fails, why := map[string]bool{}, map[string]string{}
	for _, u := range s.Unplaced {
		if p := f.sharing.places[u.Replica]; p != nil && why[u.Model] == "" && u.Asleep {
			why[u.Model] = u.Why
		}
	}
	for _, e := range s.Endpoints {
		p := f.sharing.places[e.Replica]
		switch {
		case p == nil:
		case p.Broken || p.away: // who waits is to learn why
			fails[e.Model] = true
		case e.State != notReady:
			why[e.Model] = "it has just been given a place"
		case why[e.Model] == "" || p.closes != "":
			why[e.Model] = fmt.Sprintf("%s: %s", e.Replica, e.Reason)
		}
	}
	maps.DeleteFunc(why, func(model, _ string) bool { return fails[model] })
	f.awaitedScaled(s, why)
	return why
}
