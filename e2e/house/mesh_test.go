package house

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
)

func TestSampleConfigurationIsTheDefault(t *testing.T) {
	got, err := config.Load(filepath.Join(root, "manifests", "mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Default(), got); diff != "" {
		t.Errorf("manifests/mesh.yaml differs from the defaults (-default +file):\n%s", diff)
	}
}
