package config

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
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
//
// +kubebuilder:object:generate=true
type Istio struct {
	// Gateways that serve the API, at most 64. Default: none.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +millrace:once:same="has(o.name) && has(e.name) && o.name == e.name && o.api == e.api && (has(o.__namespace__) ? has(e.__namespace__) && o.__namespace__ == e.__namespace__ : !has(e.__namespace__))",field=name
	Gateways []IstioGatewayRef `json:"gateways,omitempty"`
	// Sidecars of the Pods of clients.
	Sidecars IstioSidecars `json:"sidecars,omitzero"`
	// TLS is how engines and extproc are reached: "None", in cleartext, or
	// "IstioMutual", where they have sidecars themselves. Default "None".
	// +kubebuilder:default=None
	// +millrace:oneOf:values={None,IstioMutual}
	TLS string `json:"tls"`
}

// IstioGatewayRef is one gateway that serves the API.
//
// +millrace:rule:at="name",missing=true,holds="has(self.name)",words=`""; must be 1 to 253 lower-case letters, digits, "-" or "."`
// +millrace:rule:at="mode",when="self.api == 'Istio'",holds="self.mode != 'InferencePool'",shows="quoted",words="must be EnvoyFilter where api is Istio: only Kubernetes' gateways know pools"
// +kubebuilder:object:generate=true
type IstioGatewayRef struct {
	// Name of the Gateway object.
	// +millrace:form:name=objectName
	Name string `json:"name"`
	// Namespace of it. Default: that of xds.
	// +millrace:form:name=nodeName,optional=true
	Namespace string `json:"namespace,omitempty"`
	// API is whose Gateway it is: "Kubernetes" (gateway.networking.k8s.io) or "Istio"
	// (networking.istio.io). Default "Kubernetes".
	// +kubebuilder:default=Kubernetes
	// +millrace:oneOf:values={Kubernetes,Istio}
	API string `json:"api"`
	// Mode is "EnvoyFilter", by weights that follow the GPUs and a filter that asks
	// extproc, or "InferencePool", by Kubernetes' own objects, where nothing is
	// weighted when extproc is away. Default "EnvoyFilter".
	// +kubebuilder:default=EnvoyFilter
	// +millrace:oneOf:values={EnvoyFilter,InferencePool}
	Mode string `json:"mode"`
	// Hosts for which the gateway serves the API, such as llm.example.com, at most 16.
	// Default: for all hosts.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +millrace:each:form:name=hostName
	// +millrace:once
	Hosts []string `json:"hosts,omitempty"`
	// Selector is labels of the gateway's Pods. Default: those that Istio gives to Pods
	// of a "Kubernetes" Gateway; all gateways of the namespace for an "Istio" one.
	// +kubebuilder:validation:MaxProperties=16
	// +millrace:labels
	Selector map[string]string `json:"selector,omitempty"`
}

// IstioSidecars is the sidecars of clients that call the mesh's own gateway by its
// Service: they send to the engines themselves.
//
// +kubebuilder:object:generate=true
type IstioSidecars struct {
	// Enabled is whether there are any. Default false.
	Enabled bool `json:"enabled,omitempty"`
	// Namespaces of the clients, at most 64. Default: that of xds.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +millrace:each:form:name=nodeName
	// +millrace:once
	Namespaces []string `json:"namespaces,omitempty"`
	// Selector is labels of the clients' Pods. Default: all Pods there.
	// +kubebuilder:validation:MaxProperties=16
	// +millrace:labels
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

const (
	objectNamePattern = `^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`
	objectNameWords   = `1 to 253 lower-case letters, digits, "-" or "."`
	objectNameMax     = 253

	hostNamePattern = `^(\*|(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)$`
	hostNameWords   = "the name of a host in lower case, or one that begins with *."
	hostNameMax     = 253

	labelKeyPattern = `^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`
	labelKeyWords   = "the name of a label"
	labelKeyMax     = 317

	labelValuePattern = `^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`
	labelValueWords   = `at most 63 letters, digits, ".", "_" or "-"`
	labelValueMax     = 63
)

var (
	objectName = form{regexp.MustCompile(objectNamePattern), objectNameWords, objectNameMax}
	hostName   = form{regexp.MustCompile(hostNamePattern), hostNameWords, hostNameMax}
	labelKey   = form{regexp.MustCompile(labelKeyPattern), labelKeyWords, labelKeyMax}
	labelValue = form{regexp.MustCompile(labelValuePattern), labelValueWords, labelValueMax}
)

func (i Istio) validate(path string, r *rules) {
	r.oneOf(path+".tls", i.TLS, TLSNone, TLSIstioMutual)
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
	r.eachOnce(at+".namespaces", s.Namespaces, nodeName)
	validateSelector(at+".selector", s.Selector, r)
}

func (g IstioGatewayRef) validate(at string, r *rules) {
	r.matches(at+".name", g.Name, objectName)
	if g.Namespace != "" {
		r.matches(at+".namespace", g.Namespace, nodeName)
	}
	r.oneOf(at+".api", g.API, KubernetesGateway, IstioGateway)
	r.oneOf(at+".mode", g.Mode, ModeEnvoyFilter, ModeInferencePool)
	if g.Mode == ModeInferencePool && g.API == IstioGateway {
		r.broken(at+".mode", "%q; must be %s where api is %s: only Kubernetes' gateways know pools", g.Mode, ModeEnvoyFilter, IstioGateway)
	}
	r.between(at+".hosts", len(g.Hosts), 0, maxGatewayHosts)
	r.eachOnce(at+".hosts", g.Hosts, hostName)
	validateSelector(at+".selector", g.Selector, r)
}

func validateSelector(at string, labels map[string]string, r *rules) {
	r.between(at, len(labels), 0, maxSelector)
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		r.matches(at, k, labelKey)
		r.matches(at+"."+k, labels[k], labelValue)
	}
}
