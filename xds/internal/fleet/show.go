package fleet

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/weight"
)

// show adds to the snapshot what people want to see.
func (f *Fleet) show(now time.Time, s *Snapshot) {
	f.drain(now, s)
	weights := make(map[string]uint32, len(s.Endpoints)) // by replica
	for _, e := range s.Endpoints {
		weights[e.Replica] = e.Weight
	}
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		n := f.nodes[name]
		v := Node{
			Name: name, State: notReady, Reason: "has no part in any replica", Since: n.last,
			Last: n.last, Report: n.report, Drain: f.draining[name],
		}
		_, silent := n.silentSince(now)
		v.Free = f.stages[name] == nil && !silent && n.mute.IsZero() && n.engine != nil && n.engine.GetAssignment() == nil && v.Drain == nil
		if !f.planned {
			v.Reason = "waits for the other nodes"
		}
		if st := f.stages[name]; st != nil {
			v.State, v.Reason, v.Since, v.Weight = st.state, st.reason, st.since, weights[st.head]
		}
		s.Nodes = append(s.Nodes, v)
		s.Conditions = append(s.Conditions, n.conditions(now)...)
	}
	s.Conditions = append(append(s.Conditions, f.clusterConditions()...), f.drainConditions()...)
	s.Conditions = append(s.Conditions, f.conditions(s)...)
}

// conditions returns what is wrong with the node itself.
func (n *node) conditions(now time.Time) []obs.Condition {
	var all []obs.Condition
	if since, silent := n.silentSince(now); silent {
		why := "its nodeagent sends nothing"
		if n.stream == 0 {
			why = "its nodeagent's stream is closed"
		} else {
			since = n.last
		}
		all = append(all, obs.Condition{
			Code: "node-silent",
			Text: fmt.Sprintf("%s silent for %d s: %s", n.name, int(now.Sub(since).Seconds()), why),
			Next: "check that the nodeagent runs and reaches xds; its log says more",
		})
	}
	if !n.mute.IsZero() {
		all = append(all, obs.Condition{
			Code: "engine-unheard",
			Text: fmt.Sprintf("%s: engine silent for %d s: %s", n.name, int(now.Sub(n.mute).Seconds()), n.report.GetEngineError()),
			Next: "check that the engine runs; its log says more",
		})
	}
	if h, reason := weight.Health(n.report.GetTelemetry()); h < 1 {
		all = append(all, obs.Condition{
			Code: "node-slow",
			Text: fmt.Sprintf("%s has %.0f %% of its speed: %s", n.name, 100*h, reason),
			Next: "check its cooling, power, memory and driver; it gets fewer requests meanwhile",
		})
	}
	return all
}

// conditions returns what is wrong with replicas and models.
func (f *Fleet) conditions(s *Snapshot) []obs.Condition {
	var all []obs.Condition
	serving := make(map[string]int) // endpoints in EDS, by model
	for _, e := range s.Endpoints {
		if e.Membership == Healthy {
			serving[e.Model]++
		}
		if e.State == notReady && e.Foreign == nil && !e.closes {
			all = append(all, obs.Condition{
				Code: wire.ReplicaNotReady,
				Text: fmt.Sprintf("replica %s takes no requests: %s", e.Replica, e.Reason),
				Next: "it is restarted automatically; if it does not come back, see the log of the node's engine",
			})
		}
	}
	return append(append(all, foreignConditions(s.Endpoints)...), f.modelConditions(s, serving)...)
}

// modelConditions names the models that nobody serves, though somebody should.
func (f *Fleet) modelConditions(s *Snapshot, serving map[string]int) []obs.Condition {
	if f.desired.State == nil {
		return nil
	}
	should := make(map[string]bool)
	for _, e := range s.Endpoints {
		should[e.Model] = true
	}
	var all []obs.Condition
	for _, m := range f.desired.State.Models {
		if serving[m.Name] == 0 && s.Awaited[m.Name] == "" && (len(s.Replicas(m)) > 0 || should[m.Name]) {
			all = append(all, obs.Condition{
				Code: wire.ModelDown,
				Text: fmt.Sprintf("model %s has no replica that takes requests", m.Name),
				Next: "start the nodes of its replicas; their conditions say what is missing",
			})
		}
	}
	return all
}

// View returns the snapshot as status shows it, with the number of ADS clients
// and what else is wrong.
func (s *Snapshot) View(clients int, more []obs.Condition) *fleetpb.FleetView {
	v := &fleetpb.FleetView{At: timestamppb.New(s.At), AdsClients: uint32(clients)}
	if s.Desired != nil {
		v.DesiredVersion = s.Desired.Version
	}
	for _, o := range s.Objects {
		v.Objects = append(v.Objects, o.view())
	}
	v.Endpoints = foreignViews(s.Endpoints)
	for _, u := range s.Unplaced {
		v.Unplaced = append(v.Unplaced, &fleetpb.Unplaced{Replica: u.Replica, Model: u.Model, Reason: u.Why, Asleep: u.Asleep})
	}
	sole := s.Sole()
	for _, n := range s.Nodes {
		v.Nodes = append(v.Nodes, &fleetpb.NodeView{
			Drain:      n.Drain.view(),
			Sole:       sole[n.Name],
			Node:       n.Name,
			State:      n.State,
			Reason:     n.Reason,
			Since:      timestamppb.New(n.Since),
			Weight:     n.Weight,
			LastReport: timestamppb.New(n.Last),
			Report:     n.Report,
		})
	}
	for _, c := range slices.Concat(more, s.refused(), s.Conditions) {
		v.Conditions = append(v.Conditions, &fleetpb.Condition{Code: c.Code, Text: c.Text, Next: c.Next})
	}
	return v
}
