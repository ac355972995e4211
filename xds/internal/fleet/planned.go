package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/placing"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/xds/internal/auto"
	"millrace.dev/millrace/xds/internal/layout"
)

// Layouts that nobody has written are planned: a snapshot asks for a plan (Snapshot.Plan) when
// what it depends on has changed, and Planned brings it. Until then what runs stays.
const (
	// goneAfter is how long a node is silent before a model that nobody serves any more is
	// laid out without it. While somebody does, it is lostAfter.
	goneAfter = time.Second
	// steadyAfter is how long a node has been there before what works may move to it, and
	// moveEvery how long a model stays as it is before it may move again.
	steadyAfter = time.Minute
	moveEvery   = 5 * time.Minute
	// retryEvery is how often weights are tried again whose headers could not be read.
	retryEvery = 30 * time.Second
	// unknownMemory is that of a node that has not reported yet, and has a part in something.
	unknownMemory = 1 << 50
)

// Planned is the plan that a snapshot has asked for.
type Planned struct {
	// Input is what the snapshot had.
	Input *auto.Input
	auto.Output
}

func (Planned) event() {}

// planning is what is known of planned layouts.
type planning struct {
	// places are those of replicas, by name, and missing why one has none that it could go
	// to: those of places that are in it stay only while they work.
	places  map[string]auto.Place
	missing map[string]string
	// results are of the last plan, by model.
	results map[string]auto.Result
	// asked is what a plan is being made for, done what the last one was made for; nil: none.
	asked, done *auto.Input
	// moved is when a replica of a model was last given another place, by model.
	moved map[string]time.Time
}

func newPlanning() planning {
	return planning{
		places: map[string]auto.Place{}, missing: map[string]string{}, results: map[string]auto.Result{}, moved: map[string]time.Time{},
	}
}

// resolve returns the desired replicas with the places of those that are planned.
func (f *Fleet) resolve(now time.Time) []layout.Spec {
	if !slices.ContainsFunc(f.specs, func(s layout.Spec) bool { return s.Planned }) {
		return f.specs
	}
	f.adoptRunning(now)
	all := slices.Clone(f.specs)
	for i := range all {
		s := &all[i]
		if !s.Planned {
			continue
		}
		place, placed := f.auto.places[s.Replica]
		result, known := f.auto.results[s.Model]
		switch {
		case known && result.Unknown != "" && !placed:
			s.Planned = false // as one that is written: whole on any node
			continue
		case !placed:
			s.Missing = cmp.Or(f.auto.missing[s.Replica], "its layout is being planned")
			continue
		}
		s.Shares, s.Nodes, s.Missing = place.Shares, place.Nodes, f.auto.missing[s.Replica]
	}
	return all
}

// adoptRunning takes what nodes run as the place of replicas that have none: as after a start.
func (f *Fleet) adoptRunning(now time.Time) {
	latest := map[string]*enginepb.Assignment{}
	for _, n := range f.nodes {
		a := n.engine.GetAssignment()
		if a == nil || slices.ContainsFunc(f.retiring, func(t layout.Retiring) bool { return t.Runs(a) }) {
			continue
		}
		if had := latest[a.GetReplica()]; had == nil || a.Version().Compare(had.Version()) > 0 {
			latest[a.GetReplica()] = a
		}
	}
	for _, s := range f.specs {
		a := latest[s.Replica]
		if _, placed := f.auto.places[s.Replica]; !s.Planned || placed || a == nil || a.GetModel() != s.Model {
			continue
		}
		p := auto.Place{}
		gone := false
		for _, st := range a.GetStages() {
			p.Nodes, p.Shares = append(p.Nodes, st.GetNode()), append(p.Shares, st.GetShare())
			gone = gone || f.gone(now, st.GetNode(), s.Model)
		}
		if !gone && f.auto.results[s.Model].Unknown == "" {
			f.auto.places[s.Replica] = p
		}
	}
}

// gone reports whether a replica of a model is to be laid out without a node that it has.
func (f *Fleet) gone(now time.Time, name, model string) bool {
	n := f.nodes[name]
	if n == nil {
		return now.Sub(f.start) >= lostAfter
	}
	since, away := n.silentSince(now)
	if !away && !n.mute.IsZero() {
		since, away = n.mute, true
	}
	if !away {
		return false
	}
	d := now.Sub(since)
	return d >= lostAfter || f.orders(name).lost() || d >= goneAfter && !f.serves(model)
}

// serves reports whether an endpoint of a model took requests when it was last concluded.
func (f *Fleet) serves(model string) bool {
	for _, e := range f.endpoints {
		if e.Model == model && e.State != notReady {
			return true
		}
	}
	return false
}

// plannedBy returns the planned replicas that are desired, by name, with their models.
func (f *Fleet) plannedBy() map[string]string {
	all := map[string]string{}
	for _, s := range f.specs {
		if s.Planned {
			all[s.Replica] = s.Model
		}
	}
	return all
}

// ask returns what a plan is to be made for; nil: none is needed, or one is being made.
func (f *Fleet) ask(now time.Time) *auto.Input {
	owners := f.plannedBy()
	maps.DeleteFunc(f.auto.places, func(r string, _ auto.Place) bool { return owners[r] == "" })
	maps.DeleteFunc(f.auto.missing, func(r string, _ string) bool { return owners[r] == "" })
	began := f.start
	if f.leading.since.After(began) {
		began = f.leading.since
	}
	if len(owners) == 0 || f.leading.follows || f.auto.asked != nil {
		return nil
	}
	in := &auto.Input{Models: f.toPlan(now), Early: now.Sub(began) < f.settle}
	if !in.Early {
		in.Nodes = f.planNodes(now, owners)
	}
	for _, m := range in.Models {
		if f.auto.results[m.Name].Unknown != "" {
			in.Attempt = now.UnixNano() / int64(retryEvery)
		}
	}
	if in.Equal(f.auto.done) {
		return nil
	}
	f.auto.asked = in
	return in
}

// toPlan returns the models whose layouts are planned.
func (f *Fleet) toPlan(now time.Time) []auto.Model {
	var all []auto.Model
	for _, m := range f.desired.State.Models {
		numbers := f.numbers(m)
		if !m.Spec.Planned() || len(numbers) == 0 {
			continue
		}
		v := auto.Model{Name: m.Name, Spec: m.Spec, Due: now.Sub(f.start) >= moveEvery && now.Sub(f.auto.moved[m.Name]) >= moveEvery}
		v.Spec.Replicas = len(numbers)
		for _, i := range numbers {
			name := desired.Replica(m.Name, i)
			v.Names = append(v.Names, name)
			p, placed := f.auto.places[name]
			if !placed {
				continue
			}
			if e := f.endpoints[name]; e == nil || e.Membership != Healthy {
				v.Due = false // first all is to work that has a place
			}
			if !slices.ContainsFunc(p.Nodes, func(n string) bool { return f.gone(now, n, m.Name) }) {
				v.Runs = append(v.Runs, auto.Run{Replica: name, Place: p})
			}
		}
		all = append(all, v)
	}
	return all
}

// planNodes returns the nodes on which planned replicas may lie: those that such have, and
// those that are there and that nobody else needs.
func (f *Fleet) planNodes(now time.Time, owners map[string]string) []auto.Node {
	machines := map[string]int{}
	for _, n := range f.nodes {
		machines[placing.Machine(n.report)]++
	}
	holders := map[string]string{} // the planned replica by node
	for r, p := range f.auto.places {
		for _, n := range p.Nodes {
			holders[n] = r
		}
	}
	taken := f.writtenNodes(holders)
	var all []auto.Node
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		n, c := f.nodes[name], f.orders(name)
		holder := holders[name]
		free := holder == "" && n.asLayout(now, c).Usable && !taken[name]
		if c.Cordoned != "" || !free && (holder == "" || f.gone(now, name, owners[holder])) {
			continue
		}
		v := auto.Node{Steady: now.Sub(n.joined) >= steadyAfter}
		v.Name, v.Domain = name, n.report.GetZone()
		v.Memory = placing.Memory(n.report.GetTelemetry(), machines[placing.Machine(n.report)])
		v.Decode, v.Prefill = n.pace.decode, n.pace.prefill
		all = append(all, v)
	}
	for name, holder := range holders {
		if f.nodes[name] == nil && !f.gone(now, name, owners[holder]) {
			all = append(all, auto.Node{Node: planner.Node{Name: name, Memory: unknownMemory}})
		}
	}
	slices.SortFunc(all, func(a, b auto.Node) int { return strings.Compare(a.Name, b.Name) })
	f.byCapacity(all)
	return all
}

// byCapacity takes the operator's figures for speed, where each node has one.
func (f *Fleet) byCapacity(all []auto.Node) {
	bytes := 0.0
	for _, r := range f.auto.results {
		bytes = max(bytes, float64(r.Bytes))
	}
	capacity := func(n auto.Node) float64 { return f.nodes[n.Name].capacity() }
	if bytes == 0 || slices.ContainsFunc(all, func(n auto.Node) bool { return capacity(n) == 0 }) {
		return
	}
	for i := range all {
		all[i].Decode, all[i].Prefill = capacity(all[i])*bytes, 0
	}
}

// capacity is the operator's figure for a node, in tokens per second; 0: there is none.
func (n *node) capacity() float64 {
	if n == nil {
		return 0
	}
	return n.report.GetTelemetry().GetCapacity()
}

// writtenNodes returns the nodes that others need than planned replicas: those that written
// layouts name or have, those that such are about to get, and those of others. Models that are
// loaded on demand take what is left.
func (f *Fleet) writtenNodes(holders map[string]string) map[string]bool {
	taken, placed := map[string]bool{}, map[string]bool{}
	owners := f.plannedBy()
	for _, r := range f.replicas {
		if placed[r.Spec.Replica] = true; owners[r.Spec.Replica] == "" && !onDemand(r.Spec) {
			for _, n := range r.Nodes() {
				taken[n] = true
			}
		}
	}
	waiting := 0
	for _, s := range f.specs {
		if s.Planned {
			continue
		}
		for _, n := range s.Nodes {
			taken[n] = true
		}
		if len(s.Nodes) == 0 && !placed[s.Replica] && !s.Backend.GetOnDemand() {
			waiting += len(s.Shares)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		if waiting > 0 && !taken[name] && holders[name] == "" {
			taken[name] = true
			waiting--
		}
	}
	return taken
}

// tookPlan takes in a plan.
func (f *Fleet) tookPlan(now time.Time, ev Planned) {
	if ev.Input != f.auto.asked {
		return // of before it began to lead
	}
	f.auto.asked, f.auto.done = nil, ev.Input
	before := f.auto.results
	f.auto.results = ev.Models
	for name, model := range f.plannedBy() {
		res, known := ev.Models[model]
		if !known {
			continue // it came meanwhile
		}
		had, placed := f.auto.places[name]
		if res.Unknown != "" {
			// What was planned while it was known stays; what was only found running may be anything.
			if res.Layers, res.Bytes = before[model].Layers, before[model].Bytes; res.Layers == 0 {
				delete(f.auto.places, name)
			}
			f.auto.missing[name], f.auto.results[model] = "", res
			continue
		}
		to, ok := res.Places[name]
		switch {
		case ev.Input.Early:
		case ok:
			if placed && !to.Same(had) {
				f.auto.moved[model] = now
			}
			f.auto.places[name], f.auto.missing[name] = to, ""
		case placed && !slices.ContainsFunc(had.Nodes, func(n string) bool { return f.gone(now, n, model) }):
			f.auto.missing[name] = "it " + res.Missing
		default:
			delete(f.auto.places, name)
			f.auto.missing[name] = "it " + res.Missing
		}
	}
}

// explainLayouts adds to the objects of models how they are laid out, and why, and what is being done.
func (f *Fleet) explainLayouts(all []Object) {
	for i := range all {
		o := &all[i]
		res, known := f.auto.results[o.Name]
		if o.Kind != "Model" || !known {
			continue
		}
		o.Layout = cmp.Or(res.Unknown, res.Why)
		if len(res.Steps) == 0 {
			continue
		}
		for k := range o.Conditions {
			if c := &o.Conditions[k]; c.Type == progressing && c.Status {
				text := "layout: "
				for n, s := range res.Steps {
					text += fmt.Sprintf("%d. %s; ", n+1, s)
				}
				c.Message = text + c.Message
			}
		}
	}
}

// predictions returns the places of replicas of which something was predicted; nil: of none.
func (f *Fleet) predictions() map[string]auto.Place {
	var all map[string]auto.Place
	for name, p := range f.auto.places {
		if p.Decode > 0 {
			if all == nil {
				all = make(map[string]auto.Place)
			}
			all[name] = p
		}
	}
	return all
}

// pace is how fast a node is, in bytes of weights per second; 0: not measured.
type pace struct{ decode, prefill float64 }

const (
	// paceOff is by which factor a measurement differs from what is known before it counts,
	// once it has for paceAfter: requests differ, too.
	paceOff   = 1.25
	paceAfter = time.Minute
)

// learn takes over what replicas measure of idle nodes: a stage's part of the time is as what
// was known of its node before.
func (f *Fleet) learn(now time.Time) {
	for _, r := range f.replicas {
		res, known := f.auto.results[r.Spec.Model]
		head := f.nodes[r.Stages[0].GetNode()]
		if !known || res.Bytes == 0 || head == nil || r.Moved {
			continue
		}
		speed := head.engine.GetSpeed()
		if speed.GetDecode() <= 0 || head.engine.GetLoad().GetRunning() > 1 || !head.serves() || !head.runs(&r, 0) {
			continue
		}
		f.learnOf(now, r.Stages, head, float64(res.Bytes))
	}
}

func (f *Fleet) learnOf(now time.Time, stages []*enginepb.Stage, head *node, bytes float64) {
	total, predicted, unknown := 0.0, 0.0, 0.0
	for _, s := range stages {
		total += float64(s.GetShare())
	}
	for _, s := range stages {
		part := bytes * float64(s.GetShare()) / total
		n := f.nodes[s.GetNode()]
		if n == nil {
			return
		}
		if n.pace.decode > 0 {
			predicted += part / n.pace.decode
		} else {
			unknown += part
		}
	}
	took := 1 / head.engine.GetSpeed().GetDecode() // seconds a token
	prefill := head.engine.GetSpeed().GetPrefill() * bytes
	if unknown > 0 {
		rest := took - predicted
		if rest <= 0 {
			rest = took * unknown / bytes
		}
		for _, s := range stages {
			if n := f.nodes[s.GetNode()]; n.pace.decode == 0 {
				n.pace = pace{unknown / rest, prefill}
			}
		}
		return
	}
	factor := predicted / took
	if math.Abs(math.Log(factor)) <= math.Log(paceOff) {
		head.off = time.Time{}
		return
	}
	if head.off.IsZero() {
		head.off = now
	}
	if now.Sub(head.off) < paceAfter {
		return
	}
	head.off = time.Time{}
	for _, s := range stages {
		n := f.nodes[s.GetNode()]
		n.pace = pace{n.pace.decode * factor, prefill}
	}
}
