package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace.dev/millrace/internal/regular"
)

// Fleet is what `extproc -fleet` reads: engines that runs elsewhere. It is one
// YAML document.
type Fleet struct {
	// Endpoints are the engines, at most 16384. Here an address may be a host's name,
	// "name:port", at most 256 names: each IPv4 address that the name has, or each IPv6 one
	// where it has none, is an engine then.
	Endpoints []Endpoint `json:"endpoints"`
	// Models says more about some of the models that the endpoints serve.
	Models []FleetModel `json:"models,omitempty"`
	// Policy is the rules for requests. What Envoy alone can keep (maxPerTry,
	// requestTimeout, cors, istio) must be left out: it is set in Envoy's configuration.
	Policy PolicySpec `json:"policy"`
}

// FleetModel says more about a model.
type FleetModel struct {
	// Name is the model's id.
	Name string `json:"name"`
	// Tokenizer is the path of a GGUF or tokenizer.json file; a relative one starts
	// at the folder of the file that names it. Empty: tokens are estimated.
	Tokenizer string `json:"tokenizer,omitempty"`
	// TemplateArgs is the JSON of the arguments that its engines give the chat template by
	// default, such as '{"enable_thinking": false}'. See Endpoint.TemplateArgs, which holds for
	// one endpoint. Default: none.
	TemplateArgs string `json:"templateArgs,omitempty"`
	// ContextTokens is the context of one sequence in its engines, 128 to 16777216 tokens:
	// longer prompts are refused. 0: what the engines say themselves, if all of them do.
	ContextTokens int `json:"contextTokens,omitempty"`
	// Default is whether requests whose model is not known go to this one. Without
	// any, the first model of the first endpoint is.
	Default bool `json:"default,omitempty"`
}

// notHere are settings of the policy that need the xds program, which publishes them
// to Envoy.
var notHere = []string{"policy.retries.maxPerTry", "policy.retries.hedgeOthersAfter", "policy.limits.requestTimeout", "policy.pathPrefixes", "policy.cors", "policy.istio"}

// hedgeOthers is hedgeAfter in a fleet's file, and hedgeOthersAfter elsewhere: engines of others
// speak HTTP/1.1, which has no pings that would find one that hangs.
const hedgeOthers = 2 * time.Second

// LoadFleet reads the file at path. Its error is one Fault a line, or that of
// reading the file.
func LoadFleet(path string) (Fleet, error) {
	b, err := regular.Read(path, MaxFile)
	if err != nil {
		return Fleet{}, err
	}
	return ParseFleet(path, b)
}

// ParseFleet reads the text of the file of the given name.
func ParseFleet(name string, text []byte) (Fleet, error) {
	f := Fleet{Policy: newPolicy().Spec}
	f.Policy.Flow.GatewayTimeout = Duration{everyGateway}
	f.Policy.Retries.HedgeAfter = Duration{hedgeOthers}
	full, err := filepath.Abs(name)
	if err != nil {
		return Fleet{}, Fault{File: name, Text: err.Error()}
	}
	d := decoder{lines: map[string]int{"": 1}}
	if len(text) > MaxFile {
		d.faults = append(d.faults, Fault{Text: fmt.Sprintf("%d bytes; must be ≤ %d", len(text), MaxFile)})
	} else if n, fault := single(text, "an object with endpoints"); fault != nil {
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

// single returns the content of the only document in text, which must be what.
func single(text []byte, what string) (*yaml.Node, *Fault) {
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		f := syntax(err)
		return nil, &f
	}
	var n, more yaml.Node
	switch err := loader.Load(&n); {
	case errors.Is(err, io.EOF):
		return nil, &Fault{Text: "nothing in it; must be " + what}
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
		return nil, &Fault{Line: n.Line, Text: "nothing in it; must be " + what}
	}
	return n.Content[0], nil
}

// validate returns the rules that the fleet breaks; d knows what was set.
func (f Fleet) validate(d *decoder) []Fault {
	var r rules
	if n := len(f.Endpoints); n == 0 {
		r.broken("endpoints", "missing; must be a list with at least one entry")
	} else {
		r.between("endpoints", n, 1, MaxEndpoints)
	}
	served := map[string]bool{}
	addresses := map[string]string{}
	for i, e := range f.Endpoints {
		at := "endpoints[" + strconv.Itoa(i) + "]"
		e.validateIn(at, &r)
		e.validateAlone(at, fmt.Sprintf("the endpoint in line %d", d.line(at+".address")), addresses, &r)
		for _, m := range e.Models {
			served[m] = true
		}
	}
	validateKeys(f.Endpoints, &r)
	validateNames(f.Endpoints, &r)
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
		if n := m.ContextTokens; n != 0 && (n < 128 || n > 1<<24) {
			r.broken(at+".contextTokens", "%d; must be 128 to %d, or left out", n, 1<<24)
		}
		r.templateArgs(at+".templateArgs", m.TemplateArgs)
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
		if name, _ := f.Endpoints[i].Host(); name == "" {
			f.Endpoints[i].complete()
		}
		f.Endpoints[i].absolute(dir)
	}
}

// ContextTokens returns the context of a model's engines; 0: it is not known.
func (f Fleet) ContextTokens(model string) int {
	return f.model(model).ContextTokens
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

// model returns what is said of a model; the zero FleetModel: nothing is.
func (f Fleet) model(name string) FleetModel {
	for _, m := range f.Models {
		if m.Name == name {
			return m
		}
	}
	return FleetModel{}
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

// TemplateArgs returns the JSON of a model's default arguments of its template; empty: none.
func (f Fleet) TemplateArgs(model string) string {
	return f.model(model).TemplateArgs
}

// Tokenizer returns the path of a model's tokenizer; empty: it has none.
func (f Fleet) Tokenizer(model string) string {
	return f.model(model).Tokenizer
}
