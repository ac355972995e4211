package kubeapi

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"

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
