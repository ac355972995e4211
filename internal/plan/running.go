package plan

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/xds/fleetpb"
)

// room is the part of a node's memory that a model may take: the rest is the system's.
const room = 0.9

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
		machines[machineOf(v)]++
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
		n := nodeOf(v, machines[machineOf(v)])
		at := slices.IndexFunc(all, func(s subject) bool { return s.Model.Name == a.GetModel() })
		if at >= 0 {
			s := all[at]
			ranks := float64(max(1, a.GetBackend().GetTensorParallel()))
			n.Decode = speeds[a.GetReplica()].GetDecode() * float64(s.Model.Bytes()) / ranks
			n.Prefill = speeds[a.GetReplica()].GetPrefill() * float64(s.Model.Bytes()) / ranks
			if !seen[a.GetReplica()] {
				seen[a.GetReplica()] = true
				layouts[at].Replicas = append(layouts[at].Replicas, replicaOf(a, s.Model.Layers))
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

// machineOf is the host of a node's engine.
func machineOf(v *fleetpb.NodeView) string {
	host, _, _ := net.SplitHostPort(v.GetReport().GetEngine().GetGrpcAddress())
	return cmp.Or(host, v.GetNode())
}

// nodeOf returns a node of those that share one machine.
func nodeOf(v *fleetpb.NodeView, sharing int) planner.Node {
	t := v.GetReport().GetTelemetry()
	n := planner.Node{Name: v.GetNode(), Domain: v.GetReport().GetZone()}
	least := uint64(0)
	for _, g := range t.GetGpus() {
		if !g.GetLost() {
			n.Devices++
			least = min(cmp.Or(least, g.GetMemoryTotalBytes()), g.GetMemoryTotalBytes())
		}
	}
	if n.Devices == 0 {
		least = t.GetMemoryTotalBytes() / uint64(max(1, sharing))
	}
	n.Memory = uint64(room * float64(least))
	return n
}

// replicaOf returns what an assignment is as a layout: each stage's layers by its share, as
// llama.cpp rounds them; of vLLM, ranks on one node.
func replicaOf(a *enginepb.Assignment, layers int) planner.Replica {
	r := planner.Replica{TensorParallel: int(max(1, a.GetBackend().GetTensorParallel()))}
	if ranks := int(a.GetBackend().GetPipelineParallel()); ranks > 1 && len(a.GetStages()) == 1 {
		for i := range ranks {
			r.Stages = append(r.Stages, planner.Stage{Node: a.GetStages()[0].GetNode(), Layers: (i+1)*layers/ranks - i*layers/ranks})
		}
		return r
	}
	var total, sum float64
	for _, s := range a.GetStages() {
		total += float64(s.GetShare())
	}
	had := 0
	for _, s := range a.GetStages() {
		sum += float64(s.GetShare())
		upTo := int(math.Round(float64(layers) * sum / total))
		r.Stages = append(r.Stages, planner.Stage{Node: s.GetNode(), Layers: upTo - had})
		had = upTo
	}
	return r
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
