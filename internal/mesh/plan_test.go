package mesh

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/state"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func input(nodes, extprocs int) Input {
	in := Input{
		Listen: "127.0.0.1:10000", Dir: "/m", Nodes: nodes, ExtProcs: extprocs, Programs: "/bin", Envoy: "/cache/envoy", Runtime: "/cache/llamacpp",
		Traces: "otlp://127.0.0.1:4317", Capacity: map[string]float64{"node-a": 100.5}, Memory: map[string]config.Bytes{"node-b": 1 << 30},
	}
	for i := range portsNeeded(nodes, extprocs) {
		in.Ports = append(in.Ports, 20000+i)
	}
	return in
}

func TestPlanOfThreeNodes(t *testing.T) {
	plan := NewPlan(input(3, 1))
	plan.Specs[len(plan.Specs)-1].Args = nil // package envoy's
	got, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "plan.json")
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Errorf("plan differs from %s (-want +got):\n%s", path, diff)
	}
}

func TestPlansUseEveryPortOnce(t *testing.T) {
	for _, nodes := range []int{1, 3, 27, maxNodes} {
		seen := map[string]bool{}
		plan := NewPlan(input(nodes, 4))
		for _, s := range plan.Specs {
			for use, addr := range s.Addrs {
				if seen[addr] {
					t.Errorf("%d nodes: %s %s: address %s is taken twice", nodes, s.Name, use, addr)
				}
				seen[addr] = true
			}
		}
		if len(plan.Specs) != 6+2*nodes || len(plan.Engines) != nodes {
			t.Errorf("%d nodes: %d processes and %d engines", nodes, len(plan.Specs), len(plan.Engines))
		}
	}
}

func TestSeveralExtProcs(t *testing.T) {
	plan := NewPlan(input(1, 2))
	var asked []string
	for _, s := range plan.Specs {
		if s.Role == "extproc" {
			asked = append(asked, s.Addrs["grpc"])
			if want := fmt.Sprintf("extproc@%d", len(asked)); s.Name != want || filepath.Base(s.Log) != want+".log" {
				t.Errorf("extproc %d is %q with the log %s", len(asked), s.Name, s.Log)
			}
		}
	}
	xds := plan.Specs[0]
	if i := slices.Index(xds.Args, "-extproc"); len(asked) != 2 || xds.Args[i+1] != strings.Join(asked, ",") {
		t.Errorf("extprocs at %v, and xds is told %v", asked, xds.Args)
	}
}

func TestNodeNames(t *testing.T) {
	names := nodeNames(maxNodes)
	if names[0] != "node-a" || names[25] != "node-z" || names[26] != "node-aa" || len(slices.Compact(slices.Sorted(slices.Values(names)))) != maxNodes {
		t.Errorf("names %v", names)
	}
}

func TestLayOut(t *testing.T) {
	model := func(replicas int, layout ...config.Layout) config.File {
		f := config.Default()
		f.Models[0].Spec.Replicas, f.Models[0].Spec.Layout = replicas, layout
		return f
	}
	tests := []struct {
		name  string
		given bool
		nodes int
		fit   int
		want  []int // stages of each replica
	}{
		{name: "one node holds the model whole", nodes: 1, want: []int{1}},
		{name: "two nodes hold it whole each", nodes: 2, want: []int{1, 1}},
		{name: "from three nodes on the first replica is sharded", nodes: 3, want: []int{2, 1}},
		{name: "more nodes are more whole replicas", nodes: 5, want: []int{2, 1, 1, 1}},
		{name: "as many as fit, where that is known", nodes: 3, fit: 3, want: []int{1, 1, 1}},
		{name: "the user's layout stays", given: true, nodes: 5, want: []int{3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := layOut(model(1, config.Layout{Stages: 3}), map[string]bool{"smollm2": tt.given}, tt.nodes, func(config.Model) int { return tt.fit })
			var got []int
			for _, r := range replicas(f) {
				got = append(got, r.stages)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("stages %v, want %v", got, tt.want)
			}
			if err := checkRoom(f, tt.nodes); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestModelsOnDemandShareNodes, and those that are always loaded have their own.
func TestModelsOnDemandShareNodes(t *testing.T) {
	model := func(load string, stages int) config.Model {
		return config.Model{Spec: config.ModelSpec{Load: load, Replicas: 1, Layout: []config.Layout{{Stages: stages}}}}
	}
	f := config.File{Models: []config.Model{model(config.LoadOnDemand, 1), model(config.LoadOnDemand, 2), model(config.LoadOnDemand, 1)}}
	if err := checkRoom(f, 2); err != nil {
		t.Error(err)
	}
	if err := checkRoom(f, 1); err == nil {
		t.Error("a model has fewer nodes than it needs")
	}
	f.Models = append(f.Models, model(config.LoadAlways, 1))
	if checkRoom(f, 2) == nil || checkRoom(f, 3) != nil {
		t.Error("one that is always loaded has no node of its own")
	}
}

const twoModels = `
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: one}
spec: {weights: one.gguf}
---
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: two}
spec: {weights: two.gguf, layout: [{stages: 2}]}
`

func TestLayoutGiven(t *testing.T) {
	f, at, err := config.Read("mesh.yaml", []byte(twoModels))
	given := layoutGiven(f, at)
	if err != nil || given["one"] || !given["two"] {
		t.Errorf("layoutGiven() = %v, %v; want two alone", given, err)
	}
}

func TestLoadFindsWhatIsWrongBeforeTheStart(t *testing.T) {
	tests := []struct {
		name, text string
		nodes      int
		want       string
	}{
		{name: "unknown field", text: "apiVersion: millrace.dev/v1alpha1\nkind: Policy\nspec: {x: 1}\n", nodes: 3, want: "spec.x"},
		{name: "too few nodes", text: strings.Replace(twoModels, "stages: 2", "stages: 4", 1), nodes: 3, want: "the models need 5 nodes, there are 3"},
		{name: "no weights", text: twoModels, nodes: 3, want: "model one: weights: stat"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			err := Check(Options{Listen: "127.0.0.1:0", Nodes: tt.nodes, ExtProcs: 1, Config: path})
			if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != program.ExitConfig {
				t.Errorf("Check() = %v (exit %d), want %q (exit %d)", err, program.ExitCode(err), tt.want, program.ExitConfig)
			}
		})
	}
}

// TestAVLLMMustBeGiven, at the start and for an edit.
func TestAVLLMMustBeGiven(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.yaml")
	text := "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: m}\nspec: {weights: w, backend: {kind: vllm}}\n"
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.WriteFile(filepath.Join(dir, "bin", "vllm"), nil, 0o755),
		os.Mkdir(filepath.Join(dir, "w"), 0o755), os.WriteFile(filepath.Join(dir, "w", "config.json"), nil, 0o644), os.WriteFile(path, []byte(text), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Listen: "127.0.0.1:0", Nodes: 1, ExtProcs: 1, Config: path}
	if err := Check(o); err == nil || !strings.Contains(err.Error(), "no vLLM was named") || program.ExitCode(err) != program.ExitSetup {
		t.Errorf("Check() = %v (exit %d)", err, program.ExitCode(err))
	}
	o.VLLM = dir
	if err := Check(o); err != nil {
		t.Errorf("with one: %v", err)
	}
	file, at, err := config.Read(path, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for vllm, want := range map[string]int{"": 1, dir: 0} {
		d := deriver{nodes: 1, vllm: vllm}
		if _, faults := d.derive(file, at); len(faults) != want || want > 0 && faults[0].Path != "spec.backend.kind" {
			t.Errorf("derive() with vLLM %q: %v, want %d faults", vllm, faults, want)
		}
	}
}

func TestBadFlagsAreListedAllAtOnce(t *testing.T) {
	err := Check(Options{Listen: "here", Nodes: 0, Traces: "http://x", Capacity: map[string]float64{"node-q": 1}, Memory: map[string]config.Bytes{"node-r": 1}})
	if program.ExitCode(err) != program.ExitUsage {
		t.Fatalf("Check() = %v, want a usage error", err)
	}
	for _, want := range []string{`-listen "here"`, "-nodes 0", `traces: "http://x"`, "-capacity node-q", "-memory node-r"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error\n%v\nwant %q in it", err, want)
		}
	}
}

func TestParseCapacity(t *testing.T) {
	got, err := ParseCapacity("node-a=100, node-c=50.5,")
	if diff := cmp.Diff(map[string]float64{"node-a": 100, "node-c": 50.5}, got); err != nil || diff != "" {
		t.Errorf("ParseCapacity() = %v, %v", got, err)
	}
	for _, bad := range []string{"node-a", "node-a=x", "node-a=-1", "node-a=NaN", "node-a=1,node-a=2"} {
		if _, err := ParseCapacity(bad); err == nil {
			t.Errorf("ParseCapacity(%q) took a bad figure", bad)
		}
	}
}

func TestParseMemory(t *testing.T) {
	got, err := ParseMemory("node-a=1Gi, node-c=1000")
	if diff := cmp.Diff(map[string]config.Bytes{"node-a": 1 << 30, "node-c": 1000}, got); err != nil || diff != "" {
		t.Errorf("ParseMemory() = %v, %v", got, err)
	}
	for _, bad := range []string{"node-a", "node-a=x", "node-a=-1", "node-a=0", "node-a=1Gi,node-a=2Gi", "node-a=9000000Gi"} {
		if _, err := ParseMemory(bad); err == nil {
			t.Errorf("ParseMemory(%q) took a bad figure", bad)
		}
	}
}

func FuzzParseMemory(f *testing.F) {
	f.Add("node-a=1Gi,node-c=50")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseMemory(text)
		for node, v := range got {
			if err == nil && (v < 1 || v > 1<<50) {
				t.Errorf("ParseMemory(%q): %s=%v", text, node, v)
			}
		}
	})
}

func FuzzParseCapacity(f *testing.F) {
	f.Add("node-a=100,node-c=50")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseCapacity(text)
		for node, v := range got {
			if err == nil && !(v >= 0 && v <= 1e9) {
				t.Errorf("ParseCapacity(%q): %s=%v", text, node, v)
			}
		}
	})
}

func TestListenInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := checkListen(ln.Addr().String()); program.ExitCode(err) != program.ExitInUse {
		t.Errorf("checkListen() = %v, want exit code %d", err, program.ExitInUse)
	}
	got, err := checkListen("127.0.0.1:0")
	if err != nil || strings.HasSuffix(got, ":0") {
		t.Errorf("checkListen() = %q, %v; want a real port", got, err)
	}
	if got := reachable("0.0.0.0:80"); got != "127.0.0.1:80" {
		t.Errorf("reachable() = %q", got)
	}
}

func TestASecondMeshInTheFolderIsRefused(t *testing.T) {
	dir := t.TempDir()
	lock, err := takeDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := state.Create(state.State{Dir: dir, Listen: "127.0.0.1:1", PID: 42}); err != nil {
		t.Fatal(err)
	}
	_, err = takeDir(dir)
	if !errors.Is(err, state.ErrRunning) || !strings.Contains(err.Error(), "process 42, http://127.0.0.1:1") {
		t.Errorf("takeDir() = %v, want the other mesh's process and address", err)
	}
}

func TestMakeKeyKeepsAnOldKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cookie.key")
	var keys [2]string
	for i := range keys {
		if err := makeKey(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = string(b)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 || len(keys[0]) != 64 || keys[0] != keys[1] {
		t.Errorf("keys %q, %v, %v; want one of 64 digits for its owner alone", keys, st, err)
	}
}
