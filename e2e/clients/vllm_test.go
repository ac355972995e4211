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

// The rows in which a mesh of vLLM differs from one of llama.cpp: a model that generates has
// no embeddings there, and this one's template knows no tools.
var (
	pythonOfVLLM = map[string]string{
		"completion_logprobs":      `^\(2, 2, \[[34], [34]\], 0\)$`, // what was sampled is there beside the most likely
		"completion_echo":          `^Completion\(`,
		"embedding_of_1000_tokens": noEmbeddings, "embedding_too_long": noEmbeddings, "embedding_dimensions": noEmbeddings,
		"asked: embeddings": `^\(400, 'model'\)$`,
		// The client takes the longest city out of the schema, and the model comes to no end.
		"anthropic_parsed": `^(City|ValidationError 1 validation error for City)`,
		// As OpenAI has it, a function that is named ends with stop.
		"tool_named": `^\('stop', None, \['weather'\], \[\['city'\]\]\)$`, "tool_streamed": `^\('tool_calls', '', \['weather'\], \[\['city'\]\]\)$`,
		"anthropic_counted": `^\(0, False\)$`,
	}
	frameworksOfVLLM = map[string]string{
		// The model comes to no end of its own.
		"agents_response": atLimit, "agents_response_streamed": atLimit, "agents_tool": atLimit, "agents_busy": atLimit, "langchain_form_by_json": `^LengthFinishReasonError `,
		"litellm_embeddings": `^BadRequestError .*can.{1,2}t be asked for /v1/embeddings`, "langchain_embeddings": `^OpenAIBadRequestError|BadRequestError .*can.{1,2}t be asked for /v1/embeddings`,
	}
	olderOfVLLM = map[string]string{
		"llama_index_tool":       `^ValueError Expected at least one tool call`, // cut by the limit
		"llama_index_embeddings": `^BadRequestError .*can.{1,2}t be asked for /v1/embeddings`}
	nodeOfVLLM = map[string]string{
		"openai echo": `^\{"choices":.*"id":"cmpl-`, "openai tool": `^\["stop","weather"\]$`,
		"openai embeddings": `^BadRequestError 400 model .*can.{1,2}t be asked for /v1/embeddings`, "ai embedding": `^APICallError 400 .*can.{1,2}t be asked for /v1/embeddings`,
	}
)

const atLimit = `^ModelBehaviorError Responses stream ended with terminal event .response\.incomplete.`

const noEmbeddings = `^BadRequestError 400 model the model "smollm2" can't be asked for /v1/embeddings$`

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
    args: [--dtype, float32, --block-size, "32", --num-gpu-blocks-override, "256", --enforce-eager, --enable-auto-tool-choice, --tool-call-parser, xlam,
      --structured-outputs-config, '{"backend":"xgrammar","disable_any_whitespace":true}']
`

// TestVLLM runs the rows of the official clients against a mesh of one real vLLM.
func TestVLLM(t *testing.T) {
	for name, value := range map[string]string{"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"} {
		t.Setenv(name, value)
	}
	config := rig.Write(t, filepath.Join(t.TempDir(), "vllm.yaml"), strings.ReplaceAll(vllmModel, "MODEL", rig.MustCached(t, "vllm/model")))
	m := rig.OwnMeshWithin(t, 25*time.Minute, "-nodes", "1", "-vllm", rig.MustCached(t, "vllm/venv"), "-config", config)
	r := startRecorder(t, m.URL(t, ""))
	runAll(t, r, []run{
		{"python", but(python, pythonOfVLLM), "python", "rows.py"},
		{"frameworks", but(frameworks, frameworksOfVLLM), "python", "frameworks.py"},
		{"older", but(older, olderOfVLLM), "older", "older.py"},
		{"load", load, "load", "load.py"},
		{"node", but(node, nodeOfVLLM), "node", "rows.mjs"},
	}, "/embeddings: answer")
}
