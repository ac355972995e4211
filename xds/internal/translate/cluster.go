package translate

import (
	_ "embed"
	"fmt"
	"net"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	overridev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	robinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
)

// Names of clusters.
const (
	extprocCluster = "extproc"
	tracesCluster  = "traces"
	enginesPrefix  = "engines/"
)

// upstreamBuffer bounds what is buffered of one connection to an engine or to
// extproc, in bytes: a long prompt goes as one message.
const upstreamBuffer = 32 << 20

// unlimited is for limits that would only get in the way: what engines take is
// bounded by the engines.
const unlimited = 1 << 20

// EnginesCluster returns the name of a model's cluster.
func EnginesCluster(model string) string { return enginesPrefix + model }

func clusters(s Site, d *desired.State) (map[string]proto.Message, error) {
	all := make(map[string]proto.Message)
	foreign := servedByOthers(d)
	for _, m := range d.Models {
		name := EnginesCluster(m.Name)
		all[name] = engines(name)
		if foreign[m.Name] {
			speakHTTP1(all[name].(*clusterv3.Cluster))
			reachEngines(all[name].(*clusterv3.Cluster), d, m.Name)
		}
	}
	if len(s.ExtProc) > 0 {
		c, err := extproc(s.ExtProc)
		if err != nil {
			return nil, err
		}
		all[extprocCluster] = c
	}
	if s.Traces != "" {
		c, err := traces(s.Traces)
		if err != nil {
			return nil, err
		}
		all[tracesCluster] = c
	}
	return all, s.secure(all)
}

// engines returns the cluster of a model: the hosts that extproc names, in its
// order, and without extproc round robin by the weights of EDS.
func engines(name string) *clusterv3.Cluster {
	eds := ads()
	// A cluster that changes waits for its assignment; one that hasn't changed is
	// not sent again, and the default would be to wait for 15 s.
	eds.InitialFetchTimeout = seconds(0.2)
	c := cluster(name, clusterv3.Cluster_EDS)
	c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: eds}
	c.LoadBalancingPolicy = picked()
	c.HealthChecks = []*corev3.HealthCheck{engineCheck()}
	c.OutlierDetection = outliers(5)
	// A machine that stalls for seconds fails the checks of all its engines at once.
	// Below 1 %, that is when no host at all is healthy, a host that may be bad is
	// better than a sure 503. Not so for extproc: requests do well without it, and
	// would wait for one that hangs.
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: 1}
	c.TypedExtensionProtocolOptions = engineHTTP2(halts()...)
	return c
}

// engineHTTP2 is how engines of ours are spoken to.
//
// What is stuck in an engine that hangs becomes a retry elsewhere: its connection is closed
// when nobody there answers a ping. (Closing connections on a failed health check does that
// for TCP alone.) A ping must survive a busy machine, because the connection's streams die
// with it.
func engineHTTP2(filters ...*hcmv3.HttpFilter) map[string]*anypb.Any {
	return http2(0.5, 2, wire.OurIdle, filters...)
}

// picked returns the policy by which hosts are chosen: the ones that extproc names, in
// its order, and else round robin by weight.
func picked() *clusterv3.LoadBalancingPolicy {
	return policies(extension("envoy.load_balancing_policies.override_host", &overridev3.OverrideHost{
		OverrideHostSources: []*overridev3.OverrideHost_OverrideHostSource{{
			Metadata: &metadatav3.MetadataKey{Key: wire.LBNamespace, Path: segments(wire.DestinationHeader)},
		}},
		SelectedHostKey: &metadatav3.MetadataKey{Key: wire.LBNamespace, Path: segments(wire.ServedKey)},
		FallbackPolicy:  policies(extension("envoy.load_balancing_policies.round_robin", &robinv3.RoundRobin{})),
	}))
}

// servedByOthers returns the models that endpoints serve which somebody else runs.
func servedByOthers(d *desired.State) map[string]bool {
	models := make(map[string]bool)
	for _, o := range d.Endpoints {
		for _, e := range o.Spec.Endpoints {
			for _, m := range e.Models {
				models[m] = true
			}
		}
	}
	return models
}

// speakHTTP1 changes the cluster of a model that external servers serve, too: these speak HTTP/1.1, and may have no /health, so that any answer but a server error
// shows that they live.
//
// HTTP/1.1 has no pings: a request that is stuck in a server that hangs stays there
// until its time is over. Those that come after it go elsewhere, as xds and extproc find
// out that nothing is answered there.
func speakHTTP1(c *clusterv3.Cluster) {
	c.TypedExtensionProtocolOptions = http1(halts()...)
	for _, h := range c.GetHealthChecks() {
		h.GetHttpHealthCheck().ExpectedStatuses = []*typev3.Int64Range{{Start: 200, End: 500}}
	}
}

// cluster returns what all clusters have in common.
func cluster(name string, typ clusterv3.Cluster_DiscoveryType) *clusterv3.Cluster {
	limits := func(p corev3.RoutingPriority) *clusterv3.CircuitBreakers_Thresholds {
		return &clusterv3.CircuitBreakers_Thresholds{
			Priority:           p,
			MaxConnections:     wrapperspb.UInt32(unlimited),
			MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests:        wrapperspb.UInt32(unlimited),
			MaxRetries:         wrapperspb.UInt32(unlimited),
		}
	}
	return &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: typ},
		ConnectTimeout:                seconds(0.5),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(upstreamBuffer),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{
			limits(corev3.RoutingPriority_DEFAULT), limits(corev3.RoutingPriority_HIGH),
		}},
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// In panic Envoy would send to hosts that are known to be bad. Where these
			// are better than nobody, the cluster says so itself.
			HealthyPanicThreshold: &typev3.Percent{Value: 0},
			// Else the workers learn up to 1 s late what a health check has found: a
			// host that is back would stay unused, one that hangs would be used.
			UpdateMergeWindow: seconds(0),
		},
		// Else a host that xds removes stays as long as its health check passes.
		IgnoreHealthOnHostRemoval: true,
	}
}

// engineCheck asks an engine twice a second. A busy machine answers late: two
// answers must be missing.
func engineCheck() *corev3.HealthCheck {
	return &corev3.HealthCheck{
		Timeout:               seconds(0.8),
		Interval:              seconds(0.5),
		NoTrafficInterval:     seconds(0.5),
		UnhealthyInterval:     seconds(0.5),
		UnhealthyEdgeInterval: seconds(0.5),
		HealthyEdgeInterval:   seconds(0.5),
		UnhealthyThreshold:    wrapperspb.UInt32(2),
		HealthyThreshold:      wrapperspb.UInt32(1),
		HealthChecker: &corev3.HealthCheck_HttpHealthCheck_{
			HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{Path: "/health", Host: "engine"},
		},
	}
}

// outliers ejects a host for two to ten seconds after so many failures in a row:
// 502, 503, 504, resets and failed connections. An engine's 500 may be the
// request's fault.
func outliers(failures uint32) *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		Consecutive_5Xx:                    wrapperspb.UInt32(unlimited),
		EnforcingConsecutive_5Xx:           wrapperspb.UInt32(0),
		ConsecutiveGatewayFailure:          wrapperspb.UInt32(failures),
		EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(100),
		EnforcingSuccessRate:               wrapperspb.UInt32(0),
		Interval:                           seconds(1),
		BaseEjectionTime:                   seconds(2),
		MaxEjectionTime:                    seconds(10),
		MaxEjectionPercent:                 wrapperspb.UInt32(50),
	}
}

func policies(p *corev3.TypedExtensionConfig) *clusterv3.LoadBalancingPolicy {
	return &clusterv3.LoadBalancingPolicy{
		Policies: []*clusterv3.LoadBalancingPolicy_Policy{{TypedExtensionConfig: p}},
	}
}

func segments(keys ...string) []*metadatav3.MetadataKey_PathSegment {
	path := make([]*metadatav3.MetadataKey_PathSegment, len(keys))
	for i, k := range keys {
		path[i] = &metadatav3.MetadataKey_PathSegment{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: k}}
	}
	return path
}

// httpOptions is the name under which a cluster has the protocol of its connections.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// protocol returns o as the options of a cluster, whose connections Envoy closes when nothing
// is asked on them for as long as idle, before their servers do; 0: these never do.
func protocol(o *httpv3.HttpProtocolOptions, idle time.Duration) map[string]*anypb.Any {
	if idle > 0 {
		o.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(idle)}
	}
	return map[string]*anypb.Any{httpOptions: pack(o)}
}

// http2 returns HTTP/2 whose pings find connections that lead nowhere: one is
// sent every interval and must be answered within timeout, both in seconds. For idle see protocol.
func http2(interval, timeout float64, idle time.Duration, filters ...*hcmv3.HttpFilter) map[string]*anypb.Any {
	return protocol(&httpv3.HttpProtocolOptions{
		HttpFilters: filters,
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: seconds(interval), Timeout: seconds(timeout)},
					},
				},
			},
		},
	}, idle)
}

// haltHeader is what a router takes for "not to be tried again" in an answer.
const haltHeader = "x-envoy-ratelimited"

// hurtScript ends the tries of a request that has hurt two engines.
//
//go:embed hurt.lua
var hurtScript string

// halts returns the filters of a try at an engine that end a request's tries after the
// second one that it hurts: a third engine would be lost to the same request. By what was
// sent and received until then they know how the tries before have ended.
func halts() []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		filter("envoy.filters.http.header_mutation", &mutationv3.HeaderMutation{Mutations: &mutationv3.Mutations{
			RequestMutations: []*rulesv3.HeaderMutation{{Action: &rulesv3.HeaderMutation_Append{
				Append: set(wire.TriesHeader, "%UPSTREAM_HEADER_BYTES_SENT% %UPSTREAM_HEADER_BYTES_RECEIVED%"),
			}}},
		}}),
		filter("envoy.filters.http.lua", &luav3.Lua{DefaultSourceCode: text(hurtScript)}),
		filter("envoy.filters.http.upstream_codec", &codecv3.UpstreamCodec{}),
	}
}

// extproc returns the cluster of the pickers. Its health check takes out one that
// hangs; requests then pass without it.
func extproc(addrs []string) (*clusterv3.Cluster, error) {
	c := cluster(extprocCluster, clusterv3.Cluster_STATIC)
	find(c, addrs...)
	if err := hosts(c, addrs); err != nil {
		return nil, fmt.Errorf("extproc: %w", err)
	}
	c.LoadBalancingPolicy = policies(extension("envoy.load_balancing_policies.round_robin", &robinv3.RoundRobin{}))
	c.HealthChecks = []*corev3.HealthCheck{pickerCheck(0.25, "")}
	c.OutlierDetection = outliers(5)
	c.TypedExtensionProtocolOptions = pickerPings()
	return c, nil
}

// pickerPings are what finds an extproc that hangs: what is asked of it continues without it
// when its connection is closed. One that is busy answers them beside its work.
func pickerPings() map[string]*anypb.Any { return http2(1, 3, 0) }

// pickerCheck asks an extproc each interval, in seconds, whether it serves, by the same
// authority as Picker.
func pickerCheck(interval float64, authority string) *corev3.HealthCheck {
	return &corev3.HealthCheck{
		Timeout:               seconds(2 * interval),
		Interval:              seconds(interval),
		NoTrafficInterval:     seconds(interval),
		UnhealthyInterval:     seconds(interval),
		UnhealthyEdgeInterval: seconds(interval),
		HealthyEdgeInterval:   seconds(interval),
		UnhealthyThreshold:    wrapperspb.UInt32(2),
		HealthyThreshold:      wrapperspb.UInt32(1),
		HealthChecker:         &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{Authority: authority}},
	}
}

func traces(addr string) (*clusterv3.Cluster, error) {
	c := cluster(tracesCluster, clusterv3.Cluster_STATIC)
	find(c, addr)
	if err := hosts(c, []string{addr}); err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	c.TypedExtensionProtocolOptions = http2(5, 5, 0)
	return c, nil
}

// find lets Envoy find out what names among the addresses stand for: all of their
// addresses, asked for every second. One that has come takes requests that soon; one that
// has gone is found out by its health check before.
func find(c *clusterv3.Cluster, addrs ...string) {
	for _, a := range addrs {
		if host, _, err := net.SplitHostPort(strings.TrimSpace(a)); err == nil && net.ParseIP(host) == nil {
			c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
				Name: "envoy.cluster.dns", TypedConfig: pack(&dnsv3.DnsCluster{DnsRefreshRate: seconds(1)}),
			}}
		}
	}
}

// hosts gives the cluster the hosts of the addresses.
func hosts(c *clusterv3.Cluster, addrs []string) error {
	list := make([]*endpointv3.LbEndpoint, len(addrs))
	for i, addr := range addrs {
		a, err := address(strings.TrimSpace(addr))
		if err != nil {
			return err
		}
		list[i] = host(a)
	}
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: c.GetName(),
		Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: list}},
	}
	return nil
}

func host(a *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
	}
}
