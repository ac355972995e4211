package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Types of engines in a Fleet, by how they show their load.
const (
	// TypeVLLM is vLLM.
	TypeVLLM = "vllm"
	// TypeSGLang is SGLang.
	TypeSGLang = "sglang"
	// TypeLlamaCpp is llama.cpp's own server, run with --metrics.
	TypeLlamaCpp = "llamacpp"
	// TypeOpenAI is any server of the OpenAI API, of which nothing else is known.
	TypeOpenAI = "openai"
)

var engineTypes = []string{TypeVLLM, TypeSGLang, TypeLlamaCpp, TypeOpenAI}

// servedName is what engines accept as the id of a model: often that of a
// repository, with a slash.
var servedName = regexp.MustCompile(`^[!-~]{1,96}$`)

// zoneName is a failure domain or a node, whatever its people call it.
var zoneName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)

// Fleet is what `extproc -fleet` reads: engines that runs elsewhere. It is one
// YAML document.
type Fleet struct {
	// Endpoints are the engines, at most 16384.
	Endpoints []FleetEndpoint `json:"endpoints"`
	// Models says more about some of the models that the endpoints serve.
	Models []FleetModel `json:"models,omitempty"`
	// Policy is the rules for requests. What Envoy alone can keep (maxPerTry,
	// requestTimeout) must be left out: it is set in Envoy's configuration.
	Policy PolicySpec `json:"policy"`
}

// FleetEndpoint is one engine.
type FleetEndpoint struct {
	// Address is "ip:port" of its API, as Envoy's cluster has it.
	Address string `json:"address"`
	// Models are the ids that it serves, at least one.
	Models []string `json:"models"`
	// Type is "vllm", "sglang", "llamacpp" or "openai". Default "openai".
	Type string `json:"type"`
	// Metrics is the URL of its metrics. Default http://ADDRESS/metrics; an
	// "openai" endpoint has none.
	Metrics string `json:"metrics,omitempty"`
	// Node is the machine that it runs on: what is on one node fails together.
	// Default: the address without its port.
	Node string `json:"node,omitempty"`
	// Zone is its failure domain. Default: none, each node is its own.
	Zone string `json:"zone,omitempty"`
	// Slots is how many requests it works on at a time, 0 to 65536. Default 0:
	// learned when some wait.
	Slots int `json:"slots,omitempty"`
	// KVEvents is where a "vllm" endpoint publishes what its KV cache holds. Default:
	// nowhere; what is cached is guessed from what was sent.
	KVEvents KVEvents `json:"kvEvents,omitzero"`
}

// FleetModel says more about a model.
type FleetModel struct {
	// Name is the model's id.
	Name string `json:"name"`
	// Tokenizer is the path of a GGUF or tokenizer.json file; a relative one starts
	// at the folder of the file that names it. Empty: tokens are estimated.
	Tokenizer string `json:"tokenizer,omitempty"`
	// Default is whether requests whose model is not known go to this one. Without
	// any, the first model of the first endpoint is.
	Default bool `json:"default,omitempty"`
}

// notHere are settings of the policy that need the xds program, which tells them
// to Envoy.
var notHere = []string{"policy.retries.maxPerTry", "policy.limits.requestTimeout"}

// LoadFleet reads the file at path. Its error is one Fault a line, or that of
// reading the file.
func LoadFleet(path string) (Fleet, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Fleet{}, err
	}
	return ParseFleet(path, b)
}

// ParseFleet reads the text of the file of the given name.
func ParseFleet(name string, text []byte) (Fleet, error) {
	f := Fleet{Policy: newPolicy().Spec}
	f.Policy.Flow.GatewayTimeout = Duration{everyGateway}
	full, err := filepath.Abs(name)
	if err != nil {
		return Fleet{}, Fault{File: name, Text: err.Error()}
	}
	d := decoder{lines: map[string]int{"": 1}}
	if len(text) > maxFile {
		d.faults = append(d.faults, Fault{Text: fmt.Sprintf("%d bytes; must be ≤ %d", len(text), maxFile)})
	} else if n, fault := single(text); fault != nil {
		d.faults = append(d.faults, *fault)
	} else {
		d.value("", n, reflect.ValueOf(&f).Elem())
		d.check(f.validate(&d))
	}
	for i := range d.faults {
		d.faults[i].File = name
	}
	if err := join(d.faults); err != nil {
		return Fleet{}, err
	}
	f.complete(filepath.Dir(full))
	return f, nil
}

// single returns the content of the only document in text.
func single(text []byte) (*yaml.Node, *Fault) {
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		f := syntax(err)
		return nil, &f
	}
	var n, more yaml.Node
	switch err := loader.Load(&n); {
	case errors.Is(err, io.EOF):
		return nil, &Fault{Text: "nothing in it; must be an object with endpoints"}
	case err != nil:
		f := syntax(err)
		return nil, &f
	}
	if err := loader.Load(&more); err == nil {
		return nil, &Fault{Line: more.Line, Text: "a second document; must be one"}
	} else if !errors.Is(err, io.EOF) {
		f := syntax(err)
		return nil, &f
	}
	if len(n.Content) != 1 || n.Content[0].ShortTag() == "!!null" {
		return nil, &Fault{Line: n.Line, Text: "nothing in it; must be an object with endpoints"}
	}
	return n.Content[0], nil
}

// maxEndpoints bounds a fleet.
const maxEndpoints = 16384

// setDefaults makes an entry that says nothing an unknown server.
func (e *FleetEndpoint) setDefaults() { e.Type = TypeOpenAI }

// validate returns the rules that the fleet breaks; d knows what was set.
func (f Fleet) validate(d *decoder) []Fault {
	var r rules
	if n := len(f.Endpoints); n == 0 {
		r.broken("endpoints", "missing; must be a list with at least one entry")
	} else {
		r.between("endpoints", n, 1, maxEndpoints)
	}
	lines := map[string]int{} // of addresses
	served := map[string]bool{}
	for i, e := range f.Endpoints {
		at := "endpoints[" + strconv.Itoa(i) + "]"
		e.validate(at, &r)
		if first, ok := lines[e.Address]; ok {
			r.broken(at+".address", "%q; is already that of the endpoint in line %d", e.Address, first)
		} else if e.Address != "" {
			lines[e.Address] = d.line(at + ".address")
		}
		for _, m := range e.Models {
			served[m] = true
		}
		if listen := e.KVEvents.Listen; listen != "" && slices.ContainsFunc(f.Endpoints[:i], func(o FleetEndpoint) bool { return o.KVEvents.Listen == listen }) {
			r.broken(at+".kvEvents.listen", "%q; must be another for each endpoint: nothing else tells engines apart", listen)
		}
	}
	validateModels(f.Models, served, &r)
	known := func(name string) bool { return served[name] }
	validateTargets("policy.rewrites", f.Policy.Rewrites, known, &r)
	validateDegrade("policy.flow.degrade", f.Policy.Flow.Degrade, known, &r)
	return append(r, f.validatePolicy(d)...)
}

// validatePolicy gives the rules of a Policy the paths that they have here.
func (f Fleet) validatePolicy(d *decoder) []Fault {
	var r rules
	f.Policy.Sessions.validate(&r)
	f.Policy.Retries.validate(&r)
	f.Policy.Priorities.validate(&r)
	f.Policy.Limits.validate(&r)
	validateRewrites("spec.rewrites", f.Policy.Rewrites, &r)
	f.Policy.Flow.validate("spec.flow", &r)
	for i := range r {
		if rest, ok := strings.CutPrefix(r[i].Path, "spec."); ok {
			r[i].Path = "policy." + rest
		}
	}
	for _, path := range notHere {
		if _, set := d.lines[path]; set {
			r.broken(path, "has no effect here; set it in Envoy's configuration")
		}
	}
	return r
}

func (e FleetEndpoint) validate(at string, r *rules) {
	if a, err := netip.ParseAddrPort(e.Address); err != nil || a.Port() == 0 {
		r.broken(at+".address", "%q; must be ip:port, as Envoy's cluster has it", e.Address)
	}
	if len(e.Models) == 0 {
		r.broken(at+".models", "missing; must be a list of the model ids that it serves")
	}
	for i, m := range e.Models {
		path := at + ".models[" + strconv.Itoa(i) + "]"
		r.matches(path, m, servedName, "1 to 96 printable characters without spaces")
		if slices.Contains(e.Models[:i], m) {
			r.broken(path, "%q; must be in the list once", m)
		}
	}
	if !slices.Contains(engineTypes, e.Type) {
		r.broken(at+".type", "%q; must be vllm, sglang, llamacpp or openai", e.Type)
	}
	e.validateMetrics(at+".metrics", r)
	for path, name := range map[string]string{at + ".node": e.Node, at + ".zone": e.Zone} {
		if name != "" {
			r.matches(path, name, zoneName, `1 to 63 letters, digits, ".", "_", "/" or "-"`)
		}
	}
	r.between(at+".slots", e.Slots, 0, 65536)
	e.KVEvents.validate(at+".kvEvents", e.Type, r)
}

func (e FleetEndpoint) validateMetrics(path string, r *rules) {
	if e.Metrics == "" {
		return
	}
	u, err := url.Parse(e.Metrics)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		r.broken(path, "%q; must be a URL such as http://10.0.0.3:8000/metrics", e.Metrics)
	} else if e.Type == TypeOpenAI {
		r.broken(path, "%q; an endpoint of type openai has no metrics that we know: name its type, or leave this out", e.Metrics)
	}
}

// validateModels checks what is said of models against those that are served.
func validateModels(models []FleetModel, served map[string]bool, r *rules) {
	byDefault := -1
	for i, m := range models {
		at := "models[" + strconv.Itoa(i) + "]"
		switch {
		case m.Name == "":
			r.broken(at+".name", "missing; must be the id of a model that an endpoint serves")
		case !served[m.Name]:
			r.broken(at+".name", "%q; no endpoint serves it", m.Name)
		case slices.ContainsFunc(models[:i], func(o FleetModel) bool { return o.Name == m.Name }):
			r.broken(at+".name", "%q; must be in the list once", m.Name)
		}
		if m.Default && byDefault >= 0 {
			r.broken(at+".default", "true; is already so for models[%d]", byDefault)
		} else if m.Default {
			byDefault = i
		}
	}
}

// complete fills in what the file leaves out. Paths start at dir.
func (f *Fleet) complete(dir string) {
	f.Policy.absolute(dir)
	for i := range f.Models {
		f.Models[i].Tokenizer = under(dir, f.Models[i].Tokenizer)
	}
	for i := range f.Endpoints {
		e := &f.Endpoints[i]
		if e.Metrics == "" && e.Type != TypeOpenAI {
			e.Metrics = "http://" + e.Address + "/metrics"
		}
		if e.Node == "" {
			e.Node = netip.MustParseAddrPort(e.Address).Addr().String()
		}
	}
}

// ModelNames returns the ids of all models that endpoints serve, sorted.
func (f Fleet) ModelNames() []string {
	var all []string
	for _, e := range f.Endpoints {
		all = append(all, e.Models...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// DefaultModel returns the id of the model for requests whose model is not known.
func (f Fleet) DefaultModel() string {
	for _, m := range f.Models {
		if m.Default {
			return m.Name
		}
	}
	if len(f.Endpoints) == 0 {
		return ""
	}
	return f.Endpoints[0].Models[0]
}

// Tokenizer returns the path of a model's tokenizer; empty: it has none.
func (f Fleet) Tokenizer(model string) string {
	for _, m := range f.Models {
		if m.Name == model {
			return m.Tokenizer
		}
	}
	return ""
}
