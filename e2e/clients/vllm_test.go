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

// The rows in which a mesh of vLLM differs from one of llama.cpp, in Python and in Node.
var (
	pythonOfVLLM = map[string]string{
		"several_choices":          `^BadRequestError 400 None n must be 1 when using greedy sampling`,
		"several_choices_streamed": `^BadRequestError 400 None n must be 1 when using greedy sampling`,
		"completion_logprobs":      `^\(2, 2, \[[34], [34]\], 0\)$`, // what was sampled is there beside the most likely
		"completion_echo":          `^Completion\(`,
		"tool_absent":              `^BadRequestError 400 tool_choice `,
		"anthropic_tool_absent":    `^BadRequestError 400 None The tool with name 'nobody' `,
		"response_previous":        `^NotFoundError 404 response_id `,
		// This model's template has no tools.
		"anthropic_counted": `^\(0, False\)$`,
	}
	nodeOfVLLM = map[string]string{
		"openai tool that is not there": `^BadRequestError 400 tool_choice `,
		"openai echo":                   `^\{"id":"cmpl-`,
	}
)

// The rows in which vLLM is not yet put right: engine forwards what it answers. They are
// to move into the tables above, or out of these.
var (
	pythonFaults = map[string]string{
		"anthropic_message": `^\('chat', `, "anthropic_streamed": `^\('chat', `, // ids
		"response_streamed":        `^\('response\.created', 'response\.completed', `, // cut by the limit
		"response_counted":         `^APIStatusError 405 `,
		"response_stored":          `^AttributeError `,
		"embedding_of_1000_tokens": `^NotFoundError 404 `, "embedding_too_long": `^NotFoundError 404 `, "embedding_dimensions": `^NotFoundError 404 `,
		"asked: embeddings": `^\(404, None\)$`,
	}
	nodeFaults = map[string]string{
		"anthropic message":        `"chat"`,
		"openai response streamed": `"response\.completed"`,
		"openai embeddings":        `^NotFoundError 404 `, "ai embedding": `^APICallError 404 `,
	}
)

// unsettled are rows whose answer has a form that a model with random weights comes to no end
// of: what the client makes of it says nothing.
var unsettled = map[string]string{
	"tool_required": ``, "tool_named": ``, "tool_streamed": ``, "chat_parsed": ``, "response_tool": ``, "response_parsed": ``,
	"anthropic_tool_any": ``, "anthropic_tool_named": ``, "anthropic_tool_streamed": ``, "anthropic_form": ``, "anthropic_form_streamed": ``, "anthropic_parsed": ``,
}

// unsettledInNode are those of Node's.
var unsettledInNode = map[string]string{"openai tool": ``, "anthropic forced": ``}

// but returns rows with some of them replaced.
func but(rows map[string]string, others ...map[string]string) map[string]string {
	rows = maps.Clone(rows)
	for _, o := range others {
		maps.Copy(rows, o)
	}
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
		check(t, but(python, pythonOfVLLM, pythonFaults, unsettled), nil, pythonPath("python"), "testdata/rows.py", r.url, rig.Model)
	})
	t.Run("node", func(t *testing.T) {
		check(t, but(node, nodeOfVLLM, nodeFaults, unsettledInNode), []string{"CLIENTS=" + filepath.Join(rig.Cache(), "clients", "node")}, "node", "testdata/rows.mjs", r.url, rig.Model)
	})
}
