package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"millrace.dev/millrace/internal/regular"
)

// MaxFile is the largest file that is read, in bytes.
const MaxFile = 4 << 20

// Load reads the file at path; without a path it is Default. Its error is one
// Fault a line, or that of reading the file.
func Load(path string) (File, error) {
	if path == "" {
		return Default(), nil
	}
	b, err := regular.Read(path, MaxFile)
	if err != nil {
		return File{}, err
	}
	return Parse(path, b)
}

// Parse reads the text of the file of the given name: any number of YAML
// documents, each an object. What it does not say is as in Default.
func Parse(name string, text []byte) (File, error) {
	f, _, err := Read(name, text)
	return f, err
}

// Source knows where in a text the objects are, for faults that are found later.
type Source struct {
	name string
	// at has the decoder of each object, by kind and name.
	at map[string]*decoder
}

// Empty reports whether the text has no object.
func (s Source) Empty() bool { return len(s.at) == 0 }

// Sets reports whether the text sets the field of the object.
func (s Source) Sets(kind, name, path string) bool {
	d := s.at[kind+"/"+name]
	return d != nil && d.lines[path] > 0
}

// Locate returns the fault with the file and the line of its object's field, or of
// what holds the field.
func (s Source) Locate(f Fault) Fault {
	f.File = s.name
	if d := s.at[f.Kind+"/"+f.Name]; d != nil {
		f.Line = d.line(f.Path)
	}
	return f
}

// Read is Parse that also returns where the objects are.
func Read(name string, text []byte) (File, Source, error) {
	src := Source{name: name, at: map[string]*decoder{}}
	if len(text) > MaxFile {
		return File{}, src, Fault{File: name, Text: fmt.Sprintf("%d bytes; must be ≤ %d", len(text), MaxFile)}
	}
	full, err := filepath.Abs(name)
	if err != nil {
		return File{}, src, Fault{File: name, Text: err.Error()}
	}
	r := reader{dir: filepath.Dir(full), taken: map[string]string{}, at: src.at}
	r.documents(text)
	r.checkTargets()
	for i := range r.faults {
		r.faults[i].File = name
	}
	if err := join(r.faults); err != nil {
		return File{}, src, err
	}
	return r.complete(), src, nil
}

// reader collects the objects of one file, or of an API server.
type reader struct {
	dir    string
	file   File
	faults []Fault
	// taken has where the object is that has what only one may have, by that: for
	// example "Model/smollm2", "Policy", "default", or an endpoint's address.
	taken map[string]string
	// each is whether every object is in force by itself, as far as it has no faults, and
	// not only all of them.
	each bool
	// policyAt knows the lines of the policy; nil: there is none.
	policyAt *decoder
	// at has the decoder of each object, by kind and name.
	at map[string]*decoder
}

func (r *reader) documents(text []byte) {
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		r.faults = append(r.faults, syntax(err))
		return
	}
	for {
		var n yaml.Node
		switch err := loader.Load(&n); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			r.faults = append(r.faults, syntax(err))
			return
		}
		if len(n.Content) == 1 && n.Content[0].ShortTag() != "!!null" {
			d := r.document(n.Content[0])
			r.faults = append(append(r.faults, d.faults...), d.conflicts...)
		}
	}
}

// syntax is the fault of text that is not YAML.
func syntax(err error) Fault {
	var at *yaml.LoadError
	if errors.As(err, &at) {
		return Fault{Line: at.Mark.Line, Text: "not YAML: " + at.Message}
	}
	return Fault{Text: "not YAML: " + err.Error()}
}

// document reads one object. Where it has faults and each object is in force by
// itself, it is not.
func (r *reader) document(n *yaml.Node) *decoder {
	d := &decoder{lines: map[string]int{"": n.Line}}
	if n.Kind != yaml.MappingNode {
		d.fault(n, "", "%s; must be an object with apiVersion, kind, metadata and spec", shown(n))
		return d
	}
	d.kind, d.name = field(n, "kind"), nameOf(n)
	r.at[d.kind+"/"+d.name] = d
	kind := d.kind
	if kind != KindModel && kind != KindPolicy && kind != KindEndpoints {
		d.fault(n, "kind", "%q; must be %s, %s or %s", kind, KindModel, KindPolicy, KindEndpoints)
		kind = guessKind(n) // what else is wrong with it is to be shown, too
	}
	switch kind {
	case KindModel:
		r.model(d, n)
	case KindPolicy:
		r.policy(d, n)
	case KindEndpoints:
		r.endpoints(d, n)
	}
	if v := field(n, "apiVersion"); v != APIVersion {
		d.faults = append(d.faults, Fault{Line: d.line("apiVersion"), Path: "apiVersion", Text: fmt.Sprintf("%q; must be %q", v, APIVersion)})
	}
	for _, faults := range [][]Fault{d.faults, d.conflicts} {
		for i := range faults {
			faults[i].Kind, faults[i].Name = d.kind, d.name
		}
	}
	return d
}

// guessKind returns the kind that an object of a wrong one seems to be of, by the fields of
// its spec; empty: of none.
func guessKind(n *yaml.Node) (best string) {
	most := 0
	for _, k := range []struct {
		name string
		spec reflect.Type
	}{
		{KindModel, reflect.TypeFor[ModelSpec]()}, {KindPolicy, reflect.TypeFor[PolicySpec]()}, {KindEndpoints, reflect.TypeFor[EndpointsSpec]()},
	} {
		known := 0
		for _, name := range specOf(n) {
			if _, ok := fieldsOf(k.spec)[name]; ok {
				known++
			}
		}
		if known > most {
			best, most = k.name, known
		}
	}
	return best
}

// specOf returns the names of the fields that an object's spec has.
func specOf(n *yaml.Node) (names []string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		spec := n.Content[i+1]
		if n.Content[i].Value != "spec" || spec.Kind != yaml.MappingNode {
			continue
		}
		for k := 0; k+1 < len(spec.Content); k += 2 {
			names = append(names, spec.Content[k].Value)
		}
	}
	return names
}

// out reports whether an object with these faults is not in force, so that it takes
// nothing from others.
func (r *reader) out(d *decoder) bool { return r.each && len(d.faults) > 0 }

// nameOf returns the name of an object; "" if it has none.
func nameOf(n *yaml.Node) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "metadata" && n.Content[i+1].Kind == yaml.MappingNode {
			return field(n.Content[i+1], "name")
		}
	}
	return ""
}

// field returns the text of one field of a mapping; "" if it is not there.
func field(n *yaml.Node, name string) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1].Value
		}
	}
	return ""
}

func (r *reader) model(d *decoder, n *yaml.Node) {
	m := newModel()
	m.Spec.Scaling = newScaling()
	d.value("", n, reflect.ValueOf(&m).Elem())
	if _, set := d.lines["spec.scaling"]; !set {
		m.Spec.Scaling = Scaling{}
	}
	if _, set := d.lines["spec.replicas"]; !set && m.Spec.Scaled() {
		m.Spec.Replicas = m.Spec.Scaling.MinReplicas // what there is at first
	} else if !set {
		m.Spec.Replicas = max(1, len(m.Spec.Layout))
	}
	if _, set := d.lines["spec.backend.contextTokens"]; !set && m.Spec.Backend.Kind == OpenAI {
		m.Spec.Backend.ContextTokens = 0
	}
	if d.check(m.validate()); r.out(d) {
		return
	}
	r.once(d, KindModel+"/"+m.Metadata.Name, "metadata.name", strconv.Quote(m.Metadata.Name)+"; is already the name of the model")
	m.Spec.Default = m.Spec.Default && r.once(d, "default", "spec.default", "true; is already so for the model")
	m.Spec.absolute(r.dir)
	r.file.Models = append(r.file.Models, m)
}

func (r *reader) policy(d *decoder, n *yaml.Node) {
	p := newPolicy()
	p.Metadata.Name = ""
	d.value("", n, reflect.ValueOf(&p).Elem())
	if d.check(p.validate()); r.out(d) {
		return
	}
	r.once(d, KindPolicy, "kind", "a second policy; must be one, as that")
	p.Spec.absolute(r.dir)
	r.file.Policy, r.policyAt = p, d
}

// once refuses a second object with what only one may have, and reports whether the
// object is the first.
func (r *reader) once(d *decoder, key, path, text string) bool {
	if first, ok := r.taken[key]; ok {
		d.conflicts = append(d.conflicts, Fault{Line: d.line(path), Path: path, Text: text + " " + first})
		return false
	}
	r.taken[key] = r.where(d, path)
	return true
}

// check adds broken rules to the faults, except for fields that could not be
// read anyway.
func (d *decoder) check(broken []Fault) {
	unread := make(map[string]bool, len(d.faults))
	for _, f := range d.faults {
		unread[f.Path] = true
	}
	for _, f := range d.located(broken) {
		if !unread[f.Path] {
			d.faults = append(d.faults, f)
		}
	}
}

// located gives broken rules their object and the lines of their fields, and durations
// and sizes the words of the text.
func (d *decoder) located(broken []Fault) []Fault {
	for i, f := range broken {
		_, must, _ := strings.Cut(f.Text, "; must be ")
		if text, ok := d.written[f.Path]; ok && must != "" {
			broken[i].Text = text + "; must be " + must
		}
		broken[i].Line, broken[i].Kind, broken[i].Name = d.line(f.Path), d.kind, d.name
	}
	return broken
}

// complete returns the file with what it does not say.
func (r *reader) complete() File {
	f := r.file
	if f.Policy.Kind == "" {
		f.Policy = newPolicy()
	}
	f.Models = slices.Clone(f.Models)
	for _, name := range f.implied() {
		f.Models = append(f.Models, impliedModel(name))
	}
	if len(f.Models) == 0 && !r.each {
		f.Models = Default().Models
	}
	for i := range f.Endpoints {
		for j := range f.Endpoints[i].Spec.Endpoints {
			f.Endpoints[i].Spec.Endpoints[j].complete()
		}
	}
	if _, ok := r.taken["default"]; !ok && len(f.Models) > 0 {
		f.Models[0].Spec.Default = true
	}
	return f
}

// Marshal returns the YAML of a file that Parse reads back as the same.
func Marshal(f File) ([]byte, error) {
	var out bytes.Buffer
	dumper, err := yaml.NewDumper(&out, yaml.WithIndent(2))
	if err != nil {
		return nil, err
	}
	for _, m := range f.Models {
		if m.Spec.Implied {
			continue
		}
		if err := dump(dumper, m); err != nil {
			return nil, fmt.Errorf("model %s: %w", m.Metadata.Name, err)
		}
	}
	for _, e := range f.Endpoints {
		if err := dump(dumper, e); err != nil {
			return nil, fmt.Errorf("endpoints %s: %w", e.Metadata.Name, err)
		}
	}
	if err := dump(dumper, f.Policy); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return out.Bytes(), dumper.Close()
}

// dump writes an object under its json names in their order. JSON is YAML: it
// is read as such and loses its brackets and quotes.
func dump(to *yaml.Dumper, object any) error {
	b, err := json.Marshal(object)
	if err != nil {
		return err
	}
	var n yaml.Node
	if err := yaml.Load(b, &n); err != nil {
		return err
	}
	unstyled(&n)
	return to.Dump(&n)
}

// unstyled takes the JSON style from a node and all below it. A string that would
// be read as something else without its quotes keeps them.
func unstyled(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.SequenceNode && !strings.Contains("!!map !!seq", firstTag(n)) {
		n.Style = yaml.FlowStyle // short lists on one line
	}
	for _, c := range n.Content {
		unstyled(c)
	}
}

func firstTag(n *yaml.Node) string {
	if len(n.Content) == 0 {
		return "!!null"
	}
	return n.Content[0].ShortTag()
}
