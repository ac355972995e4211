package mesh

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/models"
	"millrace.dev/millrace/internal/program"
)

// ownModel is a file that may be one of a model.
func ownModel(t *testing.T, name string) string {
	t.Helper()
	b := binary.LittleEndian.AppendUint64([]byte("GGUF\x03\x00\x00\x00"), 0)
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, binary.LittleEndian.AppendUint64(b, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNamedModels says which models a mesh has, on how many nodes each, of what is asked for by
// name and what the configuration says.
func TestNamedModels(t *testing.T) {
	own := ownModel(t, "Own_Model.gguf")
	policy := "apiVersion: millrace.dev/v1alpha1\nkind: Policy\nmetadata: {name: default}\n"
	object := func(name, spec string) string {
		return "---\napiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
	}
	tests := []struct {
		name   string
		config string // "": none
		models []string
		nodes  int
		want   []string // name:replicas*stages of the first=weights; * before the default
		err    string
	}{
		{"none", "", nil, 3, []string{"*smollm2:2*2="}, ""},
		{"a file, by its own name", "", []string{own}, 3, []string{"*own-model:2*2=" + own}, ""},
		{"several, on all nodes", "", []string{own, "a=" + own, "smollm2"}, 5, []string{"*own-model:2*1=" + own, "a:2*1=" + own, "smollm2:1*1="}, ""},
		{"more than nodes", "", []string{own, "a=" + own, "b=" + own}, 2, []string{"*own-model:1*1=" + own, "a:1*1=" + own + " on demand", "b:1*1=" + own + " on demand"}, ""},
		{"more than one node", "", []string{own, "a=" + own}, 1, []string{"*own-model:1*1=" + own + " on demand", "a:1*1=" + own + " on demand"}, ""},
		{"more than nodes, beside a model", object("b", "weights: "+own), []string{"a=" + own}, 1, nil, "the models need 2 nodes, there are 1"},
		{"beside a policy", policy, []string{"a=" + own}, 1, []string{"*a:1*1=" + own}, ""},
		{"beside a model", object("b", "weights: "+own), []string{"a=" + own}, 2, []string{"*b:1*1=" + own, "a:1*1=" + own}, ""},
		{"as the weights that are left out", object("smollm2", "replicas: 1"), []string{"smollm2=" + own}, 2, []string{"*smollm2:1*1=" + own}, ""},
		{"in place of weights", object("b", "weights: "+own), []string{"b=" + own}, 2, nil, "the configuration has a model b, with weights"},
		{"to be fetched", "", []string{"https://h.example/m.gguf"}, 1, []string{"*m:1*1=" + unfetched}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Nodes: tt.nodes, Models: tt.models, Cache: t.TempDir()}
			if tt.config != "" {
				o.Config = filepath.Join(t.TempDir(), "c.yaml")
				if err := os.WriteFile(o.Config, []byte(tt.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, all, err := o.named(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f, err := load(o, all)
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("load() = %v, want %q", err, tt.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tt.want, shownModels(f)); diff != "" {
				t.Errorf("models (-want +got):\n%s", diff)
			}
			if tt.config == "" {
				return
			}
			// What a later edit makes of the file is the same.
			file, at, err := config.Read(o.Config, []byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			d := deriver{nodes: tt.nodes, named: all, laid: laidOut(f)}
			again, faults := d.derive(file, at)
			if diff := cmp.Diff(tt.want, shownModels(again)); diff != "" || len(faults) > 0 {
				t.Errorf("once edited: %v (-want +got):\n%s", faults, diff)
			}
		})
	}
}

func shownModels(f config.File) (all []string) {
	for _, m := range f.Models {
		text := ""
		if m.Spec.Default {
			text = "*"
		}
		b, _ := json.Marshal(m.Spec.Replicas)
		s, _ := json.Marshal(m.Spec.LayoutOf(0).Stages)
		all = append(all, text+m.Metadata.Name+":"+string(b)+"*"+string(s)+"="+m.Spec.Weights)
		if m.Spec.Load == config.LoadOnDemand {
			all[len(all)-1] += " on demand"
		}
	}
	return all
}

// TestModelsTakeTurns by -on-demand, or as there are too few nodes, and that is said.
func TestModelsTakeTurns(t *testing.T) {
	own := ownModel(t, "own.gguf")
	for _, tt := range []struct {
		models   []string
		nodes    int
		onDemand bool
		want     string // "": nothing is said
	}{
		{[]string{own, "a=" + own}, 2, false, ""},
		{[]string{own, "a=" + own}, 2, true, ""},
		{[]string{own, "a=" + own, "b=" + own}, 2, false, "3 models, nodes: 2: own stays loaded; a, b take turns, each loaded when it is asked for (-nodes 3 keeps all of them loaded)"},
		{[]string{own, "a=" + own}, 1, true, "2 models, nodes: 1: own, a take turns, each loaded when it is asked for (-nodes 2 keeps all of them loaded)"},
	} {
		o := Options{Nodes: tt.nodes, Models: tt.models, OnDemand: tt.onDemand, Cache: t.TempDir()}
		_, all, err := o.named(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f, err := load(o, all)
		if err != nil {
			t.Fatal(err)
		}
		if got := turns(f, tt.nodes); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.models, got, tt.want)
		}
		for _, m := range f.Models {
			if tt.onDemand && m.Spec.Load != config.LoadOnDemand {
				t.Errorf("%s is loaded at once", m.Metadata.Name)
			}
		}
	}
}

// TestNothingIsFetchedInVain finds out that there is no vLLM before a folder is fetched for it.
func TestNothingIsFetchedInVain(t *testing.T) {
	asked := 0
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/models/org/folder/") {
			_, _ = w.Write([]byte(`{"siblings":[{"rfilename":"config.json","size":2},{"rfilename":"model.safetensors","size":9}]}`))
			return
		}
		asked++
		http.NotFound(w, r)
	}))
	defer hub.Close()
	o := Options{Nodes: 1, Models: []string{"org/folder"}, Cache: t.TempDir(), From: models.Options{Mirrors: []string{hub.URL}}}
	store, all, err := o.named(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = o.pull(t.Context(), store, all)
	if err == nil || !strings.Contains(err.Error(), "no vLLM was named") || asked > 0 {
		t.Errorf("pull() = %v after %d files", err, asked)
	}
	o.VLLM = "/somewhere"
	if err = o.pull(t.Context(), store, all); err == nil || asked == 0 {
		t.Errorf("pull() = %v after %d files, want it tried", err, asked)
	}
}

// TestBadNames are errors of the command line, and what is broken is one of set-up.
func TestBadNames(t *testing.T) {
	own := ownModel(t, "m.gguf")
	for _, tt := range []struct {
		models []string
		from   models.Options
		want   string
		code   int
	}{
		{[]string{own, own}, models.Options{}, "would both be called m", program.ExitUsage},
		{[]string{"smolm2"}, models.Options{}, `no model is called "smolm2"`, program.ExitUsage},
		{nil, models.Options{Catalogue: own}, "catalogue: ", program.ExitUsage},
		{nil, models.Options{TokenFile: "/none"}, "token file: ", program.ExitUsage},
		{[]string{"./none.gguf"}, models.Options{}, "none.gguf", program.ExitSetup},
		{[]string{"org/repo"}, models.Options{}, "no mirror is named", program.ExitSetup},
	} {
		err := Check(Options{Listen: "127.0.0.1:0", Nodes: 1, ExtProcs: 1, Cache: t.TempDir(), Models: tt.models, From: tt.from})
		if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != tt.code {
			t.Errorf("-model %q: %v, exit %d; want %q, %d", tt.models, err, program.ExitCode(err), tt.want, tt.code)
		}
	}
}
