package desired

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
)

// parse returns the file of a text without faults.
func parse(t *testing.T, text string) config.File {
	t.Helper()
	f, err := config.Parse("mesh.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const (
	head   = "apiVersion: millrace.dev/v1alpha1\n"
	modelA = head + "kind: Model\nmetadata: {name: a}\nspec: {weights: /a.gguf}\n"
	modelB = head + "kind: Model\nmetadata: {name: b}\nspec: {weights: /b.gguf}\n"
	policy = head + "kind: Policy\nmetadata: {name: default}\nspec: {explain: true}\n"
)

// generations returns the generation of each object by its kind and name.
func generations(s *State) map[string]int64 {
	all := map[string]int64{s.Policy.Kind + "/" + s.Policy.Name: s.Policy.Generation}
	for _, m := range s.Models {
		all[m.Kind+"/"+m.Name] = m.Generation
	}
	return all
}

func TestGenerationsGrowWhereTheContentChanges(t *testing.T) {
	tests := []struct {
		name        string
		text, key   string
		wantVersion uint64
		want        map[string]int64
	}{
		{"first", modelA + "---\n" + modelB, "k", 1, map[string]int64{"Model/a": 1, "Model/b": 1, "Policy/default": 1}},
		{"the same", modelA + "---\n" + modelB, "k", 1, map[string]int64{"Model/a": 1, "Model/b": 1, "Policy/default": 1}},
		{"a policy", modelA + "---\n" + modelB + "---\n" + policy, "k", 2, map[string]int64{"Model/a": 1, "Model/b": 1, "Policy/default": 2}},
		{"a key", modelA + "---\n" + modelB + "---\n" + policy, "l", 3, map[string]int64{"Model/a": 1, "Model/b": 1, "Policy/default": 3}},
		{"another order makes another default", modelB + "---\n" + modelA + "---\n" + policy, "l", 4, map[string]int64{"Model/a": 2, "Model/b": 2, "Policy/default": 3}},
		{"a model less", modelB + "---\n" + policy, "l", 5, map[string]int64{"Model/b": 2, "Policy/default": 3}},
		{"a model again", modelB + "---\n" + modelA + "---\n" + policy, "l", 6, map[string]int64{"Model/a": 1, "Model/b": 2, "Policy/default": 3}},
	}
	var s *State
	for _, tt := range tests {
		s = Next(s, parse(t, tt.text), []byte(tt.key))
		if s.Version != tt.wantVersion {
			t.Errorf("%s: version %d, want %d", tt.name, s.Version, tt.wantVersion)
		}
		if diff := cmp.Diff(tt.want, generations(s)); diff != "" {
			t.Errorf("%s: generations (-want +got):\n%s", tt.name, diff)
		}
	}
	if s.Default() != "b" {
		t.Errorf("default %q, want b", s.Default())
	}
}

func TestGenerationsThatTheSourceKnows(t *testing.T) {
	var s *State
	tests := []struct {
		name        string
		text        string
		generations map[string]int64
		wantVersion uint64
	}{
		{"first", modelA + "---\n" + modelB, map[string]int64{"Model/a": 4, "Model/b": 1}, 1},
		{"the same", modelA + "---\n" + modelB, map[string]int64{"Model/a": 4, "Model/b": 1}, 1},
		{"deleted and made anew", modelA + "---\n" + modelB, map[string]int64{"Model/a": 1, "Model/b": 1}, 2},
		{"with another content under the same generation", strings.Replace(modelA, "weights", "replicas: 2, weights", 1) + "---\n" + modelB, map[string]int64{"Model/a": 1, "Model/b": 1}, 3},
	}
	for _, tt := range tests {
		s = Known(s, parse(t, tt.text), func(kind, name string) int64 { return tt.generations[kind+"/"+name] }, nil)
		tt.generations["Policy/default"] = 0 // nobody has made it
		if diff := cmp.Diff(tt.generations, generations(s)); diff != "" || s.Version != tt.wantVersion {
			t.Errorf("%s: version %d, want %d; generations (-want +got):\n%s", tt.name, s.Version, tt.wantVersion, diff)
		}
	}
}
