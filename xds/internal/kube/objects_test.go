package kube

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/kubeapi"
)

var born = time.Unix(1_800_000_000, 0).UTC()

// made is an object that was made so many seconds after born.
func made(kind, name string, second int, generation int64, spec string) object {
	return object{
		Ref: desired.Ref{Kind: kind, Name: name}, UID: fmt.Sprint(kind, name, second), Generation: generation,
		Created: born.Add(time.Duration(second) * time.Second), Spec: []byte(spec),
	}
}

func model(name string, second int, generation int64, spec string) object {
	return made(config.KindModel, name, second, generation, spec)
}

func testRules(admit desired.Admit) rules {
	return rules{dir: "/models", key: keyOf([]byte("k")), admit: admit}
}

// shown is what is in force: models with generation and replicas, a * at the default.
func shown(j judgement) string {
	var all []string
	for _, m := range j.published.State.Models {
		mark := ""
		if m.Spec.Default {
			mark = "*"
		}
		all = append(all, fmt.Sprintf("%s%s@%d×%d", m.Name, mark, m.Generation, m.Spec.Replicas))
	}
	return strings.Join(all, " ")
}

// said is what becomes of each object that is not in force as it is.
func said(j judgement) map[string]string {
	all := map[string]string{}
	for _, v := range j.verdicts {
		if len(v.faults) > 0 {
			all[v.Name] = v.reason + ": " + v.faults[0].Error()
		}
	}
	return all
}

func TestObjectsAreJudgedEachByItself(t *testing.T) {
	const good, wrong = `{"weights":"a.gguf","replicas":2}`, `{"weights":"a.gguf","replicas":5000}`
	tests := []struct {
		name  string
		steps [][]object
		want  string
		said  map[string]string
	}{
		{name: "none", steps: [][]object{nil}, want: "", said: map[string]string{}},
		{
			name:  "by age, whatever the order of the list",
			steps: [][]object{{model("a", 2, 1, good), model("b", 1, 1, good)}},
			want:  "b*@1×2 a@1×2", said: map[string]string{},
		},
		{
			name:  "a wrong one that never was good keeps no other out",
			steps: [][]object{{model("a", 1, 1, wrong), model("b", 2, 1, good)}},
			want:  "b*@1×2", said: map[string]string{"a": "Invalid: spec.replicas: 5000; must be ≤ 1024"},
		},
		{
			name:  "a wrong edit leaves the last good content in force",
			steps: [][]object{{model("a", 1, 3, good)}, {model("a", 1, 4, wrong)}, {model("a", 1, 5, wrong)}},
			want:  "a*@3×2", said: map[string]string{"a": "Invalid: spec.replicas: 5000; must be ≤ 1024"},
		},
		{
			name:  "and it goes when that is mended",
			steps: [][]object{{model("a", 1, 3, good)}, {model("a", 1, 4, wrong)}, {model("a", 1, 5, `{"weights":"a.gguf"}`)}},
			want:  "a*@5×1", said: map[string]string{},
		},
		{
			name:  "what was deleted and made anew inherits nothing",
			steps: [][]object{{model("a", 1, 3, good)}, {model("a", 9, 1, wrong)}},
			want:  "", said: map[string]string{"a": "Invalid: spec.replicas: 5000; must be ≤ 1024"},
		},
		{
			name: "a generation that begins again is another content",
			steps: [][]object{
				{model("a", 1, 1, good)}, {model("a", 9, 1, `{"weights":"a.gguf","replicas":3}`)},
			},
			want: "a*@1×3", said: map[string]string{},
		},
		{
			name: "a second default is none",
			steps: [][]object{
				{model("a", 1, 1, `{"weights":"a.gguf","default":true}`), model("b", 2, 1, `{"weights":"a.gguf","default":true}`)},
			},
			want: "a*@1×1 b@1×1", said: map[string]string{"b": "Conflict: spec.default: true; is already so for the model a"},
		},
		{
			name: "an older one that becomes the default takes it from the younger one, which stays",
			steps: [][]object{
				{model("a", 1, 1, good), model("b", 2, 1, `{"weights":"a.gguf","default":true}`)},
				{model("a", 1, 2, `{"weights":"a.gguf","default":true}`), model("b", 2, 1, `{"weights":"a.gguf","default":true}`)},
			},
			want: "a*@2×1 b@1×1", said: map[string]string{"b": "Conflict: spec.default: true; is already so for the model a"},
		},
		{
			name: "a rewrite to a model that is deleted",
			steps: [][]object{
				{model("a", 1, 1, good), made(config.KindPolicy, "default", 2, 1, `{"rewrites":[{"model":"x","to":[{"model":"a"}]}]}`)},
				{model("b", 3, 1, good), made(config.KindPolicy, "default", 2, 1, `{"rewrites":[{"model":"x","to":[{"model":"a"}]}]}`)},
			},
			want: "b*@1×2",
			said: map[string]string{"default": `MissingModel: spec.rewrites[0].to[0].model: "a"; must be the id of a model that is served`},
		},
		{
			name:  "what the status says is in force, for an xds that does not remember",
			steps: [][]object{{func() object { o := model("a", 1, 4, wrong); o.InForce = &content{3, []byte(good)}; return o }()}},
			want:  "a*@3×2", said: map[string]string{"a": "Invalid: spec.replicas: 5000; must be ≤ 1024"},
		},
		{
			name:  "no JSON of ours",
			steps: [][]object{{model("a", 1, 1, `{"weights":7,"wieghts":"x"}`), model("b", 2, 1, `[]`), model("c", 3, 1, ``)}},
			want:  "", said: map[string]string{
				"a": "Invalid: spec.weights: 7; must be a string (in quotes)", "b": "Invalid: spec: a list; must be an object with fields",
				"c": "Invalid: spec.weights: missing; must be the path of a GGUF file (only smollm2 can do without)",
			},
		},
		{name: "the model of the installation", steps: [][]object{{model("smollm2", 1, 1, ``)}}, want: "smollm2*@1×1", said: map[string]string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var j judgement
			for _, objects := range tt.steps {
				j = testRules(nil).judge(objects, j)
			}
			if got := shown(j); got != tt.want {
				t.Errorf("in force: %q, want %q", got, tt.want)
			}
			if diff := cmp.Diff(tt.said, said(j)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatIsNotAdmittedIsTakenOutOfForce(t *testing.T) {
	never := func(s *desired.State) []config.Fault {
		var faults []config.Fault
		for _, m := range s.Models {
			if m.Spec.Replicas == 9 {
				faults = append(faults, config.Fault{Kind: m.Kind, Name: m.Name, Text: "Envoy would refuse it"})
			}
		}
		return faults
	}
	var j judgement
	for _, objects := range [][]object{
		{model("a", 1, 1, `{"weights":"a.gguf"}`), model("b", 2, 1, `{"weights":"a.gguf"}`)},
		{model("a", 1, 2, `{"weights":"a.gguf","replicas":9}`), model("b", 2, 2, `{"weights":"a.gguf","replicas":3}`), model("c", 3, 1, `{"weights":"a.gguf","replicas":9}`)},
	} {
		j = testRules(never).judge(objects, j)
	}
	if got, want := shown(j), "a*@1×1 b@2×3"; got != want {
		t.Errorf("in force: %q, want %q", got, want)
	}
	if diff := cmp.Diff(map[string]string{"a": "Invalid: Envoy would refuse it", "c": "Invalid: Envoy would refuse it"}, said(j)); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	nobody := func(*desired.State) []config.Fault { return []config.Fault{{Text: "something is wrong"}} }
	before := j
	if j = testRules(nobody).judge([]object{model("z", 1, 1, `{"weights":"a.gguf"}`)}, before); j.published.State != before.published.State || len(j.published.Faults) != 1 {
		t.Errorf("nobody is to blame: %q, %v; want what was in force", shown(j), j.published.Faults)
	}
}

// TestTwoXDSAgree: whatever the order of changes, one that remembers, one that was just
// started and one that knows a copy have the same in force, once statuses are written.
func TestTwoXDSAgree(t *testing.T) {
	specs := []string{
		`{"weights":"a.gguf"}`, `{"weights":"a.gguf","default":true}`, `{"weights":"a.gguf","replicas":2}`, `{"weights":"a.gguf","replicas":-1}`, `{"wieghts":1}`,
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 3))
		objects := map[string]object{}
		var leader, follower judgement
		for step := range 30 {
			name := string(rune('a' + r.IntN(4)))
			o, known := objects[name]
			switch {
			case known && r.IntN(5) == 0:
				delete(objects, name)
			case known:
				o.Generation++
				o.Spec = []byte(specs[r.IntN(len(specs))])
				objects[name] = o
			default:
				objects[name] = model(name, step, 1, specs[r.IntN(len(specs))])
			}
			var list []object
			for _, o := range objects {
				list = append(list, o)
			}
			leader = testRules(nil).judge(list, leader)
			for _, v := range leader.verdicts { // what the writer does
				o := objects[v.Name]
				if o.InForce = nil; v.holds != nil && v.refused() {
					o.InForce = v.holds
				}
				objects[v.Name] = o
			}
			list = list[:0]
			for _, o := range objects {
				list = append(list, o)
			}
			leader = testRules(nil).judge(list, leader)
			if r.IntN(3) == 0 {
				follower = judgement{} // restarted
			}
			follower = testRules(nil).judge(list, follower)
			s := saved{Namespace: "n", Judged: true, Objects: list}
			for _, g := range leader.goods {
				s.Goods = append(s.Goods, g)
			}
			path := filepath.Join(t.TempDir(), "copy")
			if err := s.save(path); err != nil {
				t.Fatal(err)
			}
			back, ok, err := load(path, "n")
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			copied := testRules(nil).judge(back.Objects, judgement{goods: back.goodsOf()})
			if shown(leader) != shown(follower) || shown(leader) != shown(copied) {
				t.Fatalf("seed %d, step %d: %q, %q and %q are in force", seed, step, shown(leader), shown(follower), shown(copied))
			}
			for _, v := range leader.verdicts {
				if _, in := leader.published.State.Model(v.Name); in != (v.holds != nil) {
					t.Fatalf("seed %d: %s is in force: %t, and holds %v", seed, v.Name, in, v.holds)
				}
			}
			defaults := slices.DeleteFunc(slices.Clone(leader.published.State.Models), func(m desired.Object[config.ModelSpec]) bool { return !m.Spec.Default })
			if len(leader.published.State.Models) > 0 && len(defaults) != 1 {
				t.Fatalf("seed %d: %q has %d defaults", seed, shown(leader), len(defaults))
			}
		}
	}
}

func TestCopyOfAnotherNamespaceOrOfNothingIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "copy")
	if _, ok, err := load(path, "n"); ok || err != nil {
		t.Errorf("no file: %t, %v", ok, err)
	}
	if err := (saved{Namespace: "other"}).save(path); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := load(path, "n"); ok || err != nil {
		t.Errorf("another namespace: %t, %v", ok, err)
	}
	if err := (saved{}).save(filepath.Join(path, "x")); err == nil {
		t.Error("a copy that can't be written is no error")
	}
}

func FuzzObjects(f *testing.F) {
	f.Add("a", `{"weights":"a.gguf"}`, `{"replicas":-1}`)
	f.Add("default", `{"rewrites":[{"model":"x","to":[{"model":"a"}]}]}`, `{"sessions":null}`)
	f.Fuzz(func(t *testing.T, name, first, second string) {
		var j judgement
		for i, spec := range []string{first, second} {
			var objects []object
			for _, kind := range kindNames {
				objects = append(objects, made(kind, name, 1, int64(i+1), spec))
			}
			j = testRules(nil).judge(objects, j)
			if j.published.State == nil || len(j.verdicts) != len(objects) {
				t.Fatalf("%+v", j)
			}
		}
		for _, v := range j.verdicts {
			if v.reason == kubeapi.ReasonValid && len(v.faults) > 0 {
				t.Errorf("%+v is valid", v)
			}
		}
	})
}
