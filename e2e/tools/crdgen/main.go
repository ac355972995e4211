// Command crdgen makes the CRDs, and the copies of their Go types, by controller-gen's own
// generators. It adds markers whose rules say in CEL what package config says in Go, with
// the words that `-check` prints: see markers.go.
//
//	crdgen -to manifests/crds,charts/millrace/crds ./internal/kubeapi ./internal/config
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/controller-tools/pkg/crd"
	"sigs.k8s.io/controller-tools/pkg/deepcopy"
	"sigs.k8s.io/controller-tools/pkg/genall"
	"sigs.k8s.io/controller-tools/pkg/markers"
	"sigs.k8s.io/yaml"

	"millrace.dev/millrace/e2e/tools/output"
)

func main() {
	to := flag.String("to", "", "folders for the CRDs, with commas in between")
	flag.Parse()
	if err := run(strings.Split(*to, ","), flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "crdgen: %v\n", err)
		os.Exit(1)
	}
}

func run(to, packages []string) error {
	yes := true
	if err := generate(deepcopy.Generator{}, genall.OutputArtifacts{}, packages); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "crdgen-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	crds := generator{crd.Generator{AllowDangerousTypes: &yes, OmitToolVersion: &yes}}
	if err := generate(crds, genall.OutputToDirectory(dir), packages); err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := write(filepath.Join(dir, f.Name()), to); err != nil {
			return err
		}
	}
	return nil
}

// write puts a CRD into the folders, its descriptions without the line breaks of our
// comments: kubectl explain makes its own.
func write(file string, to []string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var o any
	if err := yaml.Unmarshal(b, &o); err != nil {
		return err
	}
	flow(o)
	if b, err = yaml.Marshal(o); err != nil {
		return err
	}
	for _, dir := range to {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := output.Write(filepath.Join(dir, filepath.Base(file)), b); err != nil {
			return err
		}
	}
	return nil
}

// flow takes the line breaks out of the paragraphs of all descriptions.
func flow(o any) {
	switch o := o.(type) {
	case []any:
		for _, v := range o {
			flow(v)
		}
	case map[string]any:
		for k, v := range o {
			if text, ok := v.(string); ok && k == "description" {
				all := strings.Split(text, "\n\n")
				for i, paragraph := range all {
					all[i] = strings.ReplaceAll(paragraph, "\n", " ")
				}
				o[k] = strings.Join(all, "\n\n")
			}
			flow(v)
		}
	}
}

func generate(g genall.Generator, out genall.OutputRule, packages []string) error {
	rt, err := genall.Generators{&g}.ForRoots(packages...)
	if err != nil {
		return err
	}
	rt.OutputRules.Default = out
	if rt.Run() {
		return fmt.Errorf("%T: see above", g)
	}
	return nil
}

// generator is controller-gen's, with our markers.
type generator struct{ crd.Generator }

// RegisterMarkers adds ours.
func (g generator) RegisterMarkers(into *markers.Registry) error {
	if err := g.Generator.RegisterMarkers(into); err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		of   markers.TargetType
		is   any
	}{
		{"millrace:between", markers.DescribesField, between{}},
		{"millrace:lasts", markers.DescribesField, lasts{}},
		{"millrace:size", markers.DescribesField, size{}},
		{"millrace:form", markers.DescribesField, form{}},
		{"millrace:form", markers.DescribesType, form{}},
		{"millrace:each:form", markers.DescribesField, each{}},
		{"millrace:each:rule", markers.DescribesField, eachRule{}},
		{"millrace:address", markers.DescribesField, address{}},
		{"millrace:labels", markers.DescribesField, labels{}},
		{"millrace:once", markers.DescribesField, once{}},
		{"millrace:oneOf", markers.DescribesField, oneOf{}},
		{"millrace:rule", markers.DescribesField, rule{}},
		{"millrace:rule", markers.DescribesType, rule{}},
		{"millrace:each:vllmArgument", markers.DescribesField, vllmArgument{}},
	} {
		d, err := markers.MakeDefinition(m.name, m.of, m.is)
		if err != nil {
			return err
		}
		if err := into.Register(d); err != nil {
			return err
		}
	}
	return nil
}
