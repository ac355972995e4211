package fleet

import (
	"fmt"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/scale"
	"millrace.dev/millrace/xds/internal/turns"
)

// Scaled is how the number of a model's replicas follows demand. Not changed afterwards.
type Scaled struct {
	// Mode is config.ScalingAuto or ScalingRecommend.
	Mode     string
	Min, Max int
	// Decided is whether anything is: an xds that follows, or was just started, decides nothing.
	Decided bool
	// Desired is how many replicas there are to be by demand, Current how many there are, those
	// that drain included, Names which ones those are that don't.
	Desired, Current int
	Names            []string
	Phase            scale.Phase
	// Reason is for a person.
	Reason string
	// Demand is what is asked.
	Demand scale.Demand
	// Cost is what is spent per hour, Budget what may be; 0: as much as it will.
	Cost, Budget float64
}

// Replicas returns the names of a model's replicas that are desired.
func (s *Snapshot) Replicas(m desired.Object[config.ModelSpec]) []string {
	if m.Spec.Scaled() {
		return s.Scaled[m.Name].Names
	}
	var all []string
	for i := range m.Spec.Replicas {
		all = append(all, desired.Replica(m.Name, i))
	}
	return all
}

// scaledView returns what was decided; waits is what waits in extprocs, by model.
func (f *Fleet) scaledView(waits map[string]turns.Demand) map[string]Scaled {
	if len(f.scaled) == 0 {
		return nil
	}
	all := make(map[string]Scaled, len(f.scaled))
	for _, m := range f.desired.State.Models {
		s, c := f.scaled[m.Name], m.Spec.Scaling
		if s == nil || c.Mode == "" {
			continue
		}
		numbers, of := f.numbers(m), variantsOf(m.Spec)
		v := Scaled{
			Mode: c.Mode, Min: c.MinReplicas, Max: c.MaxReplicas, Decided: !s.at.IsZero(), Desired: s.decision.Total(), Current: len(numbers),
			Phase: s.decision.Phase, Reason: s.decision.Reason, Budget: float64(c.Budget),
		}
		for _, i := range numbers {
			if s.closing[i].IsZero() {
				v.Names = append(v.Names, desired.Replica(m.Name, i))
			}
			v.Cost += float64(c.Cost) * float64(of.stages[max(0, of.at(i))])
		}
		if !v.Decided {
			v.Phase, v.Reason, v.Desired = scale.Steady, "nothing is decided yet", len(v.Names)
			if f.leading.follows {
				v.Reason = "another xds decides"
			}
		}
		v.Demand = s.asked.last
		if w := waits[m.Name]; w.Waiting > 0 {
			v.Demand.Queued = max(v.Demand.Queued, w.Waiting)
		}
		all[m.Name] = v
	}
	return all
}

// condition states whether there are as many as demand needs.
func (s Scaled) condition(generation int64) ObjectCondition {
	c := ObjectCondition{Type: scaledType, Status: s.Phase != scale.Limited, Reason: string(s.Phase), Observed: generation}
	if !c.Status {
		c.Message = s.Reason
	}
	return c
}

func (s Scaled) view() *fleetpb.Scaling {
	return &fleetpb.Scaling{
		Mode: s.Mode, Desired: uint32(s.Desired), Current: uint32(s.Current), Min: uint32(s.Min), Max: uint32(s.Max),
		Phase: string(s.Phase), Reason: s.Reason, Arrivals: s.Demand.Load.Requests, Running: uint32(s.Demand.Running), Queued: uint32(s.Demand.Queued),
		Cost: s.Cost, Budget: s.Budget,
	}
}

// awaitedScaled adds the models that may have no replica: requests for them wait. Where the only
// ones that there are can't serve, who waits is to learn why.
func (f *Fleet) awaitedScaled(snap *Snapshot, why map[string]string) {
	for name, s := range snap.Scaled {
		if s.Min > 0 {
			continue
		}
		why[name] = "no replica runs: " + s.Reason
		broken := 0
		for _, e := range snap.Endpoints {
			if e.Model != name {
				continue
			}
			if why[name] = fmt.Sprintf("%s: %s", e.Replica, e.Reason); e.State != notReady {
				why[name] = "it has just been started"
				broken = -1
				break
			}
			if n := f.nodes[e.Nodes[0]]; e.Foreign == nil && n != nil && n.engine.GetState() == enginepb.State_BROKEN {
				broken++
			}
		}
		if broken > 0 && broken >= len(s.Names) {
			delete(why, name)
		}
	}
}
