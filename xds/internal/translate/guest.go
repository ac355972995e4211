package translate

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
)

// What an Envoy gets that somebody else configures, such as Istio's: parts that are put
// into its own listeners, routes and clusters. Its filters are switched on by our routes
// alone, so that nobody else's requests notice them.

// Names of the filters in such an Envoy.
const (
	guestHeaders = "millrace.headers"
	guestPicker  = "millrace.picker"
)

// GuestFilters returns the filters, to stand in this order before the router's: one that
// removes what a client must not say, and one that asks the extproc of a cluster by the
// name of its host and refuses what has no answer, or forwards it; without a cluster there is
// only the first.
func GuestFilters(d *desired.State, extproc, host string, refuse bool) []*hcmv3.HttpFilter {
	filter := func(name string, m proto.Message) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, Disabled: true, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
	}
	all := []*hcmv3.HttpFilter{filter(guestHeaders, &mutationv3.HeaderMutation{Mutations: &mutationv3.Mutations{
		RequestMutations:          guestUntrusted(d),
		ResponseMutations:         []*rulesv3.HeaderMutation{remove(wire.LoadHeader), remove(haltHeader)},
		ResponseTrailersMutations: []*rulesv3.HeaderMutation{remove(wire.LoadHeader)},
	}})}
	if extproc != "" {
		all = append(all, filter(guestPicker, Picker(extproc, host, refuse)))
	}
	return all
}

// guestEnvoyPrefixes are of headers by which a client would choose how often and for how
// long it is tried. Other headers of Envoy are its owner's.
var guestEnvoyPrefixes = []string{wire.RetriesHeader, "x-envoy-retry-", "x-envoy-retriable-", "x-envoy-upstream-", "x-envoy-hedge-"}

// guestUntrusted removes what a client must not say. What begins with our own prefix is
// named: an expression for all but some names is too large for an Envoy whose owner has
// not allowed it.
func guestUntrusted(d *desired.State) []*rulesv3.HeaderMutation {
	prefixed := func(p string) *rulesv3.HeaderMutation {
		return removeMatching(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	all := []*rulesv3.HeaderMutation{prefixed(wire.GatewayPrefix)}
	for _, p := range guestEnvoyPrefixes {
		all = append(all, prefixed(p))
	}
	spec := d.Policy.Spec
	for _, h := range []string{wire.ModelHeader, wire.PromptTokensHeader, wire.PrefixHeader} {
		if h != spec.Priorities.Header && h != spec.Sessions.Header && h != spec.Flow.Tenants.Header {
			all = append(all, remove(h))
		}
	}
	return all
}

// GuestHost returns what is added to a virtual host that has our routes.
func GuestHost() *routev3.VirtualHost {
	return &routev3.VirtualHost{IncludeRequestAttemptCount: true, IncludeAttemptCountInResponse: true, IncludeIsTimeoutRetryHeader: true}
}

// GuestRoute returns what is added to a route to engines: it switches the filters on.
func GuestRoute(d *desired.State, extproc string) *routev3.Route {
	spec := d.Policy.Spec
	on := map[string]*anypb.Any{guestHeaders: pack(&routev3.FilterConfig{Config: pack(&mutationv3.HeaderMutationPerRoute{})})}
	if extproc != "" {
		on[guestPicker] = asked()[extprocFilter]
	}
	timeout := durationpb.New(spec.Limits.RequestTimeout.Duration)
	return &routev3.Route{
		TypedPerFilterConfig:   on,
		RequestBodyBufferLimit: wrapperspb.UInt64(uint64(spec.Limits.MaxBodyBytes)),
		Action:                 &routev3.Route_Route{Route: &routev3.RouteAction{Timeout: timeout, IdleTimeout: timeout, RetryPolicy: retries(spec.Retries)}},
	}
}

// GuestAnswers returns the routes that Envoy answers itself, in their order.
func GuestAnswers(d *desired.State) []*routev3.Route { return modelRoutes(d, "") }

// GuestEngines returns what is added to a model's cluster: how a host is chosen, and, for
// engines of our own alone, HTTP/2 whose pings find connections that lead nowhere.
func GuestEngines(d *desired.State, model string) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		LoadBalancingPolicy:           picked(),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(upstreamBuffer),
		TypedExtensionProtocolOptions: engineHTTP2(),
		IgnoreHealthOnHostRemoval:     true,
	}
	if ServedByOthers(d, model) {
		c.TypedExtensionProtocolOptions = http1()
	}
	return c
}

// GuestHalts returns what is added to a model's cluster of an Envoy that is known to have
// these filters: by them a request that hurts two engines is not given to a third one.
func GuestHalts(d *desired.State, model string) *clusterv3.Cluster {
	if ServedByOthers(d, model) {
		return &clusterv3.Cluster{TypedExtensionProtocolOptions: http1(halts()...)}
	}
	return &clusterv3.Cluster{TypedExtensionProtocolOptions: engineHTTP2(halts()...)}
}

// GuestPickers returns what is added to the cluster of the extprocs, which are asked each
// interval, in seconds, whether they serve, by the name of their host.
func GuestPickers(interval float64, host string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(upstreamBuffer),
		TypedExtensionProtocolOptions: pickerPings(),
		HealthChecks:                  []*corev3.HealthCheck{pickerCheck(interval, host)},
		IgnoreHealthOnHostRemoval:     true,
	}
}

// ServedByOthers reports whether servers that somebody else runs serve a model, too.
func ServedByOthers(d *desired.State, model string) bool { return servedByOthers(d)[model] }

// http1 is HTTP/1.1 whose trailers are kept: usage comes in them from our own engines.
func http1(filters ...*hcmv3.HttpFilter) map[string]*anypb.Any {
	return protocol(&httpv3.HttpProtocolOptions{
		HttpFilters: filters,
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
					HttpProtocolOptions: &corev3.Http1ProtocolOptions{EnableTrailers: true},
				},
			},
		},
	}, wire.ClientIdle)
}
