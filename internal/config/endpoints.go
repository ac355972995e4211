package config

import (
	"cmp"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/trust"
)

// Types of engines that are run by somebody else, by how they show their load. scrape
// knows more of them.
const (
	// TypeVLLM is vLLM.
	TypeVLLM = "vllm"
	// TypeLlamaCpp is llama.cpp's server.
	TypeLlamaCpp = "llamacpp"
	// TypeOpenAI is any server of the OpenAI API, of which nothing else is known.
	TypeOpenAI = "openai"
)

// Endpoints are engines that are run by somebody else, in a configuration of Models.
type Endpoints struct {
	// APIVersion is "millrace.dev/v1alpha1".
	APIVersion string `json:"apiVersion"`
	// Kind is "Endpoints".
	Kind string `json:"kind"`
	// Metadata names the object: lower-case letters, digits, "-" and ".", at most 63.
	Metadata Metadata `json:"metadata"`
	// Spec is who they are.
	Spec EndpointsSpec `json:"spec"`
}

// EndpointsSpec is engines that are run by somebody else.
//
// +kubebuilder:object:generate=true
type EndpointsSpec struct {
	// Endpoints are the engines, at most 1024; all objects together have at most 16384. A
	// model that one serves needs no Model object: the tokens of its prompts are estimated
	// then.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=map
	// +listMapKey=address
	Endpoints []Endpoint `json:"endpoints"`
}

// Endpoint is one engine that is run by somebody else.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="models",missing=true,holds="has(self.models) && self.models.size() > 0",words="missing; must be a list of the model ids that it serves"
// +millrace:rule:at="metrics",when="self.type == 'openai'",holds="self.metrics.size() == 0",words="an endpoint of type openai has no metrics that we know: name its type, or leave this out"
// +millrace:rule:at="kvEvents",when="self.type != 'vllm'",holds="!(has(self.kvEvents.connect) && self.kvEvents.connect.size() > 0 || has(self.kvEvents.listen) && self.kvEvents.listen.size() > 0 || has(self.kvEvents.topic) && self.kvEvents.topic.size() > 0)",words="an endpoint of type {self.type} has none that we know: set type: vllm, or leave this out"
// +millrace:rule:at="kvEvents",when="self.type == 'vllm' && has(self.kvEvents.topic) && self.kvEvents.topic.size() > 0",holds="has(self.kvEvents.connect) && self.kvEvents.connect.size() > 0 || has(self.kvEvents.listen) && self.kvEvents.listen.size() > 0",words="neither connect nor listen; must be one of them: connect where the engine's endpoint has a *, else listen"
// +millrace:rule:at="kvEvents",when="self.type == 'vllm'",holds="!(has(self.kvEvents.connect) && self.kvEvents.connect.size() > 0 && has(self.kvEvents.listen) && self.kvEvents.listen.size() > 0)",words="connect and listen; must be one of them: connect where the engine's endpoint has a *, else listen"
type Endpoint struct {
	// Address is "ip:port" of its API, as Envoy's cluster has it.
	// +kubebuilder:validation:Required
	// +millrace:address:words="must be ip:port of one host, as Envoy's cluster has it: not unspecified, link-local, multicast or reserved, nor IPv4 written as IPv6",host=true
	Address string `json:"address"`
	// Models are the ids that it serves, 1 to 100.
	// +kubebuilder:validation:MaxItems=100
	// +listType=set
	// +millrace:each:form:name=servedName
	Models []string `json:"models"`
	// Type is "vllm", "sglang", "llamacpp", "tensorrtllm", "triton", "tgi", "lmdeploy" or
	// "openai", which shows no metrics. Default "openai".
	// +kubebuilder:default=openai
	// +millrace:oneOf:values={vllm,sglang,llamacpp,tensorrtllm,triton,tgi,lmdeploy,openai}
	Type string `json:"type"`
	// Metrics is the URL of its metrics. Default: where its type has them, mostly
	// http://ADDRESS/metrics; an "openai" endpoint has none.
	// A user and a password in it are sent, and not shown.
	// +millrace:form:name=metricsURL,optional=true,hidden=true,also="isURL(self)"
	Metrics secret.URL `json:"metrics,omitempty"`
	// Health is the URL of its health. Default: http://ADDRESS/health. A user and a password
	// in it are sent, and not shown.
	// +millrace:form:name=metricsURL,optional=true,hidden=true,also="isURL(self)"
	Health secret.URL `json:"health,omitempty"`
	// TLS is how it is reached if it serves TLS: then the defaults of Metrics and Health begin
	// with https.
	TLS EngineTLS `json:"tls,omitzero"`
	// APIKey is the key that it asks for. Default: none is sent.
	APIKey APIKey `json:"apiKey,omitzero"`
	// Headers are further headers of probes.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	Headers []EngineHeader `json:"headers,omitempty"`
	// Node is the machine that it runs on: what is on one node fails together.
	// Default: the address without its port.
	// +millrace:form:name=zoneName,optional=true
	Node string `json:"node,omitempty"`
	// Zone is its failure domain. Default: none, each node is its own.
	// +millrace:form:name=zoneName,optional=true
	Zone string `json:"zone,omitempty"`
	// Slots is how many requests it works on at a time, 0 to 65536. Default 0:
	// learned when some wait.
	// +millrace:between:least="0",most="65536"
	Slots int `json:"slots,omitempty"`
	// TemplateArgs is the JSON of the arguments that its engine gives the chat template by
	// default, such as '{"enable_thinking": false}': vLLM's --default-chat-template-kwargs,
	// llama-server's --chat-template-kwargs. Those of a model hold for all its endpoints; of
	// both with the same name this one holds. A request's own chat_template_kwargs win. Without
	// it exact counts of tokens would be wrong. Default: none.
	// +millrace:form:name=templateArgs,optional=true
	TemplateArgs string `json:"templateArgs,omitempty"`
	// KVEvents is where a "vllm" endpoint publishes what its KV cache holds. Default:
	// nowhere; what is cached is guessed from what was sent.
	KVEvents KVEvents `json:"kvEvents,omitzero"`
}

// MaxEndpoints bounds the endpoints of a fleet.
const MaxEndpoints = 16384

// Equal reports whether both say the same.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.Address == o.Address && slices.Equal(e.Models, o.Models) && e.Type == o.Type && e.Metrics == o.Metrics &&
		e.Node == o.Node && e.Zone == o.Zone && e.Slots == o.Slots && e.TemplateArgs == o.TemplateArgs && e.KVEvents == o.KVEvents && e.SameAccess(o)
}

// SameAccess reports whether both are reached in the same way.
func (e Endpoint) SameAccess(o Endpoint) bool {
	return e.Health == o.Health && e.TLS == o.TLS && e.APIKey == o.APIKey && slices.Equal(e.Headers, o.Headers)
}

// HealthURL is where its health is asked for.
func (e Endpoint) HealthURL() secret.URL {
	return cmp.Or(e.Health, e.URL("/health"))
}

// URL is where it has a page of its own, such as "/v1/models".
func (e Endpoint) URL(path string) secret.URL { return secret.URL(e.scheme() + e.Address + path) }

func (e Endpoint) scheme() string {
	if e.TLS.On() {
		return "https://"
	}
	return "http://"
}

// setDefaults makes an entry that says nothing an unknown server.
func (e *Endpoint) setDefaults() { e.Type = TypeOpenAI }

// complete fills in what is left out of an entry that is valid.
func (e *Endpoint) complete() {
	if t := scrape.Named(e.Type); e.Metrics == "" && t != nil {
		e.Metrics = secret.URL(t.URL(e.scheme(), e.Address))
	}
	if e.Node == "" {
		e.Node = netip.MustParseAddrPort(e.Address).Addr().String()
	}
}

func (e Endpoint) validate(at string, r *rules) {
	if !isHost(e.Address) {
		r.broken(at+".address", "%.80q; must be ip:port of one host, as Envoy's cluster has it: not unspecified, link-local, multicast or reserved, nor IPv4 written as IPv6", e.Address)
	}
	e.validateRest(at, r)
}

// validateRest checks all but the address.
func (e Endpoint) validateRest(at string, r *rules) {
	if len(e.Models) == 0 {
		r.broken(at+".models", "missing; must be a list of the model ids that it serves")
	}
	r.between(at+".models", len(e.Models), 0, maxEndpointModels)
	r.eachOnce(at+".models", e.Models, servedName)
	r.oneOf(at+".type", e.Type, append(scrape.Names(), TypeOpenAI)...)
	e.validateMetrics(at+".metrics", r)
	e.validateAccess(at, r)
	for path, name := range map[string]string{at + ".node": e.Node, at + ".zone": e.Zone} {
		if name != "" {
			r.matches(path, name, zoneName)
		}
	}
	r.between(at+".slots", e.Slots, 0, 65536)
	r.templateArgs(at+".templateArgs", e.TemplateArgs)
	e.KVEvents.validate(at+".kvEvents", e.Type, r)
}

// isHost reports whether a text is the ip:port of one host that can be reached.
func isHost(text string) bool { return isAddress(text) && trust.Address(text) == nil }

// isAddress reports whether a text is ip:port, as every program and an API server reads it.
func isAddress(text string) bool {
	a, err := netip.ParseAddrPort(text)
	_, port, _ := strings.Cut(text[strings.LastIndexByte(text, ']')+1:], ":")
	return err == nil && a.Port() != 0 && len(port) <= len("65535") && a.Addr().Zone() == "" && !a.Addr().Is4In6()
}

func (e Endpoint) validateMetrics(path string, r *rules) {
	if e.Metrics == "" {
		return
	}
	if _, err := url.ParseRequestURI(string(e.Metrics)); err != nil || !metricsURL.fits(string(e.Metrics)) {
		r.broken(path, "must be %s", metricsURL.words)
	}
	if e.Type == TypeOpenAI {
		r.broken(path, "an endpoint of type openai has no metrics that we know: name its type, or leave this out")
	}
}

// validateAlone checks that no endpoint before has what only one may have. which is how
// the endpoint is called by those that come after it; taken has who has what.
func (e Endpoint) validateAlone(at, which string, taken map[string]string, r *rules) {
	if by, ok := taken[e.Address]; ok {
		r.broken(at+".address", "%q; is already that of %s", e.Address, by)
	} else if e.Address != "" {
		taken[e.Address] = which
	}
	listen := "listen " + e.KVEvents.Listen
	if _, ok := taken[listen]; ok {
		r.broken(at+".kvEvents.listen", "%q; must be another for each endpoint: nothing else distinguishes engines", e.KVEvents.Listen)
	} else if e.KVEvents.Listen != "" {
		taken[listen] = which
	}
}

// endpoints reads an object of the kind.
func (r *reader) endpoints(d *decoder, n *yaml.Node) {
	e := Endpoints{APIVersion: APIVersion, Kind: KindEndpoints}
	d.value("", n, reflect.ValueOf(&e).Elem())
	if d.check(e.validate()); r.out(d) {
		return
	}
	r.once(d, KindEndpoints+"/"+e.Metadata.Name, "metadata.name", strconv.Quote(e.Metadata.Name)+"; is already the name of the endpoints")
	e.Spec.Endpoints = r.alone(e.Spec.Endpoints, d)
	for i := range e.Spec.Endpoints {
		e.Spec.Endpoints[i].absolute(r.dir)
	}
	r.file.Endpoints = append(r.file.Endpoints, e)
}

// validate returns the rules that the object breaks by itself, by path.
func (e Endpoints) validate() []Fault {
	var broken rules
	broken.matches("metadata.name", e.Metadata.Name, modelName)
	broken.between("spec.endpoints", len(e.Spec.Endpoints), 0, maxOneObject)
	if len(e.Spec.Endpoints) == 0 {
		broken.broken("spec.endpoints", "missing; must be a list with at least one entry")
	}
	for i, one := range e.Spec.Endpoints {
		one.validate("spec.endpoints["+strconv.Itoa(i)+"]", &broken)
	}
	return broken
}

// alone returns those of an object's endpoints that have to themselves what only one may
// have; of the others it adds the conflicts.
func (r *reader) alone(all []Endpoint, d *decoder) []Endpoint {
	var broken rules
	total := len(all)
	for _, other := range r.file.Endpoints {
		total += len(other.Spec.Endpoints)
	}
	if total > MaxEndpoints {
		broken.broken("spec.endpoints", "%d in all objects; must be ≤ %d", total, MaxEndpoints)
		all = all[:max(0, len(all)-(total-MaxEndpoints))]
	}
	kept := make([]Endpoint, 0, len(all))
	for i, one := range all {
		at, had := "spec.endpoints["+strconv.Itoa(i)+"]", len(broken)
		which := "the endpoint " + r.where(d, at+".address")
		if r.each {
			which = "an endpoint of " + d.name
		}
		if one.validateAlone(at, which, r.taken, &broken); len(broken) == had {
			kept = append(kept, one)
		}
	}
	d.conflicts = append(d.conflicts, d.located(broken)...)
	return kept
}

// implied returns the models that endpoints serve and that have no object of their own:
// their names, in the order in which they are first named.
func (f File) implied() (names []string) {
	seen := map[string]bool{}
	for _, m := range f.Models {
		seen[m.Metadata.Name] = true
	}
	for _, e := range f.Endpoints {
		for _, one := range e.Spec.Endpoints {
			for _, name := range one.Models {
				if !seen[name] {
					seen[name] = true
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// impliedModel is a model of which nothing is said but that endpoints serve it.
func impliedModel(name string) Model {
	m := newModel()
	m.Metadata.Name = name
	m.Spec.Implied = true
	m.Spec.Backend.ContextTokens = 0 // not known
	m.Spec.Layout = []Layout{{Stages: 1}}
	return m
}
