package fleet

import (
	"fmt"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/auto"
	"millrace.dev/millrace/xds/internal/layout"
	"millrace.dev/millrace/xds/internal/turns"
	"millrace.dev/millrace/xds/internal/weight"
)

// Membership is how an endpoint stands in EDS.
type Membership int

// Memberships of an endpoint.
const (
	// Absent from EDS: gets no request, whoever names it.
	Absent Membership = iota
	// Unhealthy in EDS: gets no new request from the fallback policy, and Envoy's
	// health check continues.
	Unhealthy
	// Leaving is healthy in EDS: it ends, and still answers what comes. It is there only
	// while nobody else serves its model.
	Leaving
	// Healthy in EDS.
	Healthy
)

// Snapshot is the observed state of the whole fleet at one moment. It is not changed
// once it is published.
type Snapshot struct {
	// At is the moment.
	At time.Time
	// Desired is what it was made for; nil: nothing is known of that.
	Desired *desired.State
	// Faults is what keeps what the source has from being Desired.
	Faults []config.Fault
	// Stale is why Desired is a copy of an earlier start's; empty: it is not.
	Stale string
	// Objects has what became of the objects of Desired.
	Objects []Object
	// Settled is whether the snapshot may be pushed: whatever ran when xds
	// started has reported.
	Settled bool
	// Changes grows with each change that is to be pushed at once.
	Changes uint64
	// Endpoints has every replica that has a place and a head that has said its
	// address, in the order of the configuration, and then what somebody else runs.
	Endpoints []Endpoint
	// Nodes has every node, by name.
	Nodes []Node
	// Term is with which the directives are sent; 0: this is the only xds, or doesn't lead.
	Term uint64
	// Directives has what is to be sent to nodes now, by name of the node.
	Directives map[string]*enginepb.Assignment
	// Placed has the nodes of each replica that has a place, by its name, and Waits what
	// each desired one waits for that is not as desired.
	Placed map[string][]string
	Waits  map[string]string
	// Plan is what a plan of layouts is to be made for; nil: none is needed.
	Plan *auto.Input
	// Predicted has what was predicted of replicas whose layout is planned, by name.
	Predicted map[string]auto.Place
	// Unplaced has the desired replicas without a place, in their order.
	Unplaced []Unplaced
	// Awaited says why requests for a model are to wait until it has a place, by the model's
	// name. Waiting is how many do, and Swaps how often a place has gone to another model.
	Awaited map[string]string
	Waiting map[string]turns.Demand
	Swaps   uint64
	// Scaled has the models whose number of replicas follows demand, by name.
	Scaled map[string]Scaled
	// Conditions has what is wrong.
	Conditions []obs.Condition
}

// Endpoint is one replica, or one endpoint that somebody else runs, as the gateway and
// extproc know it.
type Endpoint struct {
	// Address is "ip:port" of the head's API.
	Address string
	// PlainText is whether that API has no TLS, though the mesh has.
	PlainText bool
	// Model and Replica are names.
	Model, Replica string
	// Moves is the replica of which this is left behind until it takes requests elsewhere;
	// empty: it is the replica.
	Moves string
	// Nodes that hold a part of it, the head's first.
	Nodes []string
	// Zone is the head's failure domain.
	Zone string
	// State with its Reason for a person, entered at Since.
	State  fleetpb.EndpointState_State
	Reason string
	Since  time.Time
	// Membership is how it stands in EDS.
	Membership Membership
	// Weight is its weight in EDS.
	Weight uint32
	// Health is the share of normal speed left, 0 to 1.
	Health float64
	// Load and Speed are the head's; nil: unknown.
	Load  *enginepb.Load
	Speed *enginepb.Speed
	// Epoch changes when the head's caches are emptied.
	Epoch uint64
	// Accounts are those of the head's requests that ended in the last seconds.
	Accounts []*enginepb.Account

	// Cache is what is known of the head's KV cache; nil: nothing.
	Cache *enginepb.Cache

	// Foreign is the endpoint if somebody else runs it; nil: it is a replica of ours. One
	// that serves several models is an Endpoint for each, the first of which has First.
	Foreign *Foreign
	First   bool

	// worth is what the weight is made of.
	worth weight.Replica
	// leaves is whether nothing is wrong with it but that some of its nodes leave, closes
	// whether it gets no requests as it is to end.
	leaves, closes bool
}

// Node is one node as people see it.
type Node struct {
	// Name of the node.
	Name string
	// State of its part in a replica with its Reason, entered at Since.
	State  fleetpb.EndpointState_State
	Reason string
	Since  time.Time
	// Weight is that of the replica of which it is the head; 0: not in EDS.
	Weight uint32
	// Last is when Report came.
	Last time.Time
	// Report is the last one.
	Report *fleetpb.NodeReport
	// Drain is how far it is emptied; nil: it is in service. Not changed afterwards.
	Drain *Drain
	// Free is whether a replica could be laid out there now.
	Free bool
}

// standing is what was concluded of a node's part in a replica.
type standing struct {
	verdict
	// since is when the state was entered.
	since time.Time
	// head is the name of the replica of which the node is the head; empty: of none.
	head string
}

// judge concludes the state of each replica and of each node in it.
func (f *Fleet) judge(now time.Time, s *Snapshot) {
	stages := make(map[string]*standing, len(f.stages))
	heads := make(map[string]string, len(f.replicas)) // head's node, by address
	for i := range f.retiring {
		f.judgeRetiring(&f.retiring[i], stages)
	}
	for i := range f.replicas {
		r := &f.replicas[i]
		names := r.Nodes()
		verdicts := make([]verdict, len(names))
		for i, name := range names {
			verdicts[i] = f.nodes[name].judge(now, r, i, f.orders(name))
			stages[name] = &standing{verdict: verdicts[i]}
		}
		e := f.endpoint(now, names, verdicts)
		if e.Address == "" {
			continue // nobody could be sent there
		}
		if other, taken := heads[e.Address]; taken {
			e.State, e.Membership = notReady, Absent
			e.Reason = fmt.Sprintf("%s: its engine claims the address %s of that of %s", names[0], e.Address, other)
		} else {
			heads[e.Address] = names[0]
		}
		e.Model, e.Replica, e.Moves = r.Spec.Model, r.Name(), ""
		if r.Moved {
			e.Moves = r.Spec.Replica
		}
		if why := f.closes(r); why != "" {
			// It stays in EDS until it goes: what extproc has sent there must still arrive.
			e.State, e.leaves, e.closes = notReady, false, true
			e.Reason = why
		}
		e.worth.Capacity = f.capacity(r.Stages, e.Speed.GetDecode())
		head := stages[names[0]]
		head.state, head.reason, head.head = e.State, e.Reason, e.Replica
		s.Endpoints = append(s.Endpoints, e)
	}
	f.judgeForeign(now, heads, s)
	lastResorts(s.Endpoints)
	f.remember(now, s.Endpoints, stages)
}

// lastResorts has replicas that leave serve on where nobody else serves their model: they answer
// for a while yet, which is better than a sure refusal.
func lastResorts(all []Endpoint) {
	served := map[string]bool{}
	for i := range all {
		served[all[i].Model] = served[all[i].Model] || all[i].State != notReady
	}
	for i := range all {
		if e := &all[i]; e.leaves && e.State == notReady && !served[e.Model] {
			e.State, e.Membership = suspect, Leaving
		}
	}
}

// judgeRetiring notes what the nodes do that are to end something.
func (f *Fleet) judgeRetiring(t *layout.Retiring, stages map[string]*standing) {
	for _, name := range t.Nodes {
		if n := f.nodes[name]; n != nil && t.Runs(n.engine.GetAssignment()) {
			reason := "ends " + t.Had.GetReplica() + ", which is not desired there any more"
			stages[n.name] = &standing{verdict: verdict{state: notReady, reason: reason}}
		}
	}
}

// remember keeps what was concluded for the next time, and finds out since when
// each state holds.
func (f *Fleet) remember(now time.Time, endpoints []Endpoint, stages map[string]*standing) {
	known := make(map[string]*Endpoint, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		old := f.endpoints[e.Replica]
		if old == nil {
			old = &Endpoint{}
		}
		e.Since = since(now, old.State == e.State, old.Since)
		known[e.Replica] = old
	}
	for name, st := range stages {
		old := f.stages[name]
		st.since = now
		if old != nil {
			st.since = since(now, old.state == st.state, old.since)
		}
	}
	if len(known) < len(f.endpoints) {
		f.changes++ // a replica is no more
	}
	f.stages, f.endpoints = stages, known
}

// capacity returns what a replica is worth, in tokens per second; 0: unknown.
func (f *Fleet) capacity(stages []*enginepb.Stage, decode float64) float64 {
	parts := make([]weight.Stage, len(stages))
	for i, s := range stages {
		parts[i].Share = float64(s.GetShare())
		if n := f.nodes[s.GetNode()]; n != nil {
			parts[i].Capacity = n.report.GetTelemetry().GetCapacity()
		}
	}
	return weight.Capacity(parts, decode)
}

// since returns when a state was entered that may have stayed the same.
func since(now time.Time, same bool, before time.Time) time.Time {
	if same {
		return before
	}
	return now
}

// endpoint concludes the state of a replica from its nodes, the head's first. It
// is as good as its worst node, with one exception: when only the agent of
// another node than the head's is away, the head, which watches that node's
// engine itself, vouches for it.
func (f *Fleet) endpoint(now time.Time, names []string, verdicts []verdict) Endpoint {
	head := f.nodes[names[0]]
	e := Endpoint{
		State: ready, Nodes: names, Health: 1, leaves: true,
		Membership: Healthy, worth: weight.Replica{Health: 1, Freshness: 1},
	}
	if head != nil {
		e.Address, e.PlainText = head.engine.GetHttpAddress(), head.engine.GetHttpPlainText()
		e.Zone = head.report.GetZone()
		e.Load, e.Speed, e.Epoch, e.Cache = head.engine.GetLoad(), head.engine.GetSpeed(), head.engine.GetEpoch(), head.cache
		e.Accounts = head.engine.GetAccounts()
	}
	for i, v := range verdicts {
		if i > 0 && verdicts[0].state != notReady {
			v = f.vouched(now, names[i], v)
		}
		if v.state > e.State {
			e.State, e.Reason = v.state, names[i]+": "+v.reason
		}
		e.leaves = e.leaves && (v.leaves || v.state != notReady)
		e.worth.Freshness = min(e.worth.Freshness, v.freshness)
		if n := f.nodes[names[i]]; n != nil {
			h, _ := weight.Health(n.report.GetTelemetry())
			e.Health = min(e.Health, h)
		}
	}
	e.worth.Health = e.Health
	if e.State == notReady {
		e.Membership = Absent
		if verdicts[0].stuck {
			e.Membership = Unhealthy
		}
	}
	return e
}

// vouched returns the verdict over a node that is not a head while the head says
// that all is well: silence of the node's agent only lowers the weight.
func (f *Fleet) vouched(now time.Time, name string, v verdict) verdict {
	since, silent := f.start, true
	if n := f.nodes[name]; n != nil {
		since, silent = n.silentSince(now)
	}
	if !silent || v.state != notReady || v.ordered {
		return v
	}
	freshness := max(vouchedFreshness, weight.Freshness(now.Sub(since)))
	return verdict{state: suspect, reason: v.reason, freshness: freshness}
}
