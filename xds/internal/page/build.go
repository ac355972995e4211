package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// mostShown is how many replicas, and how many nodes, a snapshot has at most: those in trouble
// first. With so many it has some 200 KB.
const mostShown = 256

// Build returns the snapshot of a view. before is the snapshot before it, or nil: where an engine
// does not answer, what it has a part of is as it was. It does no I/O, and keeps neither.
//
// Figures that flicker are rounded, so that a mesh that does nothing is the same snapshot.
func Build(v *fleetpb.FleetView, before *Snapshot) *Snapshot {
	s := &Snapshot{Problems: []Problem{}, Models: []Model{}, Nodes: []Node{}, Objects: []Object{}, Version: v.GetDesiredVersion(), Clients: v.GetAdsClients()}
	for _, n := range v.GetNodes() {
		s.Nodes = append(s.Nodes, node(n, v.GetAt().AsTime()))
	}
	s.keepParts(before)
	b := builder{models: map[string]*Model{}}
	b.objects(s, v.GetObjects())
	b.laidOut(v.GetNodes())
	b.unreported(s.Nodes, before)
	b.unplaced(v.GetUnplaced())
	b.foreign(v.GetEndpoints())
	b.missing(v.GetObjects())
	for _, name := range b.order {
		m := b.models[name]
		m.finish()
		s.Models = append(s.Models, *m)
	}
	s.problems(v.GetConditions())
	s.headline()
	s.bound()
	return s
}

// keepParts fills in which replica nodes have a part of whose engine does not answer.
func (s *Snapshot) keepParts(before *Snapshot) {
	if before == nil {
		return
	}
	known := byName(before.Nodes, func(n *Node) string { return n.Name })
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if was := known[n.Name]; n.Replica == "" && n.State == NotReady && was != nil {
			n.Replica, n.Stage, n.Stages = was.Replica, was.Stage, was.Stages
		}
	}
}

// builder collects models with their replicas.
type builder struct {
	order  []string
	models map[string]*Model
}

func (b *builder) model(name string) *Model {
	m := b.models[name]
	if m == nil {
		m = &Model{Name: name, Replicas: []Replica{}}
		b.models[name] = m
		b.order = append(b.order, name)
	}
	return m
}

// replica returns the replica of a model by its name, new if there is none.
func (m *Model) replica(name string) *Replica {
	at := slices.IndexFunc(m.Replicas, func(r Replica) bool { return r.Name == name })
	if at < 0 {
		at = len(m.Replicas)
		m.Replicas = append(m.Replicas, Replica{Name: name, State: NotReady, Shards: []Shard{}})
	}
	return &m.Replicas[at]
}

func (b *builder) objects(s *Snapshot, all []*fleetpb.ObjectView) {
	for _, o := range all {
		one := Object{Kind: o.GetKind(), Name: o.GetName(), Generation: o.GetGeneration()}
		for _, c := range o.GetConditions() {
			if c.GetType() == "Accepted" && !c.GetStatus() {
				one.Refused = cmp.Or(c.GetMessage(), c.GetReason())
			}
		}
		s.Objects = append(s.Objects, one)
		if o.GetKind() != "Model" || o.GetGeneration() == 0 {
			continue
		}
		m := b.model(o.GetName())
		m.Desired, m.Layout, m.Scaling = len(o.GetReplicas()), o.GetLayout(), scaling(o.GetScaling())
	}
}

func scaling(s *fleetpb.Scaling) *Scaling {
	if s == nil {
		return nil
	}
	return &Scaling{
		Mode: s.GetMode(), Phase: s.GetPhase(), Reason: s.GetReason(), Desired: s.GetDesired(), Current: s.GetCurrent(), Min: s.GetMin(), Max: s.GetMax(),
		Arrivals: digits(s.GetArrivals(), 2), Queued: s.GetQueued(), Cost: digits(s.GetCost(), 3), Budget: s.GetBudget(),
	}
}

// laidOut adds what nodes report to be a part of.
func (b *builder) laidOut(all []*fleetpb.NodeView) {
	for _, n := range all {
		e := n.GetReport().GetEngine()
		a := e.GetAssignment()
		if a.GetReplica() == "" {
			continue
		}
		r := b.model(a.GetModel()).replica(a.GetReplica())
		if len(r.Shards) == 0 {
			r.Shards = shards(a.GetStages())
		}
		if a.GetStage() > 0 {
			continue
		}
		l := e.GetLoad()
		r.State, r.Reason, r.Since = state(n.GetState()), n.GetReason(), n.GetSince().AsTime()
		r.Address, r.Weight = e.GetHttpAddress(), n.GetWeight()
		r.measured(l, e.GetSpeed())
		if r.State == Ready && l.GetWake() != nil && l.GetWaiting() == 0 {
			r.State, r.Reason = Asleep, "not loaded: the next request loads it"
		}
	}
}

// measured takes in what an engine measures of itself.
func (r *Replica) measured(l *enginepb.Load, s *enginepb.Speed) {
	r.Running, r.Waiting, r.Slots, r.Limit = l.GetRunning(), l.GetWaiting(), l.GetSlots(), l.GetLimit()
	r.KVUsed, r.KVTotal, r.Cached = l.GetKvUsedTokens(), l.GetKvTotalTokens(), l.GetCachedTokens()
	r.Prefill, r.Decode = digits(s.GetPrefill(), 2), digits(s.GetDecode(), 2)
}

func shards(stages []*enginepb.Stage) []Shard {
	sum := 0.0
	for _, s := range stages {
		sum += float64(s.GetShare())
	}
	all := make([]Shard, len(stages))
	for i, s := range stages {
		all[i] = Shard{Node: s.GetNode(), Share: digits(float64(s.GetShare())/max(sum, 1e-9), 3)}
	}
	return all
}

// unreported adds the replicas of nodes whose engine does not answer, as they were.
func (b *builder) unreported(nodes []Node, before *Snapshot) {
	if before == nil {
		return
	}
	now := byName(nodes, func(n *Node) string { return n.Name })
	for i := range before.Models {
		for _, was := range before.Models[i].Replicas {
			if len(was.Shards) == 0 || b.models[before.Models[i].Name] == nil {
				continue
			}
			head := now[was.Shards[0].Node]
			if head == nil || head.Replica != was.Name || head.Stage != 1 {
				continue
			}
			if r := b.model(before.Models[i].Name).replica(was.Name); r.Address == "" {
				r.State, r.Reason, r.Since, r.Address, r.Shards = head.State, head.Reason, head.Since, was.Address, was.Shards
			}
		}
	}
}

func (b *builder) unplaced(all []*fleetpb.Unplaced) {
	for _, u := range all {
		r := b.model(u.GetModel()).replica(u.GetReplica())
		if r.Reason = u.GetReason(); len(r.Shards) > 0 {
			continue // it ends where it was
		}
		if r.State = Unplaced; u.GetAsleep() {
			r.State = Asleep
		}
	}
}

// foreign adds the endpoints that are run elsewhere.
func (b *builder) foreign(all []*fleetpb.EndpointView) {
	for _, e := range all {
		for i, name := range e.GetModels() {
			r := b.model(name).replica(e.GetAddress())
			r.State, r.Reason, r.Since = state(e.GetState()), e.GetReason(), e.GetSince().AsTime()
			r.Address, r.Source, r.Engine = e.GetAddress(), e.GetSource(), e.GetType()
			r.measured(e.GetLoad(), e.GetSpeed())
			if i == 0 {
				r.Weight = e.GetWeight()
			}
		}
	}
}

// missing adds replicas that are desired and of which nothing is known.
func (b *builder) missing(all []*fleetpb.ObjectView) {
	for _, o := range all {
		if m := b.models[o.GetName()]; m != nil && o.GetKind() == "Model" {
			for _, name := range o.GetReplicas() {
				if r := m.replica(name); r.Reason == "" && r.State == NotReady {
					r.Reason = "no node has reported it"
				}
			}
		}
	}
}

// finish adds up a model's replicas.
func (m *Model) finish() {
	slices.SortFunc(m.Replicas, func(a, b Replica) int { return cmp.Compare(a.Name, b.Name) })
	sum, foreign := 0.0, 0
	for i := range m.Replicas {
		r := &m.Replicas[i]
		sum += float64(r.Weight)
		if r.State == Ready || r.State == Suspect || r.State == Asleep && r.Address != "" {
			m.Ready++
		}
		if r.Source != "" {
			foreign++
		}
	}
	m.Desired += foreign
	for i := range m.Replicas {
		m.Replicas[i].Share = digits(float64(m.Replicas[i].Weight)/max(1, sum), 3)
	}
}

// problems takes in conditions, and finds what shows from loads.
func (s *Snapshot) problems(all []*fleetpb.Condition) {
	for _, c := range all {
		s.Problems = append(s.Problems, Problem{Code: c.GetCode(), Text: c.GetText(), Next: c.GetNext(), Grave: c.GetCode() == wire.ModelDown})
	}
	for i := range s.Models {
		if p, busy := s.Models[i].busy(); busy {
			s.Problems = append(s.Problems, p)
		}
	}
	slices.SortStableFunc(s.Problems, func(a, b Problem) int {
		switch {
		case a.Grave == b.Grave:
			return 0
		case a.Grave:
			return -1
		}
		return 1
	})
	if extra := len(s.Problems) - mostShown; extra > 0 {
		s.Problems, s.Hidden = s.Problems[:mostShown], s.Hidden+extra
	}
}

// busy is the problem of a model whose replicas all have as much as they can work on, with
// requests that wait.
func (m *Model) busy() (Problem, bool) {
	var running, waiting uint32
	ready := 0
	for _, r := range m.Replicas {
		if r.State != Ready || r.Slots == 0 {
			continue
		}
		if ready++; r.Running < r.Slots {
			return Problem{}, false
		}
		running, waiting = running+r.Running, waiting+r.Waiting
	}
	text, next := "", "add nodes or replicas, or let their number follow demand: manifests/scaling.md"
	if s := m.Scaling; s != nil {
		if s.Queued > 0 {
			text = fmt.Sprintf(", %d in extproc", s.Queued)
		}
		if s.Desired > uint32(m.Ready) && s.Mode == "auto" {
			next = "nothing: more replicas are being started"
		}
	}
	if ready == 0 || waiting == 0 && text == "" {
		return Problem{}, false
	}
	return Problem{Code: "busy", Text: fmt.Sprintf("model %s is busy: %d requests run, %d wait at engines%s", m.Name, running, waiting, text), Next: next}, true
}

// headline finds what is to be read first.
func (s *Snapshot) headline() {
	var down []string
	replicas, served := 0, 0
	for i := range s.Models {
		m := &s.Models[i]
		replicas, served = replicas+m.Desired, served+min(m.Ready, m.Desired)
		if m.Ready == 0 && !asleep(m) {
			down = append(down, m.Name)
		}
	}
	switch {
	case len(s.Nodes) == 0 && replicas == 0:
		s.Health, s.Headline = Empty, "No node has reported yet"
	case len(s.Models) == 0:
		s.Health, s.Headline = Empty, fmt.Sprintf("No model is configured; %s ready for one", count(len(s.Nodes), "node"))
	case len(down) > 0:
		s.Health, s.Headline = Down, "Nobody serves "+strings.Join(down[:min(3, len(down))], ", ")
	case served < replicas:
		s.Health, s.Headline = Degraded, fmt.Sprintf("Every model is served, by %d of %s", served, count(replicas, "replica"))
	case len(s.Problems) > 0:
		s.Health, s.Headline = Degraded, "Every model is served; "+count(len(s.Problems), "thing")+" to see to"
	default:
		s.Health, s.Headline = Well, fmt.Sprintf("All is well: %s of %s", count(replicas, "replica"), count(len(s.Models), "model"))
		if n := len(s.Nodes); n > 0 {
			s.Headline += " on " + count(n, "node")
		}
	}
}

// bound drops replicas and nodes beyond what a page shows, those in trouble last.
func (s *Snapshot) bound() {
	room := mostShown
	for i := range s.Models {
		m := &s.Models[i]
		m.Replicas = most(m.Replicas, room, &s.Hidden, func(r Replica) bool { return r.State == Ready }, func(r Replica) string { return r.Name })
		room -= len(m.Replicas)
	}
	s.Nodes = most(s.Nodes, mostShown, &s.Hidden, func(n Node) bool { return n.State == Ready || n.State == Free }, func(n Node) string { return n.Name })
}

func most[T any](all []T, n int, hidden *int, well func(T) bool, name func(T) string) []T {
	if len(all) <= n {
		return all
	}
	*hidden += len(all) - n
	slices.SortStableFunc(all, func(a, b T) int {
		switch x, y := well(a), well(b); {
		case x == y:
			return 0
		case x:
			return 1
		}
		return -1
	})
	all = all[:n]
	slices.SortFunc(all, func(a, b T) int { return cmp.Compare(name(a), name(b)) })
	return all
}

// digits rounds to so many significant digits.
func digits(v float64, n int) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, float64(n)-math.Ceil(math.Log10(math.Abs(v))))
	if math.IsInf(scale, 0) || scale == 0 {
		return 0
	}
	return math.Round(v*scale) / scale
}

// set reports whether a time was given.
func set(t *timestamppb.Timestamp) bool { return t.GetSeconds() != 0 }
