package translate

import (
	"maps"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
)

// Fleet returns the resources that the snapshot decides: an assignment for each
// model, also an empty one, and our own state of each endpoint.
func Fleet(d *desired.State, snap *fleet.Snapshot) Resources {
	assignments := make(map[string]proto.Message, len(d.Models))
	hosts := make(map[string]*endpointv3.LocalityLbEndpoints) // by model
	for _, m := range d.Models {
		name := EnginesCluster(m.Name)
		locality := &endpointv3.LocalityLbEndpoints{}
		hosts[m.Name] = locality
		assignments[name] = &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{locality},
		}
	}
	states := make(map[string]proto.Message, len(snap.Endpoints))
	for _, e := range snap.Endpoints {
		switch {
		case states[e.Address] == nil:
			states[e.Address] = state(e)
		case e.Foreign == nil || e.First:
			continue // a second claim to an address, which the fleet has refused
		}
		locality := hosts[e.Model]
		if h := member(e); h != nil && locality != nil {
			locality.LbEndpoints = append(locality.LbEndpoints, h)
		}
	}
	return Resources{EndpointsType: assignments, wire.EndpointType: states}
}

// member returns the endpoint as a host of EDS; nil if it is to be none. Hosts
// that must get no request are left out, not marked: override_host ignores
// health. Weights are at least 1, as Envoy takes 0 for unset.
func member(e fleet.Endpoint) *endpointv3.LbEndpoint {
	a, err := address(e.Address)
	if e.Membership == fleet.Absent || err != nil {
		return nil
	}
	h := host(a)
	h.LoadBalancingWeight = wrapperspb.UInt32(max(1, e.Weight))
	h.HealthStatus = corev3.HealthStatus_HEALTHY
	if e.Membership == fleet.Unhealthy {
		h.HealthStatus = corev3.HealthStatus_UNHEALTHY
	}
	switch x := e.Foreign; {
	case x != nil && x.TLS.On():
		h.Metadata = matched(engineMark(wayOf(x.Endpoint).name))
	case x != nil, e.PlainText:
		h.Metadata = matched(mark())
	}
	return h
}

// matched is the metadata by which a host's transport socket is found.
func matched(by *structpb.Struct) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.transport_socket_match": by}}
}

func state(e fleet.Endpoint) *fleetpb.EndpointState {
	if e.Foreign != nil {
		m := e.Foreign.Resource()
		m.State, m.Reason, m.Weight = e.State, e.Reason, e.Weight
		return m
	}
	return &fleetpb.EndpointState{
		Address:  e.Address,
		Node:     e.Nodes[0],
		Zone:     e.Zone,
		Model:    e.Model,
		Replica:  e.Replica,
		Nodes:    e.Nodes,
		State:    e.State,
		Reason:   e.Reason,
		Weight:   e.Weight,
		Load:     e.Load,
		Speed:    e.Speed,
		Epoch:    e.Epoch,
		Health:   e.Health,
		Accounts: e.Accounts,
	}
}

func models(d *desired.State) map[string]proto.Message {
	all := make(map[string]proto.Message, len(d.Models))
	fallback := d.Default()
	for _, m := range d.Models {
		all[m.Name] = policy.Model(m.Name, m.Spec, m.Name == fallback)
	}
	return all
}

// mostAwaited bounds what is said of what requests wait for, in bytes.
const mostAwaited = 1000

// Awaited returns the states of models with what requests for them are to wait for, by the
// model's name.
func Awaited(models map[string]proto.Message, awaited map[string]string) map[string]proto.Message {
	if len(awaited) == 0 {
		return models
	}
	all := maps.Clone(models)
	for name, why := range awaited {
		if m, ok := all[name].(*fleetpb.ModelState); ok {
			m = proto.CloneOf(m)
			m.Asleep = strings.ToValidUTF8(why[:min(len(why), mostAwaited)], "")
			all[name] = m
		}
	}
	return all
}
