package mesh

import (
	"fmt"
	"slices"
	"strings"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// replica is one replica that the configuration asks for.
type replica struct {
	model, name string
	stages      int
}

// replicas returns all that the configuration asks for.
func replicas(f config.File) []replica {
	var rs []replica
	for _, m := range f.Models {
		for i := range m.Spec.Replicas {
			rs = append(rs, replica{model: m.Metadata.Name, name: m.ReplicaName(i), stages: m.Spec.LayoutOf(i).Stages})
		}
	}
	return rs
}

// replicas returns those that are desired as far as is known: xds may refuse what the
// configuration asks for.
func (m *mesh) replicas(v *fleetpb.FleetView) []replica {
	if len(v.GetObjects()) == 0 {
		return m.first
	}
	var rs []replica
	for _, o := range v.GetObjects() {
		for _, name := range o.GetReplicas() {
			if i := slices.IndexFunc(m.first, func(r replica) bool { return r.name == name }); i >= 0 {
				rs = append(rs, m.first[i])
			} else {
				rs = append(rs, replica{model: o.GetName(), name: name, stages: 1})
			}
		}
	}
	return rs
}

// head returns the node that answers for a replica, or nil while no node has
// reported that it does. Of one that moves that is the one that takes requests.
func head(v *fleetpb.FleetView, name string) (best *fleetpb.NodeView) {
	for _, n := range v.GetNodes() {
		a := n.GetReport().GetEngine().GetAssignment()
		if a.GetReplica() == name && a.GetStage() == 0 && (best == nil || isReady(n)) {
			best = n
		}
	}
	return best
}

// undrained returns the replicas that are to be ready: those that drained nodes have, or keep
// from having a place, are not, where their model has another.
func undrained(v *fleetpb.FleetView, rs []replica) []replica {
	drains, waits := false, map[string]bool{} // replicas
	placed := map[string]bool{}
	for _, n := range v.GetNodes() {
		name := n.GetReport().GetEngine().GetAssignment().GetReplica()
		placed[name] = true
		if n.GetDrain() != nil {
			drains, waits[name] = true, true
		}
	}
	if !drains {
		return rs
	}
	var left []replica
	models := map[string]bool{}
	for _, r := range rs {
		if isReady(head(v, r.name)) || placed[r.name] && !waits[r.name] {
			left, models[r.model] = append(left, r), true
		}
	}
	for _, r := range rs {
		if !models[r.model] {
			left = append(left, r)
		}
	}
	return left
}

func isReady(n *fleetpb.NodeView) bool { return n.GetState() == fleetpb.EndpointState_READY }

// serves reports whether each model of ours has a replica that takes requests, or an endpoint
// that somebody else runs; where these run all, whether there is one.
func serves(v *fleetpb.FleetView, rs []replica) bool {
	ready := map[string]bool{} // by model
	for _, r := range rs {
		ready[r.model] = ready[r.model] || isReady(head(v, r.name)) || unplaced(v, r.name).GetAsleep()
	}
	for _, e := range v.GetEndpoints() {
		for _, model := range e.GetModels() {
			if e.GetState() == fleetpb.EndpointState_READY {
				ready[model] = true
			}
		}
	}
	for _, o := range v.GetObjects() {
		for _, c := range o.GetConditions() {
			if c.GetType() == "Ready" && c.GetStatus() && c.GetReason() == wire.Asleep {
				ready[o.GetName()] = true // there are none while nobody asks
			}
		}
	}
	for _, ok := range ready {
		if !ok {
			return false
		}
	}
	return len(ready) > 0
}

// missing says for each replica that is not ready what it is doing; nothing when
// all are. A nil view means that xds has published nothing yet.
func missing(v *fleetpb.FleetView, rs []replica) []string {
	if v == nil {
		return []string{"xds to answer"}
	}
	var texts []string
	for _, r := range rs {
		if !isReady(head(v, r.name)) {
			texts = append(texts, r.name+" ("+parts(v, r)+")")
		}
	}
	return texts
}

// parts says what the nodes of a replica are doing.
func parts(v *fleetpb.FleetView, r replica) string {
	var texts []string
	for _, n := range v.GetNodes() {
		e := n.GetReport().GetEngine()
		if e.GetAssignment().GetReplica() == r.name {
			texts = append(texts, n.GetNode()+" "+doing(n, e))
		}
	}
	if len(texts) < r.stages {
		texts = append(texts, fmt.Sprintf("%d of %d nodes reported", len(v.GetNodes()), max(r.stages, len(v.GetNodes()))))
	}
	return strings.Join(texts, ", ")
}

func doing(n *fleetpb.NodeView, e *enginepb.Status) string {
	text := strings.ToLower(e.GetState().String())
	reason := e.GetReason()
	if reason == "" {
		reason = n.GetReason()
	}
	if reason != "" {
		text += ": " + reason
	}
	return text
}
