package config

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

// objectsOf returns the objects of a YAML text, as an API server would have them.
func objectsOf(t testing.TB, text []byte) []Object {
	t.Helper()
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var all []Object
	for {
		var o struct {
			Kind     string
			Metadata Metadata
			Spec     map[string]any
		}
		switch err := loader.Load(&o); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		case o.Kind == "":
			continue
		case o.Kind == KindPolicy:
			o.Metadata.Name = "default"
		}
		spec, err := yaml.Dump(o.Spec)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, Object{Kind: o.Kind, Name: o.Metadata.Name, Spec: spec})
	}
}

// TestMergeReadsWhatParseReads holds that objects of an API server mean what they mean in
// a file.
func TestMergeReadsWhatParseReads(t *testing.T) {
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Parse("/models/"+filepath.Base(name), text)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "kind: Model") && !strings.Contains(string(text), "kind: Endpoints") {
			want.Models = nil // an API server may have none
		}
		objects := objectsOf(t, text)
		got, outcomes := Merge("/models", objects)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for i, o := range outcomes {
			if len(o.Faults)+len(o.Conflicts) > 0 || !bytes.Equal(o.Spec, objects[i].Spec) {
				t.Errorf("%s: outcome %d is %+v", name, i, o)
			}
		}
	}
}

func TestMergeKeepsWhatIsGood(t *testing.T) {
	model := func(name, spec, good string) Object {
		o := Object{Kind: KindModel, Name: name, Spec: []byte(spec)}
		if good != "" {
			o.Good = []byte(good)
		}
		return o
	}
	policy := Object{Kind: KindPolicy, Name: "default", Spec: []byte(`{"rewrites":[{"model":"chat","to":[{"model":"a"},{"model":"gone"}]},{"model":"old","to":[{"model":"gone"}]}],"flow":{"degrade":[{"model":"a","to":"gone"}]}}`)}
	pool := func(name, spec string) Object { return Object{Kind: KindEndpoints, Name: name, Spec: []byte(spec)} }
	tests := []struct {
		name    string
		objects []Object
		want    []string // the faults and conflicts, by object
		inForce []string // "NAME", "NAME (before)" or what else is to be seen
	}{
		{name: "none", inForce: []string{}},
		{
			name:    "a fault of a new object leaves it out, of an old one brings back what it was",
			objects: []Object{model("a", `{"weights":"a.gguf","replicas":-1}`, `{"weights":"b.gguf"}`), model("b", `{}`, ""), model("c", `{"weights":"c"}`, "")},
			want: []string{
				"a: spec.replicas: -1; must be ≥ 0",
				"b: spec.weights: missing; must be the path of a GGUF file (only smollm2 can do without)",
			},
			inForce: []string{"a /m/b.gguf default", "c /m/c"},
		},
		{
			name:    "the older default stays, the newer model serves nevertheless",
			objects: []Object{model("b", `{"weights":"b","default":true}`, ""), model("a", `{"weights":"a","default":true}`, "")},
			want:    []string{"a: conflict: spec.default: true; is already so for the model b"},
			inForce: []string{"b /m/b default", "a /m/a"},
		},
		{
			name:    "an address that is taken is left out, the others are in force",
			objects: []Object{pool("p", `{"endpoints":[{"address":"10.0.0.1:1","models":["m"]}]}`), pool("q", `{"endpoints":[{"address":"10.0.0.1:1","models":["m"]},{"address":"10.0.0.2:1","models":["n"]}]}`)},
			want:    []string{`q: conflict: spec.endpoints[0].address: "10.0.0.1:1"; is already that of an endpoint of p`},
			inForce: []string{"m  default", "n ", "p 10.0.0.1:1", "q 10.0.0.2:1"},
		},
		{
			name:    "rewrites to models that there are not are left out",
			objects: []Object{model("a", `{"weights":"a"}`, ""), policy},
			want: []string{
				`default: conflict: spec.rewrites[0].to[1].model: "gone"; must be the id of a model that is served`,
				`default: conflict: spec.rewrites[1].to[0].model: "gone"; must be the id of a model that is served`,
				`default: conflict: spec.flow.degrade[0].to: "gone"; must be the id of a model that is served`,
			},
			inForce: []string{"a /m/a default", "chat to a"},
		},
		{
			name:    "what is not JSON",
			objects: []Object{model("a", `{"weights"`, "")},
			want:    []string{"a: spec: not YAML: did not find expected ',' or '}'"},
			inForce: []string{},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, outcomes := Merge("/m", tt.objects)
			var faults []string
			for i, o := range outcomes {
				for _, f := range o.Faults {
					faults = append(faults, tt.objects[i].Name+": "+f.Error())
				}
				for _, f := range o.Conflicts {
					faults = append(faults, tt.objects[i].Name+": conflict: "+f.Error())
				}
				if good := o.Spec != nil; good != (len(o.Faults) == 0 || tt.objects[i].Good != nil) {
					t.Errorf("%s: in force: %q", tt.objects[i].Name, o.Spec)
				}
			}
			if diff := cmp.Diff(tt.want, faults); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.inForce, inForce(f)); diff != "" {
				t.Errorf("in force (-want +got):\n%s", diff)
			}
		})
	}
}

// inForce says in short what a file holds.
func inForce(f File) []string {
	all := []string{}
	for _, m := range f.Models {
		line := m.Metadata.Name + " " + m.Spec.Weights
		if m.Spec.Default {
			line += " default"
		}
		all = append(all, line)
	}
	for _, e := range f.Endpoints {
		for _, one := range e.Spec.Endpoints {
			all = append(all, e.Metadata.Name+" "+one.Address)
		}
	}
	for _, w := range f.Policy.Spec.Rewrites {
		all = append(all, w.Model+" to "+w.To[0].Model)
	}
	return all
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte(`{"weights":"a"}`), []byte(`{"endpoints":[{"address":"10.0.0.1:1","models":["m"]}]}`), []byte(`{"rewrites":[{"model":"c","to":[{"model":"m"}]}]}`))
	f.Add([]byte(`null`), []byte(`[]`), []byte(``))
	f.Fuzz(func(t *testing.T, model, pool, policy []byte) {
		objects := []Object{
			{Kind: KindModel, Name: "a", Spec: model, Good: []byte(`{"weights":"good"}`)},
			{Kind: KindEndpoints, Name: "p", Spec: pool},
			{Kind: KindPolicy, Name: "default", Spec: policy},
		}
		file, outcomes := Merge("/m", objects)
		if !file.known("a") || outcomes[0].Spec == nil {
			t.Errorf("%q: a model that was good is not in force", model)
		}
		for _, w := range file.Policy.Spec.Rewrites {
			if slices.ContainsFunc(w.To, func(to RewriteTarget) bool { return !file.known(to.Model) }) {
				t.Errorf("rewritten to a model that there is not: %+v", w)
			}
		}
	})
}
