package fleet

import (
	"fmt"
	"math"
	"slices"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/internal/scale"
	"millrace.dev/millrace/xds/internal/turns"
)

// variants are the kinds of replicas of a model: on how many nodes they lie.
type variants struct {
	spec   config.ModelSpec
	stages []int
}

// variantsOf returns those of a model. Where the layout is planned there is one.
func variantsOf(s config.ModelSpec) variants {
	v := variants{spec: s}
	for i := range max(1, len(s.Layout)) {
		if n := s.LayoutOf(i).Stages; !slices.Contains(v.stages, n) {
			v.stages = append(v.stages, n)
		}
	}
	return v
}

// at is the variant of a replica by its number.
func (v variants) at(i int) int { return slices.Index(v.stages, v.spec.LayoutOf(i).Stages) }

// freeNodes is how many nodes a replica could have: those that nobody has, or who is loaded on
// demand, less those that are waited for.
func (f *Fleet) freeNodes(now time.Time) int {
	has := map[string]bool{}
	placed := map[string]bool{}
	for i := range f.replicas {
		r := &f.replicas[i]
		placed[r.Spec.Replica] = true
		for _, name := range r.Nodes() {
			has[name] = has[name] || !onDemand(r.Spec)
		}
	}
	for _, t := range f.retiring {
		for _, name := range t.Nodes {
			has[name] = true
		}
	}
	free := 0
	for name, n := range f.nodes {
		if l := n.asLayout(now, f.orders(name)); l.Usable && l.Cordoned == "" && !has[name] {
			free++
		}
	}
	for _, s := range f.specs {
		if !placed[s.Replica] && !onDemand(s) {
			free -= max(1, len(s.Shares))
		}
	}
	return max(0, free)
}

// scaleInput is what is decided by of a model.
func (f *Fleet) scaleInput(now time.Time, m desired.Object[config.ModelSpec], s *scaled, heads []*node, waits turns.Demand, free int) scale.Input {
	c, of := m.Spec.Scaling, variantsOf(m.Spec)
	in := scale.Input{
		Now: now, Memory: s.memory, Demand: s.asked.demand(heads, waits, now),
		Settings: scale.Settings{
			Min: c.MinReplicas, Max: c.MaxReplicas, Utilization: float64(c.Utilization), FirstToken: m.Spec.Goal.FirstToken.Duration,
			DownAfter: c.ScaleDownAfter.Duration, Budget: float64(c.Budget),
		},
	}
	unused := make([]int, len(of.stages))
	for i := range c.MaxReplicas + len(s.closing) {
		if _, is := s.wanted[i]; !is && s.closing[i].IsZero() && (m.Spec.Scaled() || i >= m.Spec.Replicas) {
			unused[of.at(i)]++
		}
	}
	for v, stages := range of.stages {
		one := scale.Variant{
			Name: fmt.Sprint(stages, " nodes"), Cost: float64(c.Cost) * float64(stages), Start: firstStart,
			Rate: s.asked.rates[stages].rate(), Free: min(unused[v], free/stages),
		}
		if s.start > 0 {
			one.Start = s.start
		}
		in.Variants = append(in.Variants, one)
	}
	byName := map[string]*node{}
	for _, n := range heads {
		byName[n.engine.GetAssignment().GetReplica()] = n
	}
	add := func(i int, since time.Time, closing bool) {
		r := scale.Replica{Name: desired.Replica(m.Name, i), Variant: of.at(i), State: scale.Serving, Started: since}
		n := byName[r.Name]
		if n != nil {
			l := n.engine.GetLoad()
			r.Sessions = int(min(l.GetCachedTokens(), math.MaxInt32)) + int(l.GetRunning()+l.GetWaiting())
		}
		switch e := f.endpoints[r.Name]; {
		case closing:
			r.State = scale.Draining
		case e != nil && e.State != notReady:
		case n != nil && n.engine.GetState() == enginepb.State_BROKEN, now.Sub(since) > max(failedAfter, 3*s.start):
			r.State = scale.Failed
		default:
			r.State = scale.Starting
		}
		in.Replicas = append(in.Replicas, r)
	}
	for _, i := range f.numbers(m) {
		since, closing := s.wanted[i], false
		if at := s.closing[i]; !at.IsZero() {
			since, closing = at, true
		}
		if e := f.endpoints[desired.Replica(m.Name, i)]; !m.Spec.Scaled() && e != nil {
			since = e.Since
		}
		add(i, since, closing)
	}
	return in
}
