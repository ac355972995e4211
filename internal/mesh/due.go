package mesh

import (
	"fmt"
	"slices"
	"strings"

	"millrace.dev/millrace/xds/fleetpb"
)

// due returns the replicas that are to be ready, and why those of other models can't be.
func (m *mesh) due(v *fleetpb.FleetView) (rs []replica, out []string) {
	return shutOut(v, undrained(v, awake(v, m.replicas(v))), len(m.plan.Engines))
}

// shutOut takes from the replicas those of models that have no place because of drained
// nodes, as is known once all nodes of the mesh have reported, and returns a line for each such model.
func shutOut(v *fleetpb.FleetView, rs []replica, nodes int) (left []replica, out []string) {
	drains := drainedNodes(v)
	if len(drains) == 0 || reported(v) < nodes {
		return rs, nil
	}
	why := map[string][]string{} // by model
	placed := map[string]bool{}  // models
	for _, r := range rs {
		if u := unplaced(v, r.name); u != nil && head(v, r.name) == nil {
			why[r.model] = append(why[r.model], r.name+": "+u.GetReason())
		} else {
			placed[r.model] = true
		}
	}
	for _, r := range rs {
		switch {
		case placed[r.model]:
			left = append(left, r)
		case why[r.model] != nil:
			out = append(out, fmt.Sprintf("NOT SERVED: model %s: no place for %s; drained: %s; millrace undrain %s takes it back",
				r.model, strings.Join(why[r.model], "; "), strings.Join(drains, ", "), drains[0]))
			why[r.model] = nil // one line for all its replicas
		}
	}
	return left, out
}

// drainedNodes returns the names of the nodes that are drained.
func drainedNodes(v *fleetpb.FleetView) []string {
	var names []string
	for _, n := range v.GetNodes() {
		if n.GetDrain() != nil {
			names = append(names, n.GetNode())
		}
	}
	return names
}

// reported counts the nodes whose engine has reported to xds.
func reported(v *fleetpb.FleetView) (n int) {
	for _, node := range v.GetNodes() {
		if node.GetReport().GetEngine().GetGrpcAddress() != "" {
			n++
		}
	}
	return n
}

// unplaced returns why a replica has no place, as xds says; nil: it has one, or xds has not
// decided.
func unplaced(v *fleetpb.FleetView, replica string) *fleetpb.Unplaced {
	i := slices.IndexFunc(v.GetUnplaced(), func(u *fleetpb.Unplaced) bool { return u.GetReplica() == replica })
	if i < 0 {
		return nil
	}
	return v.GetUnplaced()[i]
}

// awake returns the replicas that are to have places: one that is loaded on demand and
// asleep gets one when somebody asks for it.
func awake(v *fleetpb.FleetView, rs []replica) []replica {
	return slices.DeleteFunc(slices.Clone(rs), func(r replica) bool { return unplaced(v, r.name).GetAsleep() })
}

// dormant reports whether a replica is not to be asked only to see that it answers: its model
// is loaded when somebody asks for it.
func dormant(n *fleetpb.NodeView) bool {
	e := n.GetReport().GetEngine()
	return e.GetAssignment().GetBackend().GetOnDemand() || e.GetLoad().GetWake().AsDuration() > 0
}
