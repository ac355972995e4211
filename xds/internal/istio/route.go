package istio

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/wire"
)

// routeName is the name of every route to engines: by it filters are switched on.
const routeName = "millrace"

// apiPrefix begins the paths of the API. A gateway may serve more than us: only these and
// the exact ones of paths are taken.
const apiPrefix = "/v1/"

// paths returns the operations' own paths that do not begin with apiPrefix.
func paths() (all []string) {
	for a := apis.Chat; a < apis.Len; a++ {
		if p := a.Row().Path; !strings.HasPrefix(p, apiPrefix) {
			all = append(all, p)
		}
	}
	return all
}

// gateway adds what makes one gateway route to the engines.
func (b *builder) gateway(g config.IstioGatewayRef) {
	namespace := b.gatewayNamespace(g)
	name := b.Name + "." + namespace + "." + g.Name
	who := fmt.Sprintf("gateway %s/%s", namespace, g.Name)
	if g.Mode == config.ModeInferencePool {
		b.pools(who)
		b.httpRoutes(g, name, namespace)
		return
	}
	hosts := g.Hosts
	if len(hosts) == 0 {
		hosts = []string{"*"}
	}
	f := filter{namespace: namespace, name: b.Name + "." + b.Namespace + "." + g.Name, domains: hosts, selector: g.Selector, context: networking.EnvoyFilter_GATEWAY}
	if g.API == config.IstioGateway {
		b.add(VirtualService, b.Namespace, name, "", b.virtualService(hosts, namespace+"/"+g.Name, []string{namespace}))
	} else {
		b.httpRoutes(g, name, namespace)
		f.retries = true
		if len(f.selector) == 0 {
			f.selector = map[string]string{"gateway.networking.k8s.io/gateway-name": g.Name}
		}
	}
	if b.allowed(namespace, who) {
		b.filter(f)
	}
}

// sidecars adds what makes the sidecars of clients route to the engines.
func (b *builder) sidecars() {
	if b.Front == "" {
		b.problem(Unsupported, "start xds with -istio-front: the host of the Service that clients call", "sidecars are enabled, and no host is known that clients call")
		return
	}
	namespaces := b.sidecarNamespaces(b.istio)
	b.add(VirtualService, b.Namespace, b.Name+".sidecars", "", b.virtualService([]string{b.Front}, "mesh", namespaces))
	for _, n := range namespaces {
		if b.allowed(n, "the sidecars of clients") {
			b.filter(filter{
				namespace: n, name: b.Name + "." + b.Namespace + ".sidecars", domains: []string{b.Front},
				selector: b.istio.Sidecars.Selector, context: networking.EnvoyFilter_SIDECAR_OUTBOUND,
			})
		}
	}
}

// virtualService sends requests to the model that extproc has named, and without extproc
// to the default one.
func (b *builder) virtualService(hosts []string, gateway string, exportTo []string) *networking.VirtualService {
	spec := b.d.Policy.Spec
	if !slices.Contains(exportTo, b.Namespace) {
		exportTo = append(slices.Clone(exportTo), b.Namespace)
	}
	v := &networking.VirtualService{Hosts: hosts, Gateways: []string{gateway}, ExportTo: exportTo}
	to := func(model string, headers map[string]*networking.StringMatch) {
		r := &networking.HTTPRoute{
			Name:    routeName,
			Route:   []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: b.Host(model), Port: &networking.PortSelector{Number: modelPort}}}},
			Timeout: durationpb.New(spec.Limits.RequestTimeout.Duration),
			Retries: retries(spec.Retries),
		}
		r.Match = append(r.Match, &networking.HTTPMatchRequest{Headers: headers, Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: apiPrefix}}})
		for _, p := range paths() {
			r.Match = append(r.Match, &networking.HTTPMatchRequest{Headers: headers, Uri: exactly(p)})
		}
		v.Http = append(v.Http, r)
	}
	for _, m := range b.d.Models {
		to(m.Name, map[string]*networking.StringMatch{wire.ModelHeader: exactly(m.Name)})
	}
	if d := b.d.Default(); d != "" {
		to(d, nil)
	}
	return v
}

func exactly(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: s}}
}

// retries walk extproc's list of hosts, and after it, or without it, the hosts that have
// not been tried.
func retries(r config.Retries) *networking.HTTPRetry {
	p := &networking.HTTPRetry{
		Attempts: int32(r.Standard - 1),
		RetryOn:  "5xx,reset,connect-failure,refused-stream,429",
	}
	if r.MaxPerTry.Duration > 0 {
		p.PerTryTimeout = durationpb.New(r.MaxPerTry.Duration)
	}
	return p
}

// httpRoutes adds the same as virtualService for a gateway of Kubernetes: a route for each
// model, as one may have 16 rules at most.
func (b *builder) httpRoutes(g config.IstioGatewayRef, name, namespace string) {
	for _, m := range b.d.Models {
		b.add(HTTPRoute, b.Namespace, name+"."+slug(m.Name), m.Name, b.httpRoute(g, namespace, m.Name, []any{map[string]any{
			"type": "Exact", "name": wire.ModelHeader, "value": m.Name,
		}}))
	}
	if d := b.d.Default(); d != "" {
		b.add(HTTPRoute, b.Namespace, name, "", b.httpRoute(g, namespace, d, nil))
	}
}

// httpRoute says all that the API server would fill in: what is there is compared with it.
func (b *builder) httpRoute(g config.IstioGatewayRef, namespace, model string, headers []any) map[string]any {
	match := func(kind, path string) map[string]any {
		m := map[string]any{"path": map[string]any{"type": kind, "value": path}}
		if len(headers) > 0 {
			m["headers"] = headers
		}
		return m
	}
	matches := []any{match("PathPrefix", strings.TrimSuffix(apiPrefix, "/"))}
	for _, p := range paths() {
		matches = append(matches, match("Exact", p))
	}
	backend := map[string]any{"group": "networking.istio.io", "kind": "Hostname", "name": b.Host(model), "port": modelPort, "weight": 1}
	if g.Mode == config.ModeInferencePool {
		backend = map[string]any{"group": InferencePool.Group, "kind": InferencePool.Name, "name": b.Name + "-" + slug(model), "weight": 1}
	}
	spec := map[string]any{
		"parentRefs": []any{map[string]any{"group": HTTPRoute.Group, "kind": "Gateway", "namespace": namespace, "name": g.Name}},
		"rules": []any{map[string]any{
			"name": routeName, "matches": matches, "backendRefs": []any{backend},
			"timeouts": map[string]any{"request": fmt.Sprintf("%ds", int(b.d.Policy.Spec.Limits.RequestTimeout.Seconds()))},
		}},
	}
	if len(g.Hosts) > 0 {
		spec["hostnames"] = g.Hosts
	}
	return spec
}

// enginePort is where engines in Pods have their API, by the chart.
const enginePort = 8000

// pools adds the pool of each model, once for all gateways.
func (b *builder) pools(who string) {
	for _, m := range b.d.Models {
		name := b.Name + "-" + slug(m.Name)
		if slices.ContainsFunc(b.objects, func(o *Object) bool { return o.Kind == InferencePool && o.Name == name }) {
			continue
		}
		if m.Spec.Implied || slug(m.Name) != m.Name {
			b.problem(Unsupported, "let the gateway have mode EnvoyFilter", "%s: model %s is served by others; a pool has only Pods of ours", who, m.Name)
			continue
		}
		b.add(InferencePool, b.Namespace, name, m.Name, map[string]any{
			"selector": map[string]any{"matchLabels": map[string]any{
				"app.kubernetes.io/component": "engine", "serves.millrace.dev/" + m.Name: "true",
			}},
			"targetPorts":       []any{map[string]any{"number": enginePort}},
			"appProtocol":       "kubernetes.io/h2c",
			"endpointPickerRef": map[string]any{"group": "", "kind": "Service", "name": b.Name + "-picker", "port": map[string]any{"number": 7204}, "failureMode": "FailOpen"},
		})
	}
}
