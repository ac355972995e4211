package main

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
)

// TestGatewaysLearnOfEndpointsFirst where requests wait for them.
func TestGatewaysLearnOfEndpointsFirst(t *testing.T) {
	start, waits, a := time.Unix(1_000_000, 0), false, arrivals{}
	busy := func(...string) bool { return waits }
	state := func(after time.Duration, endpoints ...fleet.Endpoint) string {
		states := map[string]proto.Message{}
		for _, e := range endpoints {
			states[e.Address] = &fleetpb.EndpointState{Address: e.Address, Model: e.Model, State: fleetpb.EndpointState_READY}
		}
		got := a.withhold(states, &fleet.Snapshot{Endpoints: endpoints, Awaited: map[string]string{"m": "asleep", "n": "asleep"}}, busy, start.Add(after))
		if len(endpoints) == 0 {
			return ""
		}
		return got["x"].(*fleetpb.EndpointState).GetState().String()
	}
	m, n := fleet.Endpoint{Address: "x", Model: "m", Membership: fleet.Healthy}, fleet.Endpoint{Address: "x", Model: "n", Membership: fleet.Healthy}
	always := fleet.Endpoint{Address: "x", Model: "always", Membership: fleet.Healthy}
	steps := []struct {
		name  string
		after time.Duration
		busy  bool
		of    fleet.Endpoint
		want  string
	}{
		{"it was there before xds was", 0, true, m, "READY"},
		{"another model comes to its address", time.Second, true, n, "NOT_READY"},
		{"the push is not on its way yet", time.Second + pushFirst/2, false, n, "NOT_READY"},
		{"gateways have not answered", time.Second + pushFirst, true, n, "NOT_READY"},
		{"they have", time.Second + pushFirst + 1, false, n, "READY"},
		{"a push of something else is under way", 2 * time.Second, true, n, "READY"},
		{"it comes again", 3 * time.Second, true, m, "NOT_READY"},
		{"a gateway never answers", 3*time.Second + pushLatest, true, m, "READY"},
		{"nobody waits for one that is always loaded", 9 * time.Second, true, always, "READY"},
	}
	for _, s := range steps {
		waits = s.busy
		if got := state(s.after, s.of); got != s.want {
			t.Errorf("%s: %s, want %s", s.name, got, s.want)
		}
	}
}
