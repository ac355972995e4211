package status

import (
	"fmt"

	"millrace.dev/millrace/xds/fleetpb"
)

// Scaling is how the number of a model's replicas follows demand.
type Scaling struct {
	// Mode is "auto" or "recommend".
	Mode string `json:"mode"`
	// Desired is how many there are to be by demand, Current how many there are, those that
	// drain included.
	Desired int `json:"desired"`
	Current int `json:"current"`
	Min     int `json:"min"`
	Max     int `json:"max"`
	// Phase is "Steady", "Growing", "Shrinking", "Asleep" or "Limited", Reason is why.
	Phase  string `json:"phase"`
	Reason string `json:"reason"`
	// Arrivals are requests per second.
	Arrivals float64 `json:"arrivals_per_second"`
	Running  int     `json:"running"`
	Queued   int     `json:"queued"`
	// Cost is what the replicas cost per hour, Budget what they may; 0: as much as they will.
	Cost   float64 `json:"cost_per_hour"`
	Budget float64 `json:"budget_per_hour,omitempty"`
}

func scalingOf(s *fleetpb.Scaling) *Scaling {
	if s == nil {
		return nil
	}
	return &Scaling{
		Mode: s.GetMode(), Desired: int(s.GetDesired()), Current: int(s.GetCurrent()), Min: int(s.GetMin()), Max: int(s.GetMax()),
		Phase: s.GetPhase(), Reason: s.GetReason(), Arrivals: s.GetArrivals(), Running: int(s.GetRunning()), Queued: int(s.GetQueued()),
		Cost: s.GetCost(), Budget: s.GetBudget(),
	}
}

// scalings shows the models whose number of replicas follows demand, and why it is what it is.
func scalings(all []Object) table {
	t := table{{"MODEL", "REPLICAS", "DESIRED", "OF", "SCALING", "WHY"}}
	for _, o := range all {
		if s := o.Scaling; s != nil {
			mode := s.Phase
			if s.Mode != "auto" {
				mode += " (" + s.Mode + ")"
			}
			t = append(t, []string{o.Name, fmt.Sprint(s.Current), fmt.Sprint(s.Desired), fmt.Sprintf("%d to %d", s.Min, s.Max), mode, s.Reason})
		}
	}
	return t
}
