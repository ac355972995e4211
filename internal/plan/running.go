package plan

import (
	"fmt"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/placing"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/xds/fleetpb"
)

// observed returns the nodes of a mesh that report, and how its models lie on them now. Nodes
// that are drained are left out, as nothing may come there, and so are those that run what is
// not planned here, or nobody knows what.
//
// Speeds are those that each replica has measured: its stages count as equally fast, as
// nothing is known of each. Nodes of one machine share its memory.
func observed(view *fleetpb.FleetView, all []subject) (planner.Fleet, []planner.Layout) {
	var fleet planner.Fleet
	layouts := make([]planner.Layout, len(all))
	for i, s := range all {
		layouts[i].Model = s.Model.Name
	}
	machines := map[string]int{} // how many nodes each has
	for _, v := range view.GetNodes() {
		machines[placing.Machine(v.GetReport())]++
	}
	speeds := map[string]*enginepb.Speed{} // by replica, as its head reports it
	for _, v := range view.GetNodes() {
		if e := v.GetReport().GetEngine(); e.GetAssignment().GetStage() == 0 {
			speeds[e.GetAssignment().GetReplica()] = e.GetSpeed()
		}
	}
	seen := map[string]bool{}
	for _, v := range view.GetNodes() {
		a := v.GetReport().GetEngine().GetAssignment()
		n := nodeOf(v, machines[placing.Machine(v.GetReport())])
		at := slices.IndexFunc(all, func(s subject) bool { return s.Model.Name == a.GetModel() })
		if at >= 0 {
			s := all[at]
			ranks := float64(max(1, a.GetBackend().GetTensorParallel()))
			n.Decode = speeds[a.GetReplica()].GetDecode() * float64(s.Model.Bytes()) / ranks
			n.Prefill = speeds[a.GetReplica()].GetPrefill() * float64(s.Model.Bytes()) / ranks
			if !seen[a.GetReplica()] {
				seen[a.GetReplica()] = true
				layouts[at].Replicas = append(layouts[at].Replicas, placing.Replica(a, s.Model.Layers))
			}
		}
		if v.GetDrain() != nil || v.GetReport().GetEngine() == nil || a != nil && at < 0 {
			continue
		}
		if v.GetState() != fleetpb.EndpointState_NOT_READY || a == nil {
			fleet.Nodes = append(fleet.Nodes, n)
		}
	}
	return fleet, layouts
}

// nodeOf returns a node of those that share one machine.
func nodeOf(v *fleetpb.NodeView, sharing int) planner.Node {
	n := planner.Node{Name: v.GetNode(), Domain: v.GetReport().GetZone()}
	n.Devices, n.Memory = placing.Devices(v.GetReport().GetTelemetry(), sharing)
	return n
}

// stepsOf writes what it takes from what runs to what is planned.
func stepsOf(steps []planner.Step) string {
	if len(steps) == 0 {
		return "what runs stays: nothing else is much better\n"
	}
	text := "from what runs to that, in this order:\n"
	for i, s := range steps {
		text += fmt.Sprintf("  %d. %s\n", i+1, s.Text)
	}
	return text
}
