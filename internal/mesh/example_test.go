package mesh

import (
	"testing"

	"millrace.dev/millrace/internal/config"
)

// TestExampleOfTheReadyMesh has a model to ask although every engine is run by others.
func TestExampleOfTheReadyMesh(t *testing.T) {
	const own = "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: smollm2}\n"
	const others = "apiVersion: millrace.dev/v1alpha1\nkind: Endpoints\nmetadata: {name: pool}\nspec: {endpoints: [{address: \"10.0.0.2:8000\", models: [theirs]}]}\n"
	for _, tt := range []struct{ file, want string }{
		{own, "smollm2"},
		{others, "theirs"},
		{others + "---\n" + own, "smollm2"},
	} {
		f, _, err := config.Read("mesh.yaml", []byte(tt.file))
		if err != nil {
			t.Fatal(err)
		}
		if got := example(f); got != tt.want {
			t.Errorf("%q, want %q of\n%s", got, tt.want, tt.file)
		}
	}
}
