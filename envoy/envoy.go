// Package envoy makes the bootstrap of an Envoy that gets everything else from
// xds, finds the program, and says how to run it. Called by the `millrace`
// command.
//
// Its one rule: the bootstrap holds the way to xds, and what Envoy does for itself when its
// memory runs out, and nothing else. Listeners, routes and clusters belong to xds.
package envoy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
)

// NodeID is how the gateway calls itself towards xds.
const NodeID = "gateway"

// xdsCluster is the name of the only static cluster.
const xdsCluster = "xds"

// Env names the variable with the path of Envoy, for who gives none by flag.
const Env = "MILLRACE_ENVOY"

// ErrNotFound says that there is no Envoy program where it was looked for.
var ErrNotFound = errors.New("envoy: not found")

// Options is what a bootstrap says.
type Options struct {
	// Admin is "ip:port" of the admin listener. It can stop Envoy: keep it on loopback.
	Admin string
	// XDS is "host:port" of xds.
	XDS string
	// TLS is whom Envoy must find there, by mutual TLS; nil: anybody, in cleartext.
	TLS *mtls.EnvoyServer
}

// Bootstrap returns Envoy's configuration as JSON.
func Bootstrap(o Options) ([]byte, error) {
	admin, err := address(o.Admin)
	if err != nil {
		return nil, fmt.Errorf("envoy: admin: %w", err)
	}
	xds, err := xdsServer(o)
	if err != nil {
		return nil, fmt.Errorf("envoy: xds: %w", err)
	}
	b := &bootstrapv3.Bootstrap{
		Node:             &corev3.Node{Id: NodeID, Cluster: NodeID},
		Admin:            &bootstrapv3.Admin{Address: admin},
		StaticResources:  &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{xds}},
		DynamicResources: dynamic(),
		LayeredRuntime:   runtime(),
	}
	if b.OverloadManager, err = overload(); err != nil {
		return nil, fmt.Errorf("envoy: overload: %w", err)
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("envoy: bootstrap: %w", err)
	}
	return protojson.MarshalOptions{Multiline: true, UseProtoNames: true}.Marshal(b)
}

// regexSize bounds a regular expression that Envoy takes, in instructions of RE2. Its
// default of 100 is less than it takes to match every header under our prefix but three
// with long names.
const regexSize = 10_000

// runtime returns what differs from Envoy's own defaults.
func runtime() *bootstrapv3.LayeredRuntime {
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "millrace",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
			"re2.max_program_size.error_level": structpb.NewNumberValue(regexSize),
		}}},
	}}}
}

// maxHeap is what Envoy may take of memory, in bytes: three times the bodies that the policy
// lets be held (limits.maxBytesInFlight), as it is by default, and 768 MiB for what comes of those
// that extproc is about to refuse, 16 MiB of each at most. In a container of 2 GiB it is reached
// before the kernel ends the process.
const maxHeap = 1536 << 20

// overload returns what happens when memory runs out, whatever takes it: new requests get
// 503, and those that hold most are cut.
func overload() (*overloadv3.OverloadManager, error) {
	const heap = "envoy.resource_monitors.fixed_heap"
	monitor, err := anypb.New(&heapv3.FixedHeapConfig{MaxHeapSizeBytes: maxHeap})
	if err != nil {
		return nil, err
	}
	at := func(action string, share float64) *overloadv3.OverloadAction {
		return &overloadv3.OverloadAction{Name: "envoy.overload_actions." + action, Triggers: []*overloadv3.Trigger{{
			Name: heap, TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: share}},
		}}}
	}
	cut := at("reset_high_memory_stream", 0)
	cut.Triggers[0].TriggerOneof = &overloadv3.Trigger_Scaled{
		Scaled: &overloadv3.ScaledTrigger{ScalingThreshold: 0.92, SaturationThreshold: 0.98},
	}
	return &overloadv3.OverloadManager{
		RefreshInterval:     durationpb.New(100 * time.Millisecond),
		BufferFactoryConfig: &overloadv3.BufferFactoryConfig{MinimumAccountToTrackPowerOfTwo: 20}, // a mebibyte
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name: heap, ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: monitor},
		}},
		Actions: []*overloadv3.OverloadAction{at("shrink_heap", 0.8), at("stop_accepting_requests", 0.9), cut},
	}, nil
}

// dynamic returns the way to everything else. A lost xds is looked for again
// soon: while it is away, nothing that dies is known to be dead.
func dynamic() *bootstrapv3.Bootstrap_DynamicResources {
	ads := &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		LdsConfig: ads,
		CdsConfig: ads,
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: xdsCluster,
					RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
						BaseInterval: durationpb.New(100 * time.Millisecond),
						MaxInterval:  durationpb.New(time.Second),
					}},
				}},
			}},
		},
	}
}

// xdsServer returns the cluster that leads to xds. Its keepalive finds out when
// xds hangs, or its machine is gone.
func xdsServer(o Options) (*clusterv3.Cluster, error) {
	a, err := address(o.XDS)
	if err != nil {
		return nil, err
	}
	var socket *corev3.TransportSocket
	if o.TLS != nil {
		if socket, err = o.TLS.Socket(); err != nil {
			return nil, err
		}
	}
	options, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(time.Second),
							Timeout:  durationpb.New(2 * time.Second),
						},
					},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	typ := clusterv3.Cluster_STATIC
	if net.ParseIP(a.GetSocketAddress().GetAddress()) == nil {
		typ = clusterv3.Cluster_STRICT_DNS
	}
	return &clusterv3.Cluster{
		Name:                 xdsCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: typ},
		ConnectTimeout:       durationpb.New(time.Second),
		TransportSocket:      socket,
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: xdsCluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
			}}}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options,
		},
	}, nil
}

func address(addr string) (*corev3.Address, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address %s: port %q; must be a number up to 65535", addr, port)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)},
	}}}, nil
}

// Find returns the path of the Envoy program: the given one, else that of the
// environment variable Env, else the first named envoy in PATH. ErrNotFound if
// there is none.
func Find(path string) (string, error) {
	for _, p := range []string{path, os.Getenv(Env)} {
		if p == "" {
			continue
		}
		found, err := exec.LookPath(p)
		if err != nil {
			return "", &obs.Hint{
				Err:  fmt.Errorf("%w: %v", ErrNotFound, err),
				Next: "name an Envoy program that can be run, by -envoy or " + Env + ", or none to use the one that set-up fetches",
			}
		}
		return found, nil
	}
	found, err := exec.LookPath("envoy")
	if err != nil {
		return "", fmt.Errorf("%w: neither by flag nor in %s nor in PATH", ErrNotFound, Env)
	}
	return found, nil
}

// Args returns the arguments with which Envoy is run: with that many worker
// threads, without the shared memory of hot restarts, with its access log written
// five times a second instead of every ten seconds, and without a line in its own
// log for each request that passes without extproc.
func Args(bootstrap string, workers int) []string {
	return []string{
		"--config-path", bootstrap,
		"--concurrency", strconv.Itoa(max(1, workers)),
		"--disable-hot-restart",
		"--file-flush-interval-msec", "200",
		"--log-level", "warning",
		"--component-log-level", "ext_proc:error",
	}
}

// ValidateArgs returns the arguments with which Envoy only checks a bootstrap.
func ValidateArgs(bootstrap string) []string {
	return append(Args(bootstrap, 1), "--mode", "validate")
}
