package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestBadFiles reads each file of testdata/bad, whose last lines say the faults
// expected: "# want LINE: PATH: TEXT".
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			_, err := Load(name)
			if err == nil {
				t.Fatal("took a bad file")
			}
			if diff := cmp.Diff(wanted(t, name), err.Error()); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func wanted(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(b)) {
		if fault, ok := strings.CutPrefix(strings.TrimSpace(line), "# want "); ok {
			want = append(want, name+":"+fault)
		}
	}
	return strings.Join(want, "\n")
}

func TestGoodFileOverDefaults(t *testing.T) {
	got, err := Load("testdata/good/fleet.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	qwen, smol, policy := newModel(), newModel(), newPolicy()
	qwen.Metadata.Name = "qwen2.5-7b"
	qwen.Spec.Weights = filepath.Join(dir, "models/qwen.gguf")
	qwen.Spec.Tokenizer = "/models/qwen/tokenizer.json"
	qwen.Spec.Backend.ContextTokens, qwen.Spec.Backend.Slots = 8192, 8
	qwen.Spec.Replicas = 3
	qwen.Spec.Layout = []Layout{{Stages: 2, Shares: []float32{2, 1.5}, Nodes: []string{"node-a", "node-c"}}, {Stages: 2, Shares: []float32{2, 1.5}}, {Stages: 1}}
	smol.Metadata.Name = DefaultModel
	smol.Spec.Default = true
	smol.Spec.Backend = qwen.Spec.Backend
	smol.Spec.Replicas = 1
	policy.Spec.Sessions.Cookie.KeyFile = filepath.Join(filepath.Dir(dir), "keys/cookie")
	policy.Spec.Sessions.Idle = Duration{90 * time.Minute}
	policy.Spec.Retries.Critical, policy.Spec.Retries.MaxPerTry = 6, Duration{90 * time.Second}
	policy.Spec.Limits.MaxBodyBytes = 32 << 20
	policy.Spec.Rewrites = []Rewrite{{Model: "chat", To: []RewriteTarget{{"smollm2", 9}, {"qwen2.5-7b", 1}}}}
	if diff := cmp.Diff(File{Models: []Model{qwen, smol}, Policy: policy}, got); diff != "" {
		t.Errorf("Load() (-want +got):\n%s", diff)
	}
	if m := got.DefaultModel(); m.Metadata.Name != DefaultModel {
		t.Errorf("default model %q, want the one that says so", m.Metadata.Name)
	}
}

func TestWithoutAFileAllIsDefault(t *testing.T) {
	for name, load := range map[string]func() (File, error){
		"no path":    func() (File, error) { return Load("") },
		"empty file": func() (File, error) { return Parse("empty.yaml", nil) },
		"comments":   func() (File, error) { return Parse("comments.yaml", []byte("# nothing\n---\n# here\n")) },
	} {
		got, err := load()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(Default(), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestDefaultIsValid(t *testing.T) {
	f := Default()
	if broken := append(f.Models[0].validate(), f.Policy.validate()...); len(broken) > 0 {
		t.Errorf("Default() breaks %v", broken)
	}
}

func TestMissingFileIsTheSystemsError(t *testing.T) {
	if _, err := Load("testdata/absent.yaml"); !os.IsNotExist(err) {
		t.Errorf("Load() = %v, want not exist", err)
	}
}

func TestFirstModelIsTheDefault(t *testing.T) {
	f, err := Parse("one.yaml", []byte("apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: a}\nspec: {weights: /a.gguf}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !f.Models[0].Spec.Default || f.DefaultModel().Spec.TokenizerFile() != "/a.gguf" {
		t.Errorf("models %+v, want the only one as the default, with its weights' tokenizer", f.Models)
	}
}

func TestLayoutOf(t *testing.T) {
	s := Default().Models[0].Spec
	for replica, want := range map[int]Layout{
		0: {Stages: 2, Shares: []float32{1, 1}},
		1: {Stages: 1, Shares: []float32{1}},
		7: {Stages: 1, Shares: []float32{1}}, // the last entry repeats
	} {
		if diff := cmp.Diff(want, s.LayoutOf(replica)); diff != "" {
			t.Errorf("LayoutOf(%d) (-want +got):\n%s", replica, diff)
		}
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "1023": 1023, "16Mi": 16 << 20, "3k": 3000, "2Gi": 2 << 30} {
		var b Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("size %s = %d, %v; want %d", text, b, err, want)
		}
		if back, _ := b.MarshalText(); string(back) != text {
			t.Errorf("size %s written as %s", text, back)
		}
	}
	for text, want := range map[string]time.Duration{"0s": 0, "30m": 30 * time.Minute, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, "10h": 10 * time.Hour, "1h0m10s": time.Hour + 10*time.Second} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.Duration != want {
			t.Errorf("duration %s = %s, %v; want %s", text, d, err, want)
		}
		if back, _ := d.MarshalText(); string(back) != text {
			t.Errorf("duration %s written as %s", text, back)
		}
	}
	var b Bytes
	if err := b.UnmarshalText([]byte("9223372036854775807Ki")); err == nil {
		t.Errorf("a size that overflows is %d", b)
	}
	for text, want := range map[string]Bytes{`1024`: 1024, `"1Ki"`: 1024, `null`: 7} {
		b := Bytes(7)
		if err := json.Unmarshal([]byte(text), &b); err != nil || b != want {
			t.Errorf("JSON %s is size %d, %v; want %d", text, b, err, want)
		}
	}
}

func TestMarshalReadsBack(t *testing.T) {
	good, err := Load("testdata/good/fleet.yaml")
	if err != nil {
		t.Fatal(err)
	}
	odd := Default()
	odd.Models[0].Spec.Weights = "/mnt/ null: [#x] \"'\n\t\u2028é🙂.gguf"
	odd.Models[0].Spec.Tokenizer = "/1e3"
	for _, f := range []File{Default(), good, odd} {
		checkRoundTrip(t, f)
	}
}

func checkRoundTrip(t *testing.T, f File) {
	t.Helper()
	b, err := Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("/effective.yaml", b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	if diff := cmp.Diff(f, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func TestAliasesCannotMakeASmallFileEndless(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: a}\nspec:\n  weights: &s [" + strings.Repeat("1,", 2000) + "]\n")
	b.WriteString("  tokenizer: &l {stages: 1, shares: *s}\n  layout: [" + strings.Repeat("*l,", 2000) + "]\n")
	_, err := Parse("bomb.yaml", []byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "more than 100000 values") {
		t.Errorf("Parse() = %v, want a bound on values", err)
	}
}

func TestManyFaultsAreCounted(t *testing.T) {
	_, err := Parse("many.yaml", []byte(strings.Repeat("---\na: 1\n", 100)))
	if err == nil || !strings.HasSuffix(err.Error(), "many.yaml: and 100 more") {
		t.Errorf("Parse() = %v, want 100 faults and the count of the rest", err)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.yaml")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: a}\nspec: {weights: A, layout: [{nodes: []}]}\n"))
	f.Add([]byte("a: &a [*a]\n<<: *a\n? [x]\n: !t y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Parse("/fuzz.yaml", b)
		if err != nil {
			return
		}
		checkRoundTrip(t, got)
	})
}

func TestKindsOfBackends(t *testing.T) {
	got, err := Load("testdata/good/backends.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("testdata/good/models/split")
	if err != nil {
		t.Fatal(err)
	}
	want := []Backend{
		{Kind: VLLM, ContextTokens: 4096, Slots: 4, Threads: 1, Queue: 64, TensorParallel: 2, PipelineParallel: 2, Args: []string{"--dtype", "float32", "--max-num-batched-tokens=512"}},
		{Kind: OpenAI, Slots: 64, Threads: 1, Queue: 64, URL: "https://engines.example/llm/v1", Model: "org/Theirs-70B"},
	}
	for i, m := range got.Models {
		if diff := cmp.Diff(want[i], m.Spec.Backend); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m.Metadata.Name, diff)
		}
		if file := m.Spec.TokenizerFile(); file != filepath.Join(dir, "tokenizer.json") {
			t.Errorf("%s: tokenizer %q", m.Metadata.Name, file)
		}
	}
	text, err := Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("again.yaml", text)
	if diff := cmp.Diff(got, again); err != nil || diff != "" {
		t.Errorf("written and read again: %v (-want +got):\n%s", err, diff)
	}
}
