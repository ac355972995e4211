// Package fleet holds what xds knows of all nodes and concludes from it which
// replicas exist, which take requests and with what weight. Called by main; its
// snapshots are read by translate and by status.
//
// A node is emptied when Kubernetes cordons it or ends its engine, or when a person drains it;
// the way is the same:
//
//	in service ─ drain ─► draining ─ nothing is left for a second ─► drained
//	     ▲                 │  ▲                                          │
//	     └──── undrain ────┘  └─ a replica there is its model's last ────┤
//	     └──────────────────────── undrain ──────────────────────────────┘
//
// Draining: nothing new is laid out there, and replicas move where there is room, the new one
// first. Where the node leaves (it is drained by a person, or its engine's time is set), its
// replicas take no new requests as long as another endpoint of their model takes some; else
// they serve on: the last resort. What runs ends by itself, and what has moved is released.
// Drained: nothing runs there, and nobody sends anything. What could not move stays loaded,
// so that a model whose other replicas die meanwhile has its last resort, and an undrain
// takes effect at once. Drains are desired state: they come from outside, as Drains and
// ClusterObserved, and all else here follows from what nodes report, over any restart.
//
// Its one rule: Fleet decides and does no I/O. Service, around it, owns the
// streams and the clock, and runs it in one goroutine.
package fleet

import (
	"maps"
	"slices"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/internal/layout"
	"millrace.dev/millrace/xds/internal/weight"
)

const (
	// driftEvery is how often weights that merely drift are pushed, and
	// driftRatio how far they must have moved.
	driftEvery = 500 * time.Millisecond
	driftRatio = 0.05
	// directAgain is how long a directive may take before it is sent again.
	directAgain = time.Second
	// leaveFor is how long an endpoint has been out of EDS before its engine drains:
	// what is sent there meanwhile is answered.
	leaveFor = 250 * time.Millisecond
)

// Fleet is the state of all nodes. Not safe for concurrent use.
type Fleet struct {
	// Constant after New.
	settle time.Duration
	start  time.Time

	// desired is what the source has; without a State nothing is decided.
	desired desired.Published
	specs   []layout.Spec
	// pushed is the version of the desired state that the gateways know.
	pushed uint64
	// refusals says which objects' resources a client refuses, and why.
	refusals map[Key]string

	// leading is whether and since when this xds directs the nodes.
	leading leading
	// last is the version of an assignment that was given out last.
	last enginepb.Version
	// cluster is what Kubernetes says of nodes, by name; nil: it isn't known.
	cluster map[string]ClusterNode
	// drains is why people want nodes to be drained, and draining how far the nodes are that
	// are to be, by name.
	drains   map[string]string
	draining map[string]*Drain

	nodes map[string]*node // by node name
	// foreign are the endpoints that somebody else runs, and foreignAt where each is in it,
	// by address.
	foreign   []*Foreign
	foreignAt map[string]int
	// replicas and retiring are the plan in force.
	replicas []layout.Replica
	retiring []layout.Retiring
	planned  bool
	auto     planning
	settled  bool
	// sharing is how replicas that are loaded on demand share nodes, demand what extprocs keep
	// waiting for them, by the number of the stream.
	sharing sharing
	demand  map[uint64]demand
	// scaled are the models whose number of replicas follows demand, by name, and scaledAt is
	// when that was last decided on.
	scaled   map[string]*scaled
	scaledAt time.Time
	// objects is what became of the objects of the desired state.
	objects []Object
	// endpoints remembers what was concluded of each replica, by its name, and
	// stages what was concluded of each node, by its name.
	endpoints map[string]*Endpoint
	stages    map[string]*standing
	// drifted is when weights were last pushed for drift alone.
	drifted time.Time
	// changes counts the changes that are to be pushed at once.
	changes uint64
}

// New returns a fleet of which nothing is known yet, at the given time. It
// settles once something is desired and everything that was found running has
// reported, at the latest after settle.
func New(settle time.Duration, now time.Time) *Fleet {
	return &Fleet{
		settle:    settle,
		start:     now,
		last:      enginepb.Version{Epoch: enginepb.EpochAt(now.UnixMicro()), Generation: nothing},
		nodes:     make(map[string]*node),
		demand:    make(map[uint64]demand),
		scaled:    make(map[string]*scaled),
		endpoints: make(map[string]*Endpoint),
		stages:    make(map[string]*standing),
		auto:      newPlanning(),
	}
}

// Follower is New for one of several xds: it decides nothing for the nodes until it leads.
func Follower(settle time.Duration, now time.Time) *Fleet {
	f := New(settle, now)
	f.leading.follows = true
	return f
}

// Decide concludes what is true now. Each directive is in one snapshot only, and
// again if it has not been followed for a second.
func (f *Fleet) Decide(now time.Time) *Snapshot {
	f.forget(now)
	f.deposed()
	s := &Snapshot{At: now, Desired: f.desired.State, Faults: f.desired.Faults, Term: f.leading.term, Stale: f.desired.Stale}
	if f.desired.State == nil {
		f.show(now, s)
		return s
	}
	waited := f.waited(now)
	queued := f.queued(waited)
	f.scale(now, queued)
	plan := f.plan(now)
	f.learn(now)
	if f.planned {
		s.Unplaced = f.settleSharing(&plan)
	}
	for _, u := range plan.Unplaced {
		s.Conditions = append(s.Conditions, u.Condition())
	}
	s.Waits, s.Placed = plan.Waits, make(map[string][]string, len(f.replicas))
	for _, r := range f.replicas {
		s.Placed[r.Name()] = r.Nodes()
	}
	f.judge(now, s)
	f.weigh(now, s)
	s.Scaled = f.scaledView(queued)
	s.Awaited, s.Waiting, s.Swaps = f.awaited(s), waited, f.sharing.swaps
	f.settled = f.settled || f.complete(now)
	f.direct(now, s)
	s.Settled, s.Changes = f.settled, f.changes
	f.objects = objects(f.desired, f.refusals, s, f.objects, now)
	f.explainLayouts(f.objects)
	s.Objects, s.Plan, s.Predicted = f.objects, f.ask(now), f.predictions()
	for _, e := range s.Endpoints {
		*f.endpoints[e.Replica] = e
	}
	f.show(now, s)
	return s
}

// Excuse says that xds itself could not run for a while until now: the nodes'
// silence meanwhile says nothing about them.
func (f *Fleet) Excuse(now time.Time, slept time.Duration) {
	for _, n := range f.nodes {
		if n.last = n.last.Add(slept); n.last.After(now) {
			n.last = now
		}
	}
}

// forget drops nodes that have been away for long and have no part in anything.
func (f *Fleet) forget(now time.Time) {
	for name, n := range f.nodes {
		if now.Sub(n.last) >= forgetAfter && f.stages[name] == nil {
			f.drop(name)
		}
	}
}

// drop forgets a node.
func (f *Fleet) drop(name string) {
	f.nodes[name].charge.Free()
	delete(f.nodes, name)
}

// replaceNode forgets the node that has been away for longest, as another one has come; false:
// all that are remembered are there, or have a part in something.
func (f *Fleet) replaceNode() bool {
	oldest := ""
	for name, n := range f.nodes {
		if n.stream == 0 && f.stages[name] == nil && (oldest == "" || n.closed.Before(f.nodes[oldest].closed)) {
			oldest = name
		}
	}
	if oldest == "" {
		return false
	}
	f.drop(oldest)
	return true
}

// plan lays the replicas out. Until the whole layout has its place, nothing is
// decided before settle is over: a node that is a little late must find its
// place free.
func (f *Fleet) plan(now time.Time) layout.Plan {
	nodes := make([]layout.Node, 0, len(f.nodes))
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		nodes = append(nodes, f.nodes[name].asLayout(now, f.orders(name)))
	}
	nodes = append(nodes, f.absent(now)...)
	in := layout.Input{
		Specs: f.resolve(now), Nodes: nodes, Last: f.last, Now: now, Published: f.pushed == f.desired.State.Version,
		Previous: layout.Plan{Replicas: f.replicas, Retiring: f.retiring},
	}
	if f.leading.follows {
		return f.observe(now, in)
	}
	in.Specs = f.share(now, in.Specs, nodes)
	plan := layout.Make(in)
	switch waits := !f.planned && !(plan.Complete() && f.expected() && f.sharing.known(f.cluster != nil)); {
	case waits && f.leading.term > 0 && now.Sub(f.leading.since) < f.settle:
		return f.observe(now, in)
	case waits && now.Sub(f.start) < f.settle:
		return layout.Plan{}
	}
	f.planned, f.replicas, f.retiring = true, plan.Replicas, plan.Retiring
	for _, r := range plan.Replicas {
		f.given(r.Version)
	}
	for _, t := range plan.Retiring {
		f.given(t.Version)
	}
	return plan
}

// given notes that a version is in force, of those that this xds makes.
func (f *Fleet) given(v enginepb.Version) {
	if v.Epoch == f.last.Epoch {
		f.last.Generation = max(f.last.Generation, v.Generation)
	}
}

// met takes in a version that a node has. One that comes after all that this xds has given
// out is nobody's, and what is given out in its epoch would be refused there: the next
// epoch begins. Whatever a node claims costs no other node anything.
func (f *Fleet) met(v enginepb.Version) {
	if v.After(f.last) {
		f.last = enginepb.Version{Epoch: v.Epoch + 1, Generation: nothing}
	}
}

// begin begins another control epoch, as this xds begins to lead.
func (f *Fleet) begin(now time.Time) {
	next := enginepb.EpochAt(now.UnixMicro())
	if next <= f.last.Epoch { // the clock has gone back
		next = f.last.Epoch + 1
	}
	f.last = enginepb.Version{Epoch: next, Generation: nothing}
}

// observe returns what nodes run as the plan. An xds that knows too little yet has none:
// nothing of it may be pushed.
func (f *Fleet) observe(now time.Time, in layout.Input) layout.Plan {
	in.Specs = f.shared(now, in.Specs, in.Nodes)
	plan := layout.Observe(in)
	if !f.settled && !(plan.Complete() && f.expected()) && now.Sub(f.start) < f.settle {
		return layout.Plan{}
	}
	f.planned, f.replicas, f.retiring = f.leading.follows, plan.Replicas, nil
	return plan
}

// absent returns the nodes of the plan that have never reported to this xds: an
// engine named them as its peers. They are lost if they stay away.
func (f *Fleet) absent(now time.Time) []layout.Node {
	var nodes []layout.Node
	for _, r := range f.replicas {
		for _, name := range r.Nodes() {
			if f.nodes[name] == nil {
				nodes = append(nodes, layout.Node{Name: name, Lost: now.Sub(f.start) >= lostAfter})
			}
		}
	}
	return nodes
}

// complete returns whether the fleet's truth is known as far as it can be.
func (f *Fleet) complete(now time.Time) bool {
	if now.Sub(f.start) >= f.settle {
		return true
	}
	for _, r := range f.replicas {
		for _, name := range r.Nodes() {
			if f.nodes[name] == nil {
				return false
			}
		}
	}
	return f.planned && f.foreignSeen()
}

// weigh gives every endpoint its weight. One that drifts keeps its old one for a
// while; when anything else has changed, all drift goes along.
func (f *Fleet) weigh(now time.Time, s *Snapshot) {
	weights := weights(s.Endpoints)
	drift := false
	urgent := false
	for i, e := range s.Endpoints {
		old := f.endpoints[e.Replica]
		changed := old.Membership != e.Membership || old.State != e.State || old.Address != e.Address
		urgent = urgent || changed
		drift = drift || moved(old.Weight, weights[i])
	}
	if urgent {
		f.changes++
	}
	if take := urgent || drift && now.Sub(f.drifted) >= driftEvery; take {
		f.drifted = now
	} else {
		for i, e := range s.Endpoints {
			weights[i] = f.endpoints[e.Replica].Weight
		}
	}
	for i := range s.Endpoints {
		s.Endpoints[i].Weight = weights[i]
	}
}

// weights returns the weight of each endpoint among those of its model, 0 for
// one that is not in EDS.
func weights(endpoints []Endpoint) []uint32 {
	index := make(map[string][]int) // of the endpoints, by model
	for i, e := range endpoints {
		index[e.Model] = append(index[e.Model], i)
	}
	all := make([]uint32, len(endpoints))
	for _, of := range index {
		replicas := make([]weight.Replica, len(of))
		for j, i := range of {
			replicas[j] = endpoints[i].worth
		}
		for j, w := range weight.Of(replicas) {
			if endpoints[of[j]].Membership != Absent {
				all[of[j]] = w
			}
		}
	}
	return all
}

func moved(from, to uint32) bool {
	d := float64(to) - float64(from)
	return max(d, -d) > driftRatio*float64(from)
}

// direct finds the nodes that are to do something else than they do. The head of a
// replica comes first: its requests run through the other nodes, which get theirs when
// it has let go of what it had.
func (f *Fleet) direct(now time.Time, s *Snapshot) {
	if f.leading.follows {
		return
	}
	s.Directives = make(map[string]*enginepb.Assignment)
	for _, r := range f.replicas {
		head := f.nodes[r.Stages[0].GetNode()]
		for i, st := range r.Stages {
			n := f.nodes[st.GetNode()]
			if a := r.Assignment(i); i == 0 || head.letsGo(a.Version()) {
				f.send(now, s, n, a, n.follows(a))
			}
		}
	}
	if !f.settled {
		return // who is desired may not have reported yet
	}
	for name, n := range f.nodes {
		if e := n.engine; e.GetState() == enginepb.State_IDLE && e.GetGeneration() == 0 && f.stages[name] == nil {
			f.send(now, s, n, &enginepb.Assignment{ControlEpoch: f.last.Epoch, Generation: nothing}, false) // it waits for a word
		}
	}
	for _, t := range f.retiring {
		head := f.nodes[t.Had.GetStages()[0].GetNode()]
		waits := head != nil && t.Runs(head.engine.GetAssignment()) && now.Sub(head.last) < lostAfter && !f.gone(now, head.name, t.Had.GetModel())
		for _, name := range t.Nodes {
			n := f.nodes[name]
			if n != nil && t.Runs(n.engine.GetAssignment()) && (n == head || !waits) {
				f.send(now, s, n, t.Release(), false)
			}
		}
	}
}

// nothing is the generation of a release for an engine that has not been given anything
// since its start: the lowest, so that whatever comes replaces it.
const nothing = 1

// send leaves a directive for a node that does not follow it yet. One that takes a
// replica out of service waits until the gateway knows that.
func (f *Fleet) send(now time.Time, s *Snapshot, n *node, a *enginepb.Assignment, follows bool) {
	switch v := a.Version(); {
	case n == nil || n.stream == 0 || !n.mute.IsZero() || n.engine == nil:
		return
	case follows:
		n.directed = enginepb.Version{} // should it forget, it gets the directive again at once
		return
	case n.report.GetRefused().Version() == v:
		return // it never will
	case n.directed == v && now.Sub(n.directedAt) < directAgain:
		return
	case n.serves() && !enginepb.SameProcess(n.engine.GetAssignment(), a) && f.young(now, v):
		return
	}
	n.directed, n.directedAt = a.Version(), now
	s.Directives[n.name] = a
}

// young reports whether a version was made so short a time ago that the gateway may still
// send requests by what was before it.
func (f *Fleet) young(now time.Time, v enginepb.Version) bool {
	age := now.Sub(time.UnixMicro(int64(v.Generation)))
	return v.Epoch == f.last.Epoch && age < leaveFor && -age < leaveFor // a clock may have gone back
}
