package config

import (
	"fmt"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Object is one object as an API server has it.
type Object struct {
	// Kind and Name of it.
	Kind, Name string
	// Spec is its desired state in JSON; empty: it has none.
	Spec []byte
	// Good is the Spec that was last in force; nil: none was.
	Good []byte
}

// Outcome is what became of an Object.
type Outcome struct {
	// Faults are the rules that the object breaks by itself: its Good is in force, if it
	// has one.
	Faults []Fault
	// Conflicts are with older objects, which have what only one may have, and with models
	// that there are not: the object is in force without the fields named.
	Conflicts []Fault
	// Spec is the Spec or Good that is in force; nil: none is.
	Spec []byte
}

// Merge reads objects, the oldest first, by the rules of Read, except that one that is
// faulty keeps no other from being in force, and that there may be no model at all.
// Paths start at dir. Outcomes are in the order of the objects.
func Merge(dir string, objects []Object) (File, []Outcome) {
	r := reader{dir: filepath.Clean(dir), taken: map[string]string{}, at: map[string]*decoder{}, each: true}
	all := make([]Outcome, len(objects))
	for i, o := range objects {
		all[i] = r.object(o)
	}
	f := r.complete()
	if r.policyAt != nil {
		conflicts := r.targets(f)
		i := slices.IndexFunc(objects, func(o Object) bool { return o.Kind == r.policyAt.kind && o.Name == r.policyAt.name })
		all[i].Conflicts = append(all[i].Conflicts, unlined(conflicts)...)
		f.Policy.Spec.dropUnknown(f.known)
	}
	return f, all
}

// object reads one object, and what was good of it if that is faulty now.
func (r *reader) object(o Object) Outcome {
	d := r.spec(o, o.Spec)
	out := Outcome{Faults: d.faults, Conflicts: d.conflicts, Spec: o.Spec}
	if len(d.faults) == 0 {
		return out
	}
	out.Spec = nil
	if o.Good != nil {
		if d := r.spec(o, o.Good); len(d.faults) == 0 {
			out.Conflicts, out.Spec = d.conflicts, o.Good
		}
	}
	return out
}

// spec reads an object with the given spec.
func (r *reader) spec(o Object, spec []byte) *decoder {
	var doc yaml.Node
	if err := yaml.Load(spec, &doc); len(spec) > 0 && err != nil {
		return &decoder{kind: o.Kind, name: o.Name, faults: []Fault{{Kind: o.Kind, Name: o.Name, Path: "spec", Text: syntax(err).Text}}}
	}
	n := mapping("apiVersion", scalarOf(APIVersion), "kind", scalarOf(o.Kind), "metadata", mapping("name", scalarOf(o.Name)))
	if len(doc.Content) == 1 {
		n.Content = append(n.Content, scalarOf("spec"), doc.Content[0])
	}
	d := r.document(n)
	unlined(d.faults)
	unlined(d.conflicts)
	return d
}

// unlined takes the lines away: there is no text that a person could open.
func unlined(faults []Fault) []Fault {
	for i := range faults {
		faults[i].Line = 0
	}
	return faults
}

func mapping(keysAndValues ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, v := range keysAndValues {
		switch v := v.(type) {
		case string:
			n.Content = append(n.Content, scalarOf(v))
		case *yaml.Node:
			n.Content = append(n.Content, v)
		}
	}
	return n
}

func scalarOf(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

// known reports whether a model is served.
func (f File) known(name string) bool {
	return slices.ContainsFunc(f.Models, func(m Model) bool { return m.Metadata.Name == name })
}

// dropUnknown leaves out what would send requests to models that there are not.
func (p *PolicySpec) dropUnknown(known func(model string) bool) {
	p.Rewrites = slices.Clone(p.Rewrites)
	for i := range p.Rewrites {
		p.Rewrites[i].To = slices.DeleteFunc(slices.Clone(p.Rewrites[i].To), func(t RewriteTarget) bool { return !known(t.Model) })
	}
	p.Rewrites = slices.DeleteFunc(p.Rewrites, func(w Rewrite) bool { return len(w.To) == 0 })
	p.Flow.Degrade = slices.DeleteFunc(slices.Clone(p.Flow.Degrade), func(d Degrade) bool { return !known(d.To) })
}

// where says where the object is that first has what only one may have.
func (r *reader) where(d *decoder, path string) string {
	if r.each {
		return d.name
	}
	return fmt.Sprintf("in line %d", d.line(path))
}
