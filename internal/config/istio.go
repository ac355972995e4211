package config

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// How a gateway of Istio reaches the engines.
const (
	// ModeEnvoyFilter gives it weights, and the filter that asks extproc.
	ModeEnvoyFilter = "EnvoyFilter"
	// ModeInferencePool gives it a pool whose picker is extproc.
	ModeInferencePool = "InferencePool"
)

// Whose Gateway objects there are.
const (
	// KubernetesGateway is that of gateway.networking.k8s.io.
	KubernetesGateway = "Kubernetes"
	// IstioGateway is that of networking.istio.io.
	IstioGateway = "Istio"
)

// How Envoys of Istio reach engines and extproc.
const (
	// TLSNone is cleartext.
	TLSNone = "None"
	// TLSIstioMutual is by the certificates that Istio gives to sidecars.
	TLSIstioMutual = "IstioMutual"
)

// Istio is which Envoys of an Istio mesh route to the engines themselves, by our weights
// and by extproc. It has no effect where xds is not in a cluster.
type Istio struct {
	// Gateways that serve the API, at most 64. Default: none.
	Gateways []IstioGatewayRef `json:"gateways,omitempty"`
	// Sidecars of the Pods of clients.
	Sidecars IstioSidecars `json:"sidecars,omitzero"`
	// TLS is how engines and extproc are reached: "None", in cleartext, or
	// "IstioMutual", where they have sidecars themselves. Default "None".
	TLS string `json:"tls"`
}

// IstioGatewayRef is one gateway that serves the API.
type IstioGatewayRef struct {
	// Name of the Gateway object.
	Name string `json:"name"`
	// Namespace of it. Default: that of xds.
	Namespace string `json:"namespace,omitempty"`
	// API is whose Gateway it is: "Kubernetes" (gateway.networking.k8s.io) or "Istio"
	// (networking.istio.io). Default "Kubernetes".
	API string `json:"api"`
	// Mode is "EnvoyFilter", by weights that follow the GPUs and a filter that asks
	// extproc, or "InferencePool", by Kubernetes' own objects, where nothing is
	// weighted when extproc is away. Default "EnvoyFilter".
	Mode string `json:"mode"`
	// Hosts for which the gateway serves the API, such as llm.example.com, at most 16.
	// Default: for all hosts.
	Hosts []string `json:"hosts,omitempty"`
	// Selector is labels of the gateway's Pods. Default: those that Istio gives to Pods
	// of a "Kubernetes" Gateway; all gateways of the namespace for an "Istio" one.
	Selector map[string]string `json:"selector,omitempty"`
}

// IstioSidecars is the sidecars of clients that call the mesh's own gateway by its
// Service: they send to the engines themselves.
type IstioSidecars struct {
	// Enabled is whether there are any. Default false.
	Enabled bool `json:"enabled,omitempty"`
	// Namespaces of the clients, at most 64. Default: that of xds.
	Namespaces []string `json:"namespaces,omitempty"`
	// Selector is labels of the clients' Pods. Default: all Pods there.
	Selector map[string]string `json:"selector,omitempty"`
}

// On reports whether any Envoy is to be configured.
func (i Istio) On() bool { return len(i.Gateways) > 0 || i.Sidecars.Enabled }

// setDefaults makes an entry one of the mode that weighs.
func (g *IstioGatewayRef) setDefaults() { g.API, g.Mode = KubernetesGateway, ModeEnvoyFilter }

// Bounds of what Istio is configured with.
const (
	maxGateways     = 64
	maxGatewayHosts = 16
	maxSelector     = 16
)

var (
	objectName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	hostName   = regexp.MustCompile(`^(\*|(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)$`)
	labelKey   = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
)

func (i Istio) validate(path string, r *rules) {
	if i.TLS != TLSNone && i.TLS != TLSIstioMutual {
		r.broken(path+".tls", "%q; must be %s or %s", i.TLS, TLSNone, TLSIstioMutual)
	}
	r.between(path+".gateways", len(i.Gateways), 0, maxGateways)
	for k, g := range i.Gateways {
		at := path + ".gateways[" + strconv.Itoa(k) + "]"
		g.validate(at, r)
		if slices.ContainsFunc(i.Gateways[:k], func(o IstioGatewayRef) bool {
			return o.Name == g.Name && o.Namespace == g.Namespace && o.API == g.API
		}) {
			r.broken(at+".name", "%q; must be in the list once", g.Name)
		}
	}
	s, at := i.Sidecars, path+".sidecars"
	r.between(at+".namespaces", len(s.Namespaces), 0, maxGateways)
	for k, n := range s.Namespaces {
		entry := at + ".namespaces[" + strconv.Itoa(k) + "]"
		r.matches(entry, n, nodeName, `1 to 63 lower-case letters, digits or "-"`)
		if slices.Contains(s.Namespaces[:k], n) {
			r.broken(entry, "%q; must be in the list once", n)
		}
	}
	validateSelector(at+".selector", s.Selector, r)
}

func (g IstioGatewayRef) validate(at string, r *rules) {
	r.matches(at+".name", g.Name, objectName, `1 to 253 lower-case letters, digits, "-" or "."`)
	if g.Namespace != "" {
		r.matches(at+".namespace", g.Namespace, nodeName, `1 to 63 lower-case letters, digits or "-"`)
	}
	if g.API != KubernetesGateway && g.API != IstioGateway {
		r.broken(at+".api", "%q; must be %s or %s", g.API, KubernetesGateway, IstioGateway)
	}
	switch {
	case g.Mode != ModeEnvoyFilter && g.Mode != ModeInferencePool:
		r.broken(at+".mode", "%q; must be %s or %s", g.Mode, ModeEnvoyFilter, ModeInferencePool)
	case g.Mode == ModeInferencePool && g.API == IstioGateway:
		r.broken(at+".mode", "%q; must be %s where api is %s: only Kubernetes' gateways know pools", g.Mode, ModeEnvoyFilter, IstioGateway)
	}
	r.between(at+".hosts", len(g.Hosts), 0, maxGatewayHosts)
	for k, h := range g.Hosts {
		entry := at + ".hosts[" + strconv.Itoa(k) + "]"
		if len(h) > 253 || !hostName.MatchString(h) {
			r.broken(entry, "%q; must be the name of a host in lower case, or one that begins with *.", h)
		}
		if slices.Contains(g.Hosts[:k], h) {
			r.broken(entry, "%q; must be in the list once", h)
		}
	}
	validateSelector(at+".selector", g.Selector, r)
}

func validateSelector(at string, labels map[string]string, r *rules) {
	r.between(at, len(labels), 0, maxSelector)
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		prefix, _, _ := strings.Cut(k, "/")
		if len(prefix) > 253 || !labelKey.MatchString(k) {
			r.broken(at, "%q; must be the name of a label", k)
		}
		r.matches(at+"."+k, labels[k], labelValue, `at most 63 letters, digits, ".", "_" or "-"`)
	}
}
