package kubeapi

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"millrace.dev/millrace/internal/config"
)

func TestSchemeHasEveryKind(t *testing.T) {
	s := runtime.NewScheme()
	if err := AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	for kind := range Resources {
		for _, name := range []string{kind, kind + "List"} {
			if _, err := s.New(GroupVersion.WithKind(name)); err != nil {
				t.Error(err)
			}
		}
	}
	if got := GroupVersion.String(); got != config.APIVersion {
		t.Errorf("group and version %s, want %s", got, config.APIVersion)
	}
}

// TestCRDsExplainEveryField holds that kubectl explain has a text for each field, and that
// the chart has the same CRDs.
func TestCRDsExplainEveryField(t *testing.T) {
	files, err := filepath.Glob("../../manifests/crds/*.yaml")
	if err != nil || len(files) != len(Resources) {
		t.Fatal(files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		charts, err := os.ReadFile(filepath.Join("../../manifests/charts/millrace/crds", filepath.Base(file)))
		if err != nil || !bytes.Equal(b, charts) {
			t.Errorf("%s: the chart has another: %v", file, err)
		}
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.Unmarshal(b, &crd); err != nil {
			t.Fatal(err)
		}
		for name, s := range crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties {
			if name != "metadata" {
				explained(t, crd.Spec.Names.Kind+"."+name, s)
			}
		}
	}
}

func explained(t *testing.T, path string, s apiextensions.JSONSchemaProps) {
	if s.Description == "" {
		t.Errorf("%s has no description", path)
	}
	for name, p := range s.Properties {
		explained(t, path+"."+name, p)
	}
	if s.Items != nil && s.Items.Schema.Type == "object" {
		for name, p := range s.Items.Schema.Properties {
			explained(t, path+"[]."+name, p)
		}
	}
}

func TestCopiesShareNothing(t *testing.T) {
	m := Model{Spec: config.Default().Models[0].Spec, Status: ModelStatus{Rows: []Row{{Name: "a-0", Nodes: []string{"n"}}}}}
	c := m.DeepCopy()
	if diff := cmp.Diff(&m, c); diff != "" {
		t.Errorf("copy (-want +got):\n%s", diff)
	}
	c.Spec.Layout[0].Shares[0], c.Status.Rows[0].Nodes[0] = 9, "other"
	if m.Spec.Layout[0].Shares[0] != 1 || m.Status.Rows[0].Nodes[0] != "n" {
		t.Errorf("a change of the copy changes the original: %+v", m)
	}
}
