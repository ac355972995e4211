package istio

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"millrace.dev/millrace/xds/internal/translate"
)

// filter is an EnvoyFilter that is to be.
type filter struct {
	namespace, name string
	// domains are the virtual hosts that have our routes.
	domains []string
	// selector is labels of Pods; empty: all of the namespace that are of context.
	selector map[string]string
	context  networking.EnvoyFilter_PatchContext
	// retries is whether routes have no retry policy of ours yet.
	retries bool
}

// How often an Envoy asks an extproc whether it serves, in seconds: there are few
// gateways and many sidecars.
const (
	gatewayCheck = 0.5
	sidecarCheck = 2
)

// haltingProxies are Istio's Envoys, by their versions, that have the filters of
// translate.GuestHalts among those of a try: 1.31 is the first that it was tried with. One
// that lacks a filter would refuse the whole cluster.
const haltingProxies = `^(1\.(3[1-9]|[4-9][0-9])|[2-9])\.`

// filter adds an EnvoyFilter. The filters are there for all, and on for our routes alone.
func (b *builder) filter(f filter) {
	var all []*networking.EnvoyFilter_EnvoyConfigObjectPatch
	patch := func(to networking.EnvoyFilter_ApplyTo, op networking.EnvoyFilter_Patch_Operation, m *networking.EnvoyFilter_EnvoyConfigObjectMatch, v proto.Message) {
		m.Context = f.context
		all = append(all, &networking.EnvoyFilter_EnvoyConfigObjectPatch{
			ApplyTo: to, Match: m, Patch: &networking.EnvoyFilter_Patch{Operation: op, Value: structOf(v)},
		})
	}
	for _, h := range translate.GuestFilters(b.d, b.picker(), b.pickerHost(), b.Refuse) {
		patch(networking.EnvoyFilter_HTTP_FILTER, networking.EnvoyFilter_Patch_INSERT_BEFORE, beforeRouter(), h)
	}
	route := translate.GuestRoute(b.d, b.picker())
	if !f.retries {
		route.GetRoute().RetryPolicy = nil
	}
	patch(networking.EnvoyFilter_HTTP_ROUTE, networking.EnvoyFilter_Patch_MERGE, onHost("", routeName), route)
	for _, domain := range f.domains {
		patch(networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_Patch_MERGE, onHost(domain, ""), translate.GuestHost())
		for _, r := range slices.Backward(translate.GuestAnswers(b.d)) { // each comes before the one before
			patch(networking.EnvoyFilter_HTTP_ROUTE, networking.EnvoyFilter_Patch_INSERT_FIRST, onHost(domain, ""), r)
		}
	}
	for _, m := range b.d.Models {
		patch(networking.EnvoyFilter_CLUSTER, networking.EnvoyFilter_Patch_MERGE, onCluster(b.Host(m.Name)), translate.GuestEngines(b.d, m.Name))
		halting := onCluster(b.Host(m.Name))
		halting.Proxy = &networking.EnvoyFilter_ProxyMatch{ProxyVersion: haltingProxies}
		patch(networking.EnvoyFilter_CLUSTER, networking.EnvoyFilter_Patch_MERGE, halting, translate.GuestHalts(b.d, m.Name))
	}
	if b.picker() != "" {
		interval := gatewayCheck
		if f.context != networking.EnvoyFilter_GATEWAY {
			interval = sidecarCheck
		}
		patch(networking.EnvoyFilter_CLUSTER, networking.EnvoyFilter_Patch_MERGE, onCluster(b.pickerHost()), translate.GuestPickers(interval, b.pickerHost()))
	}
	e := &networking.EnvoyFilter{ConfigPatches: all}
	if len(f.selector) > 0 {
		e.WorkloadSelector = &networking.WorkloadSelector{Labels: f.selector}
	}
	b.add(EnvoyFilter, f.namespace, f.name, "", e)
}

// beforeRouter matches where the router's filter is in a listener.
func beforeRouter() *networking.EnvoyFilter_EnvoyConfigObjectMatch {
	return &networking.EnvoyFilter_EnvoyConfigObjectMatch{ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{
		Listener: &networking.EnvoyFilter_ListenerMatch{FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{
			Filter: &networking.EnvoyFilter_ListenerMatch_FilterMatch{
				Name:      "envoy.filters.network.http_connection_manager",
				SubFilter: &networking.EnvoyFilter_ListenerMatch_SubFilterMatch{Name: "envoy.filters.http.router"},
			},
		}},
	}}
}

// onHost matches a virtual host, or a route of any.
func onHost(domain, route string) *networking.EnvoyFilter_EnvoyConfigObjectMatch {
	host := &networking.EnvoyFilter_RouteConfigurationMatch_VirtualHostMatch{DomainName: domain}
	if route != "" {
		host.Route = &networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch{Name: route}
	}
	return &networking.EnvoyFilter_EnvoyConfigObjectMatch{ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration{
		RouteConfiguration: &networking.EnvoyFilter_RouteConfigurationMatch{Vhost: host},
	}}
}

func onCluster(service string) *networking.EnvoyFilter_EnvoyConfigObjectMatch {
	return &networking.EnvoyFilter_EnvoyConfigObjectMatch{ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster{
		Cluster: &networking.EnvoyFilter_ClusterMatch{Service: service},
	}}
}

// structOf returns an Envoy's message as an EnvoyFilter has it.
func structOf(m proto.Message) *structpb.Struct {
	b, err := protojson.Marshal(m)
	if err == nil {
		var s structpb.Struct
		if err = protojson.Unmarshal(b, &s); err == nil {
			return &s
		}
	}
	panic(fmt.Sprintf("istio: %T: %v", m, err)) // made here
}
