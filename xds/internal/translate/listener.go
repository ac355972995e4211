package translate

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
)

// gatewayName names the listener, the route configuration and the virtual host.
const gatewayName = "gateway"

// extprocFilter is the name of the filter, by which routes switch it on.
const extprocFilter = "envoy.filters.http.ext_proc"

// What of a request the listener bounds itself, whatever is desired: a listener that
// changes drains its connections. The policy's own bounds are on the routes.
const (
	// connectionBuffer bounds what is buffered of one connection where no route says
	// how much, in bytes.
	connectionBuffer = 16 << 20
	// longestBody is how long a request's body may come in, and how long a request
	// without a route may be silent, in seconds.
	longestBody = 600
	// longestSilence is how long extproc may say nothing of a message, in seconds.
	longestSilence = 30
	// longestMessage is the longest that extproc may ask Envoy to wait, in seconds; the
	// policy's flow.gatewayTimeout is within.
	longestMessage = 3600
)

// listeners are where clients come: the one in plain text, and perhaps one by TLS.
func listeners(s Site, d *desired.State) (map[string]proto.Message, error) {
	manager := pack(manager(s, d))
	listener := func(name, at string, socket *corev3.TransportSocket) (*listenerv3.Listener, error) {
		addr, err := address(at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return &listenerv3.Listener{
			Name:                          name,
			Address:                       addr,
			PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
			FilterChains: []*listenerv3.FilterChain{{TransportSocket: socket, Filters: []*listenerv3.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager},
			}}}},
		}, nil
	}
	open, err := listener(gatewayName, s.Gateway, nil)
	if err != nil {
		return nil, err
	}
	all := map[string]proto.Message{gatewayName: open}
	if s.HTTPS != nil {
		if all[httpsName], err = listener(httpsName, s.HTTPS.Gateway, s.HTTPS.socket()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// What Envoy takes in of a request's headers: more than extproc lets pass (88 of them, of 48
// KiB), so that it is extproc that refuses, with 431. Beyond this Envoy refuses HTTP/1.1 with 431, and
// resets streams of HTTP/2, of which clients learn nothing.
const (
	headersCount = 1000
	headersKiB   = 96
)

// manager returns the HTTP connection manager: all that happens to a request
// before its route is chosen.
func manager(s Site, d *desired.State) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: gatewayName,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: gatewayName,
		}},
		HttpFilters:                   filters(s),
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{untrusted(d)},
		LocalReplyConfig:              replies(),
		UseRemoteAddress:              wrapperspb.Bool(true),
		AlwaysSetRequestIdInResponse:  true,
		NormalizePath:                 wrapperspb.Bool(true),
		MergeSlashes:                  true,
		RequestHeadersTimeout:         seconds(10),
		RequestTimeout:                seconds(longestBody),
		StreamIdleTimeout:             seconds(longestBody), // routes have their own
		MaxRequestHeadersKb:           wrapperspb.UInt32(headersKiB),
		CommonHttpProtocolOptions:     &corev3.HttpProtocolOptions{MaxHeadersCount: wrapperspb.UInt32(headersCount)},
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{
			EnableTrailers: true, // usage comes in trailers
			// A request that extproc refuses with 400 is no broken HTTP: without this Envoy
			// closes the connection. HTTP that can't be read still ends it.
			OverrideStreamErrorOnInvalidHttpMessage: wrapperspb.Bool(true),
		},
	}
	if s.AccessLog != "" {
		m.AccessLog = []*accesslogv3.AccessLog{accessLog(s.AccessLog)}
	}
	if s.Traces != "" {
		m.Tracing = tracing()
	}
	return m
}

func filter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
}

// filters returns the HTTP filters. Responses pass them backwards: extproc sees
// the load report, and then it is taken out.
func filters(s Site) []*hcmv3.HttpFilter {
	// Browsers ask first whether they may: no other filter is to see that.
	all := []*hcmv3.HttpFilter{filter(corsFilter, &corsv3.Cors{}), filter("envoy.filters.http.header_mutation", &mutationv3.HeaderMutation{
		Mutations: &mutationv3.Mutations{
			// Anthropic's clients read the request's id of a header of another name.
			ResponseMutations: []*rulesv3.HeaderMutation{remove(wire.LoadHeader), remove(haltHeader), {
				Action: &rulesv3.HeaderMutation_Append{Append: set("request-id", "%REQ(X-REQUEST-ID)%")},
			}},
			ResponseTrailersMutations: []*rulesv3.HeaderMutation{remove(wire.LoadHeader)},
		},
	})}
	if len(s.ExtProc) > 0 {
		// Switched on by the routes to engines alone: a request without a route
		// (broken headers, a bomb of them) is answered and cut off at once, with
		// no time to ask anybody about the answer.
		ask := filter(extprocFilter, Picker(extprocCluster, "", s.Refuse))
		ask.Disabled = true
		all = append(all, ask)
	}
	return append(all, modelReader(), filter("envoy.filters.http.router", &routerv3.Router{}))
}

// Picker returns the filter that asks the extproc of a cluster. Without an answer the request
// is refused with 503, or goes where the cluster's weights send it. authority is for whom Envoy
// asks; "" is the cluster's name, which must then be one that HTTP allows.
func Picker(cluster, authority string, refuse bool) *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster, Authority: authority}},
			RetryPolicy: &corev3.RetryPolicy{
				RetryOn:      "connect-failure,reset,refused-stream,unavailable",
				NumRetries:   wrapperspb.UInt32(2),
				RetryBackOff: &corev3.BackoffStrategy{BaseInterval: seconds(0.005), MaxInterval: seconds(0.05)},
				RetryHostPredicate: []*corev3.RetryPolicy_RetryHostPredicate{{
					Name:       "envoy.retry_host_predicates.previous_hosts",
					ConfigType: &corev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: previousHosts()},
				}},
				HostSelectionRetryMaxAttempts: 3,
			},
		},
		FailureModeAllow: !refuse,
		StatusOnError:    &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		// For one that is dead or hangs: its health check and its pings are quicker. One
		// that is only busy must have its say, or what is too much would be waved through.
		MessageTimeout: seconds(longestSilence),
		// extproc asks for more while a request waits in its queue.
		MaxMessageTimeout: seconds(longestMessage),
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
			RequestBodyMode:     extprocv3.ProcessingMode_BUFFERED,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
			ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
			ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
		},
		// extproc sets x-envoy-max-retries by the request's priority.
		MutationRules: &rulesv3.HeaderMutationRules{AllowEnvoy: wrapperspb.Bool(true)},
		// Who has answered, where two were asked as the first one seemed to hang.
		ResponseAttributes: []string{wire.UpstreamAttribute},
		MetadataOptions: &extprocv3.MetadataOptions{
			ForwardingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{wire.LBNamespace}},
			ReceivingNamespaces:  &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{wire.LBNamespace, wire.FactsNamespace}},
		},
	}
}

// untrusted removes what a client must not say, before anything reads it: what
// chooses a host, a model or a retry policy.
//
// What a client may say under our own prefix is what asks for an explanation, the key of
// the mesh's own probes, how fast the answer is to be, and what the policy names.
//
// Of all that is desired, only the names of headers are in the listener: a name that
// begins like our own must not be removed. Such an edit makes Envoy drain the
// connections that it has, gracefully.
func untrusted(d *desired.State) *corev3.TypedExtensionConfig {
	spec := d.Policy.Spec
	ours := except(wire.OwnPrefix, wire.DebugHeader, wire.ProbeHeader, wire.TTFTHeader, wire.TPOTHeader, wire.E2EHeader,
		spec.Priorities.Header, spec.Sessions.Header, spec.Flow.Tenants.Header)
	return extension("envoy.http.early_header_mutation.header_mutation", &earlyv3.HeaderMutation{
		Mutations: []*rulesv3.HeaderMutation{
			removeMatching(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: wire.GatewayPrefix}}),
			removeMatching(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: wire.EnvoyPrefix}}),
			removeMatching(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
				SafeRegex: &matcherv3.RegexMatcher{Regex: ours},
			}}),
		},
	})
}

func remove(header string) *rulesv3.HeaderMutation {
	return &rulesv3.HeaderMutation{Action: &rulesv3.HeaderMutation_Remove{Remove: header}}
}

func removeMatching(m *matcherv3.StringMatcher) *rulesv3.HeaderMutation {
	return &rulesv3.HeaderMutation{Action: &rulesv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &rulesv3.HeaderMutation_RemoveOnMatch{KeyMatcher: m},
	}}
}

func accessLog(path string) *accesslogv3.AccessLog {
	fields := map[string]string{
		"ts":          "%START_TIME%",
		"method":      "%REQ(:METHOD)%",
		"path":        "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
		"status":      "%RESPONSE_CODE%",
		"flags":       "%RESPONSE_FLAGS%",
		"details":     "%RESPONSE_CODE_DETAILS%",
		"host":        "%UPSTREAM_HOST%",
		"attempts":    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
		"duration_ms": "%DURATION%",
		"bytes_in":    "%BYTES_RECEIVED%",
		"bytes_out":   "%BYTES_SENT%",
		"request_id":  "%REQ(X-REQUEST-ID)%",
		"trace":       "%TRACE_ID%",
		"node":        "%RESP(X-MILLRACE-NODE)%",
	}
	for _, key := range append(wire.Facts(), wire.FactProbe) {
		fields[key] = "%DYNAMIC_METADATA(" + wire.FactsNamespace + ":" + key + ")%"
	}
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.file",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&filelogv3.FileAccessLog{
			Path: path,
			AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: texts(fields)},
			}},
		})},
	}
}

// texts returns the fields as a struct of strings.
func texts(fields map[string]string) *structpb.Struct {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(fields))}
	for k, v := range fields {
		s.Fields[k] = structpb.NewStringValue(v)
	}
	return s
}

// tracing samples everything: a decision that can't be read afterwards can't be
// explained. Each attempt has a span of its own.
func tracing() *hcmv3.HttpConnectionManager_Tracing {
	return &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling:    &typev3.Percent{Value: 100},
		RandomSampling:    &typev3.Percent{Value: 100},
		OverallSampling:   &typev3.Percent{Value: 100},
		SpawnUpstreamSpan: wrapperspb.Bool(true),
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: pack(&tracev3.OpenTelemetryConfig{
				ServiceName: "envoy",
				GrpcService: &corev3.GrpcService{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: tracesCluster}},
					Timeout:         seconds(1),
				},
			})},
		},
	}
}
