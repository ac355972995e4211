package main

import (
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
)

// Requests for a model that was asleep leave extproc as soon as it has an endpoint: the gateways
// are to know that first, as they refuse what is sent to nobody they know. Until they have
// answered, extproc learns of the endpoint that it takes no requests yet.

// arrivals is the endpoints of models that are awaited.
type arrivals struct {
	// since has when an endpoint was first published to gateways, by its model and address;
	// zero: they know it. nil: nothing was published yet, and who is there was there before.
	since map[string]time.Time
}

// withhold returns the states of endpoints as extproc is to have them.
func (a *arrivals) withhold(states map[string]proto.Message, snap *fleet.Snapshot, busy func(types ...string) bool, now time.Time) map[string]proto.Message {
	first, known, out := a.since == nil, map[string]time.Time{}, states
	for _, e := range snap.Endpoints {
		if e.Foreign != nil || snap.Awaited[e.Model] == "" || e.Membership == fleet.Absent {
			continue
		}
		key := e.Model + " " + e.Address
		at, seen := a.since[key]
		switch passed := now.Sub(at); {
		case first:
			at = time.Time{}
		case !seen:
			at = now
		case at.IsZero():
		case passed >= pushLatest || passed >= pushFirst && !busy(translate.EndpointsType):
			at = time.Time{}
		}
		known[key] = at
		m, ok := out[e.Address].(*fleetpb.EndpointState)
		if at.IsZero() || !ok || m.GetModel() != e.Model {
			continue
		}
		out = maps.Clone(out)
		m = proto.CloneOf(m)
		m.State, m.Reason = fleetpb.EndpointState_NOT_READY, "the gateways do not know it yet"
		out[e.Address] = m
	}
	a.since = known
	return out
}

// withheld returns what clients are to have, with what extproc is to have of endpoints.
func (r *rollout) withheld(snap *fleet.Snapshot, busy func(types ...string) bool, now time.Time) translate.Resources {
	all := r.resources(snap)
	all[wire.EndpointType] = r.arrivals.withhold(all[wire.EndpointType], snap, busy, now)
	return all
}
