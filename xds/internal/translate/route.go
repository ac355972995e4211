package translate

import (
	"encoding/json"
	"math"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
)

// routes returns the one route configuration.
func routes(d *desired.State) *routev3.RouteConfiguration {
	spec := d.Policy.Spec
	host := &routev3.VirtualHost{
		Name:                          gatewayName,
		Domains:                       []string{"*"},
		Routes:                        []*routev3.Route{tooLarge(int64(spec.Limits.MaxBodyBytes)), noLength()},
		RetryPolicy:                   retries(spec.Retries),
		IncludeRequestAttemptCount:    true,
		IncludeAttemptCountInResponse: true,
		IncludeIsTimeoutRetryHeader:   true,
		RequestBodyBufferLimit:        wrapperspb.UInt64(uint64(spec.Limits.MaxBodyBytes)),
		TypedPerFilterConfig:          browsers(spec.CORS),
	}
	host.Routes = append(asking(spec.CORS), host.Routes...)
	timeout := durationpb.New(spec.Limits.RequestTimeout.Duration)
	for _, front := range append([]string{""}, spec.PathPrefixes...) {
		host.Routes = append(host.Routes, modelRoutes(d, front)...)
		own := "" // the path stays as it is
		if front != "" {
			own = "/v1/"
		}
		host.Routes = append(host.Routes, apiRoutes(d, prefix(front+"/v1/"), own, timeout)...)
		for a := apis.Chat; a < apis.Len; a++ {
			for _, p := range a.Row().Outside("/v1/") {
				host.Routes = append(host.Routes, apiRoutes(d, below(front+p), a.Row().Path, timeout)...)
			}
		}
	}
	host.Routes = append(host.Routes, health(d))
	host.Routes = append(host.Routes, direct(prefix("/"), 404, "no such path; the API is under /v1/"))
	host.Routes = readable(spec.CORS, host.Routes)
	return &routev3.RouteConfiguration{
		Name:                           gatewayName,
		VirtualHosts:                   []*routev3.VirtualHost{host},
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(1 << 20),
	}
}

// apiRoutes returns the routes to the engines for what matches: the model that
// extproc has set, without extproc the one that the body names, or the default one.
// Where no model is desired, Envoy says so: there is nobody to ask.
func apiRoutes(d *desired.State, match func() *routev3.RouteMatch, rewrite string, timeout *durationpb.Duration) []*routev3.Route {
	to := func(m *routev3.RouteMatch, model string) *routev3.Route {
		options := asked()
		if severalModels(d) {
			options[modelFilter] = modelRead(len(m.GetHeaders()) == 0)
		}
		return &routev3.Route{Match: m, TypedPerFilterConfig: options, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: EnginesCluster(model)},
			PrefixRewrite:    rewrite,
			Timeout:          timeout,
			IdleTimeout:      timeout,
		}}}
	}
	var all []*routev3.Route
	if len(d.Models) == 0 {
		return []*routev3.Route{direct(match, 503, "no model is served: none is desired")}
	}
	for _, m := range d.Models {
		chosen := match()
		chosen.Headers = []*routev3.HeaderMatcher{exactly(wire.ModelHeader, m.Name)}
		all = append(all, to(chosen, m.Name))
	}
	unknown := func() *routev3.RouteMatch {
		m := match()
		m.Headers = []*routev3.HeaderMatcher{{
			Name:                 wire.ModelHeader,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}}
		return m
	}
	all = append(all, direct(unknown, 404, "no such model"))
	other := d.Default()
	for _, m := range d.Models {
		if name := m.Name; name != other {
			all = append(all, to(named(match(), name), name))
		}
	}
	return append(all, to(match(), other))
}

// health returns the route by which others ask whether we serve: an engine of the default
// model says so for itself, and where none can be asked Envoy does.
func health(d *desired.State) *routev3.Route {
	match := get(path("/health"))
	if len(d.Models) == 0 {
		return direct(match, 503, "no model is served: none is desired")
	}
	return &routev3.Route{Match: match(), Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: EnginesCluster(d.Default())},
		Timeout:          seconds(5),
	}}}
}

// retries walk extproc's list of hosts, and after it, or without it, the hosts
// that have not been tried.
func retries(r config.Retries) *routev3.RetryPolicy {
	p := &routev3.RetryPolicy{
		RetryOn:              "5xx,reset,connect-failure,refused-stream,retriable-status-codes",
		RetriableStatusCodes: []uint32{429},
		NumRetries:           wrapperspb.UInt32(uint32(r.Standard - 1)),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: previousHosts()},
		}},
		HostSelectionRetryMaxAttempts: 5,
		RetryBackOff:                  &routev3.RetryPolicy_RetryBackOff{BaseInterval: seconds(0.025), MaxInterval: seconds(0.25)},
	}
	if r.MaxPerTry.Duration > 0 {
		p.PerTryTimeout = durationpb.New(r.MaxPerTry.Duration)
	}
	return p
}

func previousHosts() *anypb.Any { return pack(&previousv3.PreviousHostsPredicate{}) }

// tooLarge answers a request at its headers whose body is said to be too large;
// one that says nothing is found out when the buffer is full.
func tooLarge(limit int64) *routev3.Route {
	return direct(func() *routev3.RouteMatch {
		m := prefix("/")()
		m.Headers = []*routev3.HeaderMatcher{{
			Name: "content-length",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_RangeMatch{
				RangeMatch: &typev3.Int64Range{Start: limit + 1, End: math.MaxInt64},
			},
		}}
		return m
	}, 413, "the request's body is too large")
}

// noLength answers a request whose body would have 10^18 bytes or more, which is also what
// no 63 bits hold: it would be waited for.
func noLength() *routev3.Route {
	return direct(func() *routev3.RouteMatch {
		m := prefix("/")()
		m.Headers = []*routev3.HeaderMatcher{{
			Name: "content-length",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "0*[1-9][0-9]{18,}"}},
			}},
		}}
		return m
	}, 400, "content-length: no body is so long")
}

// modelRoutes answers what is asked about models behind a prefix, which needs no engine.
func modelRoutes(d *desired.State, front string) []*routev3.Route {
	var list []apis.Model
	var each []*routev3.Route
	for _, name := range modelNames(d) {
		m := apis.NewModel(name, 0)
		list = append(list, m)
		each = append(each, answer(path(front+"/v1/models/"+name), m))
	}
	all := apis.NewModels(list...)
	routes := append([]*routev3.Route{answer(path(front+"/v1/models"), all), answer(path(front+"/models"), all), answer(path(front+"/v1/models/"), all)}, each...)
	return append(routes,
		direct(get(prefix(front+"/v1/models/")), 404, "no such model"),
		direct(path(front+"/v1/models"), 405, "models can only be read: use GET"),
		direct(prefix(front+"/v1/models/"), 405, "models can only be read: use GET"),
	)
}

// modelNames are those that a client may ask for: of models, then of rewrites.
func modelNames(d *desired.State) (names []string) {
	for _, m := range d.Models {
		names = append(names, m.Name)
	}
	for _, r := range d.Policy.Spec.Rewrites {
		if !slices.Contains(names, r.Model) {
			names = append(names, r.Model)
		}
	}
	return names
}

// answer returns a route that answers a GET with v as JSON.
func answer(match func() *routev3.RouteMatch, v any) *routev3.Route {
	b, err := json.Marshal(v)
	if err != nil {
		panic("translate: " + err.Error()) // our own struct
	}
	r := direct(get(match), 200, string(b))
	r.ResponseHeadersToAdd = []*corev3.HeaderValueOption{set("content-type", "application/json")}
	return r
}

// direct returns a route that Envoy answers itself, without asking extproc.
func direct(match func() *routev3.RouteMatch, code uint32, body string) *routev3.Route {
	return &routev3.Route{
		Match:  match(),
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: code, Body: text(body)}},
	}
}

// asked switches extproc on for a route.
func asked() map[string]*anypb.Any {
	return map[string]*anypb.Any{extprocFilter: pack(&routev3.FilterConfig{
		Config: pack(&extprocv3.ExtProcPerRoute{
			Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: &extprocv3.ExtProcOverrides{}},
		}),
	})}
}

// below matches a path, and what is below it.
func below(p string) func() *routev3.RouteMatch {
	return func() *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}}
	}
}

func prefix(p string) func() *routev3.RouteMatch {
	return func() *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}}
	}
}

func path(p string) func() *routev3.RouteMatch {
	return func() *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: p}}
	}
}

// get restricts what matches to the method GET, and to HEAD, which is GET without a body.
func get(match func() *routev3.RouteMatch) func() *routev3.RouteMatch {
	return func() *routev3.RouteMatch {
		m := match()
		m.Headers = append(m.Headers, &routev3.HeaderMatcher{
			Name: ":method",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "GET|HEAD"}},
			}},
		})
		return m
	}
}

func exactly(header, value string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name: header,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value},
		}},
	}
}
