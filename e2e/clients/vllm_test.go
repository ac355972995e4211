//go:build clients && vllm

package clients

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// pythonOfVLLM and nodeOfVLLM are the rows in which a mesh of vLLM differs from one of
// llama.cpp.
var (
	pythonOfVLLM = map[string]string{}
	nodeOfVLLM   = map[string]string{}
)

// but returns rows with some of them replaced.
func but(rows, others map[string]string) map[string]string {
	rows = maps.Clone(rows)
	maps.Copy(rows, others)
	return rows
}

// vllmModel is the model that set-up makes for a vLLM on CPUs.
const vllmModel = `
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec:
  weights: MODEL
  backend:
    kind: vllm
    slots: 4
    args: [--dtype, float32, --block-size, "32", --num-gpu-blocks-override, "256", --enforce-eager, --enable-auto-tool-choice, --tool-call-parser, hermes]
`

// TestVLLM runs the rows of the official clients against a mesh of one real vLLM.
func TestVLLM(t *testing.T) {
	for name, value := range map[string]string{"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"} {
		t.Setenv(name, value)
	}
	config := rig.Write(t, filepath.Join(t.TempDir(), "vllm.yaml"), strings.ReplaceAll(vllmModel, "MODEL", rig.MustCached(t, "vllm/model")))
	m := rig.OwnMeshWithin(t, 10*time.Minute, "-nodes", "1", "-vllm", rig.MustCached(t, "vllm/venv"), "-config", config)
	r := startRecorder(t, m.URL(t, ""))
	t.Run("python", func(t *testing.T) {
		check(t, but(python, pythonOfVLLM), nil, pythonPath("python"), "testdata/rows.py", r.url, rig.Model)
	})
	t.Run("node", func(t *testing.T) {
		check(t, but(node, nodeOfVLLM), []string{"CLIENTS=" + filepath.Join(rig.Cache(), "clients", "node")}, "node", "testdata/rows.mjs", r.url, rig.Model)
	})
}
