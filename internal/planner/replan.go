package planner

import (
	"cmp"
	"slices"
)

// gain is how much more all replicas of a model must generate before what runs is moved.
const gain = 1.2

// Step is one thing to do on the way from one layout to another. Each is done when those
// before it are: what is started takes requests, what is stopped has let go of its nodes.
type Step struct {
	// Model is the model's name, Replica what is started or stopped.
	Model   string
	Replica Replica
	// Stop is whether it is stopped.
	Stop bool
	// Text is the step for a person.
	Text string
}

// Replan lays models out that run already, as previous has it, on a fleet that may have
// changed, and returns the steps to get there. What runs and can stay there does, unless
// its model gets more replicas by moving it, or generates much more. The last replica of a
// model that works is not stopped before another takes requests.
func Replan(previous []Layout, fleet Fleet, requests []Request) ([]Layout, []Step) {
	f := newField(fleet)
	m := &mover{field: f, free: f.devices(), requests: requests, runs: make([][]Replica, len(requests)), effort: effortOf(len(requests))}
	for i, r := range requests {
		at := slices.IndexFunc(previous, func(l Layout) bool { return l.Model == r.Model.Name })
		if at < 0 {
			continue
		}
		for _, rep := range previous[at].Replicas {
			if now, ok := f.still(r, rep, m.free); ok {
				m.runs[i] = append(m.runs[i], now)
				f.take(m.free, now, -1)
			}
		}
	}
	m.order()
	for _, i := range m.by {
		if m.move(i); len(m.runs[i]) == 0 {
			m.makeRoom(i)
		}
	}
	layouts := make([]Layout, len(requests))
	for i, r := range requests {
		layouts[i] = Layout{Model: r.Model.Name, Replicas: m.runs[i]}
		f.explain(&layouts[i], r, m.free)
	}
	return layouts, m.steps
}

// still returns a replica as it is predicted now; false: its nodes or their room are gone.
func (f *field) still(r Request, rep Replica, free []int) (Replica, bool) {
	left := slices.Clone(free)
	f.take(left, rep, -1)
	layers := 0
	t := newTask(f, r, max(1, rep.TensorParallel), make([]int, len(f.Nodes)))
	var units []int
	for _, s := range rep.Stages {
		i, known := f.at[s.Node]
		if !known || left[i] < 0 {
			return rep, false
		}
		layers += s.Layers
		units = append(units, len(t.units))
		t.units = append(t.units, t.unit(i, f.Nodes[i]))
	}
	if len(units) == 0 || layers != r.Model.Layers || !t.stagesOf(units, 0, len(units)-1) {
		return rep, false
	}
	for i, s := range rep.Stages {
		if t.scratch[i].room < s.Layers {
			return rep, false
		}
		t.scratch[i].room = s.Layers
	}
	sum := t.fill(t.scratch, 0) // there is room for exactly what each has
	rep.Token, rep.FirstToken, rep.Decode = seconds(sum.token), seconds(sum.first), t.decode(sum)
	return rep, true
}

// mover is a plan that is being changed.
type mover struct {
	*field
	requests []Request
	// by is the order of the requests, runs what runs of each after the steps, and free
	// the devices by node that nothing uses then.
	by    []int
	runs  [][]Replica
	free  []int
	steps []Step
	// effort is how often a few devices of a model are laid out anew.
	effort int
}

// order puts models without a replica first, then the largest.
func (m *mover) order() {
	for i := range m.requests {
		m.by = append(m.by, i)
	}
	has := func(i int) int { return min(1, len(m.runs[i])) }
	slices.SortStableFunc(m.by, func(a, b int) int {
		return cmp.Or(cmp.Compare(has(a), has(b)), cmp.Compare(m.requests[b].need(), m.requests[a].need()))
	})
}

// move brings a model from what runs of it to what is better, if anything is.
func (m *mover) move(i int) {
	r, had := m.requests[i], m.runs[i]
	if n := r.Goal.Replicas; n > 0 && len(had) > n { // fewer are asked for: the slowest end
		slices.SortStableFunc(had, func(a, b Replica) int { return cmp.Compare(b.Decode, a.Decode) })
		m.follow(i, had[:n])
		had = m.runs[i]
	}
	best := slices.Concat(had, m.more(r, had, m.free, nil))
	if r.Goal.Stay {
		m.follow(i, best)
		return
	}
	better := func(to []Replica) bool {
		a, b := met(to), met(best)
		return a > b && (r.Goal.Replicas > 0 || total(to) > total(best)) || a == b && total(to) > gain*total(best)
	}
	var options [][]Replica
	stays := map[string]bool{}
	for k, rep := range had {
		rest := slices.Delete(slices.Clone(had), k, k+1)
		free := slices.Clone(m.free)
		m.take(free, rep, 1)
		options = append(options, slices.Concat(rest, m.more(r, rest, free, nil)))
		stays[keyOf(rep)] = true
	}
	if len(had) > 1 {
		free := slices.Clone(m.free)
		for _, rep := range had {
			m.take(free, rep, 1)
		}
		options = append(options, m.more(r, nil, free, stays))
	}
	for _, to := range options {
		if better(to) {
			if _, _, ok := m.way(i, to); ok {
				best = to
			}
		}
	}
	m.follow(i, best)
}

// met is how many replicas reach the goal.
func met(all []Replica) int {
	n := 0
	for _, r := range all {
		if r.Decode > 0 {
			n++
		}
	}
	return n
}

// more returns what is placed beside those that a model has.
func (m *mover) more(r Request, has []Replica, free []int, stays map[string]bool) []Replica {
	want := r.Goal.Replicas - len(has)
	if r.Goal.Replicas > 0 && want <= 0 {
		return nil
	}
	return m.place(r, max(0, want), slices.Clone(free), m.effort, stays)
}

// way returns the steps from what runs of a model to another layout, and the devices that are
// free after them; false: there is no way that leaves a replica working.
func (m *mover) way(i int, to []Replica) (steps []Step, free []int, ok bool) {
	free = slices.Clone(m.free)
	running := m.runs[i]
	step := func(r Replica, stop bool) {
		text, sign := "start ", -1
		if stop {
			text, sign = "stop ", 1
		}
		m.take(free, r, sign)
		steps = append(steps, Step{m.requests[i].Model.Name, r, stop, text + m.requests[i].Model.Name + " " + r.String()})
	}
	starts, stops := without(to, running), without(running, to)
	working := len(m.runs[i])
	for len(starts)+len(stops) > 0 {
		at := slices.IndexFunc(starts, func(r Replica) bool { return m.fits(free, r) })
		switch {
		case at >= 0:
			step(starts[at], false)
			starts = slices.Delete(starts, at, at+1)
			working++
		case len(stops) > 0 && (working > 1 || len(to) == 0):
			step(stops[0], true)
			stops = stops[1:]
			working--
		default:
			return nil, nil, false
		}
	}
	return steps, free, true
}

// without returns the replicas that others are not equal to, each to one.
func without(all, others []Replica) []Replica {
	left := map[string]int{}
	for _, r := range others {
		left[keyOf(r)]++
	}
	var rest []Replica
	for _, r := range all {
		if left[keyOf(r)]--; left[keyOf(r)] < 0 {
			rest = append(rest, r)
		}
	}
	return rest
}

// fits reports whether a replica's devices are free.
func (m *mover) fits(free []int, r Replica) bool {
	left := slices.Clone(free)
	m.take(left, r, -1)
	return !slices.ContainsFunc(left, func(n int) bool { return n < 0 })
}

// follow takes the way to a layout, if there is one.
func (m *mover) follow(i int, to []Replica) {
	if steps, free, ok := m.way(i, to); ok {
		m.steps, m.free, m.runs[i] = append(m.steps, steps...), free, to
	}
}

// makeRoom ends replicas of models that have several, and as many as fit, until a model
// has one. What was ended in vain stays.
func (m *mover) makeRoom(i int) {
	was := *m
	was.runs = slices.Clone(m.runs)
	for len(m.runs[i]) == 0 {
		victim := -1
		for k, r := range m.requests {
			if r.Goal.Replicas == 0 && len(m.runs[k]) > 1 && (victim < 0 || len(m.runs[k]) > len(m.runs[victim])) {
				victim = k
			}
		}
		if victim < 0 {
			*m = was
			return
		}
		of := slices.Clone(m.runs[victim])
		slices.SortStableFunc(of, func(a, b Replica) int { return cmp.Compare(b.Decode, a.Decode) })
		m.follow(victim, of[:len(of)-1])
		one := m.requests[i]
		one.Goal.Replicas = 1
		m.follow(i, m.place(one, 1, slices.Clone(m.free), m.effort, nil))
	}
}

// String says where a replica lies: "whole on b", or "on b and d: 31 + 17 layers".
func (r Replica) String() string {
	var names []string
	for _, s := range r.Stages {
		names = append(names, s.Node)
	}
	if len(names) == 1 {
		return "whole on " + names[0]
	}
	return "on " + and(names) + ": " + layersOf(r) + " layers"
}
