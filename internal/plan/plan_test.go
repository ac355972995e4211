package plan

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/program"
)

// folder writes a model in safetensors form: so many layers of a MiB each, ends of 1 MiB.
func folder(t *testing.T, layers int) string {
	t.Helper()
	dir := t.TempDir()
	const mib = 1 << 20
	var tensors []string
	for i, name := range append(layerNames(layers), "model.embed_tokens.weight", "lm_head.weight") {
		tensors = append(tensors, fmt.Sprintf(`%q:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`, name, mib, i*mib, (i+1)*mib))
	}
	header := "{" + strings.Join(tensors, ",") + "}"
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, uint64(len(header)))
	b.WriteString(header)
	b.Write(make([]byte, (layers+2)*mib))
	for name, data := range map[string][]byte{
		"model.safetensors": b.Bytes(),
		"config.json":       fmt.Appendf(nil, `{"model_type":"llama","num_hidden_layers":%d,"hidden_size":64,"num_attention_heads":8,"num_key_value_heads":4}`, layers),
	} {
		write(t, filepath.Join(dir, name), string(data))
	}
	return dir
}

func layerNames(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("model.layers.%d.w", i))
	}
	return all
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun(t *testing.T) {
	weights := folder(t, 8)
	model := func(spec string) string {
		return "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: m}\nspec: {weights: " + weights + ", " + spec + "}\n"
	}
	const llama, vllm = "backend: {contextTokens: 128}", "backend: {kind: vllm, contextTokens: 128}"
	const nodes = "nodes: [{name: a, memory: 71Mi, decode: 40}, {name: b, memory: 70Mi, decode: 80}]\nlink: {latency: 1ms}\n"
	tests := []struct {
		name, config, nodes string
		want                []string
		err                 string
		code                int
	}{
		{
			name: "split over two", config: model(llama), nodes: nodes,
			want: []string{"m: 8 layers, 10 MiB of weights, 0 MiB of KV cache for 4 × 128 tokens", "2 stages on a and b: 4 + 4 layers, decode 55 tok/s predicted; a alone lacks 4 MiB", "spec: {replicas: 1, layout: [{stages: 2, shares: [4, 4], nodes: [a, b]}]}"},
		},
		{
			name: "a written layout wins", config: model(llama + ", layout: [{stages: 1}]"), nodes: nodes,
			want: []string{"the file has a spec.layout of its own, which wins"},
		},
		{
			name: "not over nodes", config: model(vllm), nodes: nodes, err: "plan: model m needs 10 MiB more", code: program.ExitRuntime,
			want: []string{"no place: it needs 10 MiB more"},
		},
		{
			name: "devices share layers", config: model(vllm + ", replicas: 1"), nodes: "nodes: [{name: a, memory: 1032Mi, devices: 4, decode: 10}]",
			want: []string{"spec: {replicas: 1, layout: [{stages: 1, nodes: [a]}], backend: {kind: vllm, tensorParallel: 4, pipelineParallel: 1}}"},
		},
		{
			name: "several on one node", config: model(llama + ", replicas: 2"), nodes: "nodes: [{name: a, memory: 1Gi, devices: 4, decode: 10}]",
			want: []string{"2 replicas, each whole on a, 8 layers", "spec: {replicas: 2, layout: [{stages: 1}, {stages: 1}]}", "run as many as there are replicas on a"},
		},
		{name: "speeds of a model that is not there", config: model(llama), nodes: "measuredWith: x\n" + nodes, err: `measuredWith: "x"; must be a model that is laid out here`, code: program.ExitConfig},
		{name: "nodes with faults", config: model(llama), nodes: "nodes: []", err: "nodes: 0; must be ≥ 1", code: program.ExitConfig},
		{name: "a model with faults", config: "kind: Model", nodes: nodes, err: "apiVersion", code: program.ExitConfig},
		{name: "weights that are not there", config: strings.Replace(model(llama), weights, "/none.gguf", 1), nodes: nodes, err: "plan: model m: ", code: program.ExitConfig},
		{name: "external servers alone", config: strings.Replace(model("backend: {kind: openai, url: \"http://h.example\"}"), "weights: "+weights+", ", "", 1), nodes: nodes, err: "nothing to lay out", code: program.ExitConfig},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			var out bytes.Buffer
			err := Run(t.Context(), Options{Config: write(t, filepath.Join(dir, "c.yaml"), tt.config), Nodes: write(t, filepath.Join(dir, "n.yaml"), tt.nodes), Out: &out})
			if (err == nil) != (tt.err == "") || err != nil && (!strings.Contains(err.Error(), tt.err) || program.ExitCode(err) != tt.code) {
				t.Errorf("Run() = %v (exit %d), want %q (exit %d)", err, program.ExitCode(err), tt.err, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("printed\n%swant %s", out.String(), want)
				}
			}
		})
	}
}

// TestJSON holds what programs read: all that is printed, and no other text.
func TestJSON(t *testing.T) {
	dir := t.TempDir()
	config := write(t, filepath.Join(dir, "c.yaml"), "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: m}\nspec: {weights: "+folder(t, 2)+"}\n")
	var out bytes.Buffer
	if err := Run(t.Context(), Options{Config: config, JSON: true, Out: &out}); err != nil {
		t.Fatal(err)
	}
	var got struct{ Models []layoutView }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if m := got.Models[0]; len(got.Models) != 1 || m.Model != "m" || m.WeightBytes != 4<<20 || len(m.Replicas) != 1 || m.Replicas[0].Stages[0].Layers != 2 || m.Why == "" {
		t.Errorf("%s", out.String())
	}
}
