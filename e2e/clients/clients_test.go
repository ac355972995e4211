//go:build clients

package clients

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// python are the rows of the Python clients, as regular expressions.
var python = map[string]string{
	"tool_required":                `^\('tool_calls', None, \['weather'\], \[\['city'\]\]\)$`,
	"tool_named":                   `^\('tool_calls', None, \['weather'\], \[\['city'\]\]\)$`,
	"tool_streamed":                `^\('tool_calls', None, \['weather'\], \[\['city'\]\]\)$`,
	"tool_absent":                  `^BadRequestError 400 tool_choice\.function\.name `,
	"tool_without_tools":           `^BadRequestError 400 tool_choice `,
	"chat_parsed":                  `^City$`,
	"chat_functions":               `^BadRequestError 400 functions `,
	"chat_slash":                   `^chat\.completion$`,
	"several_choices":              `^\(3, 3, 3\)$`,
	"several_choices_streamed":     `^\(\[2\], \[0, 1\]\)$`,
	"several_prompts":              `^\(2, 2, True, 'cmpl-'\)$`,
	"completion_logprobs":          `^\(2, 2, \[3, 3\], 0\)$`,
	"completion_echo":              `^BadRequestError 400 echo `,
	"completion_suffix":            `^BadRequestError 400 suffix `,
	"completion_best_of":           `^BadRequestError 400 best_of `,
	"embedding_of_1000_tokens":     `^\(True, 576\)$`,
	"embedding_too_long":           `^BadRequestError 400 input input: 3001 tokens; `,
	"embedding_dimensions":         `^BadRequestError 400 dimensions `,
	"response":                     `^\('incomplete', 'max_output_tokens', 3, 'resp_'\)$`,
	"response_streamed":            `^\('response\.created', 'response\.incomplete', True, True, True\)$`,
	"response_tool":                `^\[\('function_call', 'weather'\)\]$`,
	"response_parsed":              `^City$`,
	"response_previous":            `^BadRequestError 400 previous_response_id Previous response with id 'resp_1' not found`,
	"response_logprobs":            `^\[2, 2\]$`,
	"response_verbosity":           `^BadRequestError 400 text\.verbosity `,
	"chat_image":                   `^BadRequestError 400 `,
	"chat_hints":                   `^\('length', True\)$`,
	"anthropic_hints":              `^max_tokens$`,
	"health":                       `^\(200, True\)$`,
	"models_head":                  `^\(200, False\)$`,
	"models_slash":                 `^\(200, True\)$`,
	"anthropic_message":            `^\('msg_', 'max_tokens', True, 3\)$`,
	"anthropic_streamed":           `^\('msg_', 'max_tokens', 'text'\)$`,
	"anthropic_stopped":            `^\('stop_sequence', True\)$`,
	"anthropic_tool_any":           `^\('tool_use', \[\('tool_use', 'weather', \['city'\]\)\], True\)$`,
	"anthropic_tool_named":         `^\('tool_use', \[\('tool_use', 'weather', \['city'\]\)\], True\)$`,
	"anthropic_tool_auto":          `^\(True, True\)$`,
	"anthropic_tool_streamed":      `^\('tool_use', \[\('tool_use', 'weather', \['city'\]\)\], True\)$`,
	"anthropic_tool_absent":        `^BadRequestError 400 None tool_choice\.name: `,
	"anthropic_form":               `^\('end_turn', \['city'\]\)$`,
	"anthropic_form_streamed":      `^\(\['city'\], True\)$`,
	"anthropic_parsed":             `^City$`,
	"anthropic_counted":            `^\(0, True\)$`,
	"anthropic_counted_as_charged": `^0$`,
	"anthropic_busy":               `^1$`,
	"response_counted":             `^\('response\.input_tokens', 0\)$`,
	"response_stored":              `^True$`,
	"response_not_stored":          `^\(False, 'NotFoundError'\)$`,
	"response_turns":               `^\(True, \['user', 'assistant', 'user'\], True\)$`,
	"response_turns_streamed":      `^\(True, 3\)$`,
	"response_deleted":             `^\(None, 'NotFoundError', 'BadRequestError'\)$`,
	"response_cancelled":           `^BadRequestError 400 None Cannot cancel`,
	"conversation":                 `^\('conversation', \{'topic': 'b'\}, 'conversation\.deleted', 'NotFoundError'\)$`,
	"conversation_turns":           `^\(True, \['developer', 'user', 'assistant', 'user', 'assistant'\]\)$`,
	"conversation_items":           `^\(3, 'user', 2, 'NotFoundError'\)$`,
	"response_busy":                `^1$`,
	"chat_busy":                    `^RateLimitError 429 `,
	"anthropic_model":              `^NotFoundError 404 None the model "nobody" `,

	"asked: chat":                        `^\(200, False\)$`,
	"asked: a longer chat":               `^\(200, False\)$`,
	"asked: chats":                       `^\(200, False\)$`,
	"asked: chat with logprobs":          `^\(200, False\)$`,
	"asked: chat with a call":            `^\(200, False\)$`,
	"asked: chat streamed":               `^\(200, True\)$`,
	"asked: call streamed":               `^\(200, True\)$`,
	"asked: completion":                  `^\(200, False\)$`,
	"asked: embeddings":                  `^\(200, False\)$`,
	"asked: models":                      `^\(200, False\)$`,
	"asked: model":                       `^\(200, False\)$`,
	"asked: response":                    `^\(200, False\)$`,
	"asked: response streamed":           `^\(200, True\)$`,
	"asked: call in a response streamed": `^\(200, True\)$`,
	"asked: error of extproc":            `^\(404, 'model'\)$`,
	"asked: error of engine":             `^\(400, 'tool_choice'\)$`,
}

// frameworks are the rows of libraries over OpenAI's client.
var frameworks = map[string]string{
	"litellm_chat":                `^\('length', 3\)$`,
	"litellm_streamed":            `^\('length', 3, True\)$`,
	"litellm_tool_required":       `^\('tool_calls', \[\('weather', \['city'\]\)\]\)$`,
	"litellm_tool_named":          `^\[\('weather', \['city'\]\)\]$`,
	"litellm_tool_auto":           `^True$`,
	"litellm_form":                `^\['city'\]$`,
	"litellm_embeddings":          `^\(2, 576\)$`,
	"litellm_response":            `^\(True, True\)$`,
	"litellm_model":               `^NotFoundError `,
	"litellm_too_long":            `^ContextWindowExceededError `,
	"litellm_busy":                `^1$`,
	"litellm_anthropic":           `^\('length', 3\)$`,
	"litellm_anthropic_streamed":  `^\('length', True\)$`,
	"litellm_anthropic_tool":      `^\('tool_calls', \[\('weather', \['city'\]\)\]\)$`,
	"litellm_anthropic_form":      `^\['city'\]$`,
	"litellm_anthropic_too_long":  `^ContextWindowExceededError `,
	"langchain_chat":              `^\('length', 3\)$`,
	"langchain_streamed":          `^\('length', 3, True\)$`,
	"langchain_batch":             `^\[2, 2, 2\]$`,
	"langchain_tool_required":     `^\[\('weather', \['city'\]\)\]$`,
	"langchain_tool_named":        `^\[\('weather', \['city'\]\)\]$`,
	"langchain_tool_streamed":     `^\[\('weather', \['city'\]\)\]$`,
	"langchain_form":              `^City$`,
	"langchain_form_by_call":      `^City$`,
	"langchain_form_by_json":      `^City$`,
	"langchain_response":          `^\('incomplete', 3\)$`,
	"langchain_response_streamed": `^\[\('weather', \['city'\]\)\]$`,
	"langchain_embeddings":        `^\[576, 576\]$`,
	"langchain_model":             `^OpenAIModelNotFoundError `,
	"langchain_too_long":          `^OpenAIContextOverflowError `,
	"langchain_busy":              `^1$`,
	"pydantic_chat":               `^\('str', True\)$`,
	"pydantic_streamed":           `^True$`,
	"pydantic_form_by_call":       `^City$`,
	"pydantic_form":               `^City$`,
	"pydantic_response":           `^City$`,
	"pydantic_model":              `^ModelNotFoundError `,
	"pydantic_too_long":           `^ModelContextWindowExceededError `,
	"pydantic_busy":               `^str$`,
	"agents_chat":                 `^str$`,
	"agents_response":             `^str$`,
	"agents_response_streamed":    `^\('response\.created', True, 'str'\)$`,
	"agents_tool":                 `^\('sunny', 1\)$`,
	"agents_form":                 `^City$`,
	"agents_model":                `^NotFoundError `,
	"agents_busy":                 `^str$`,
	"llm_chat":                    `^\(True, 3\)$`,
	"llm_streamed":                `^True$`,
	"llm_form":                    `^\['city'\]$`,
	"llm_tools":                   `^True$`,
	"llm_too_long":                `^BadRequestError .* 400 .*maximum context length`,
}

// older are the rows of the second version of OpenAI's client, and of libraries over it.
var older = map[string]string{
	"chat":                    `^\('length', 3\)$`,
	"chat_parsed":             `^City$`,
	"response_streamed":       `^response\.incomplete$`,
	"input_tokens":            `^\('response\.input_tokens', True\)$`,
	"instructor_tools":        `^City$`,
	"instructor_tools_strict": `^City$`,
	"instructor_form":         `^City$`,
	"instructor_partial":      `^\(True, True\)$`,
	"instructor_responses":    `^City$`,
	"instructor_model":        `^InstructorRetryException .* 404 `,
	"instructor_busy":         `^City$`,
	"llama_index_chat":        `^\('length', True\)$`,
	"llama_index_streamed":    `^True$`,
	"llama_index_complete":    `^True$`,
	"llama_index_tool":        `^\[\('weather', \['city'\]\)\]$`,
	"llama_index_form":        `^City$`,
	"llama_index_form_native": `^City$`,
	"llama_index_embeddings":  `^\[576, 576\]$`,
	"llama_index_model":       `^NotFoundError .* 404 `,
	"llama_index_too_long":    `^BadRequestError .* 400 .*context_length_exceeded`,
	"llama_index_busy":        `^True$`,
}

// node are the rows of the Node clients.
var node = map[string]string{
	"openai chat streamed":          `^\["length","string"\]$`,
	"openai tool":                   `^\["tool_calls","weather"\]$`,
	"openai tool that is not there": `^BadRequestError 400 tool_choice\.function\.name `,
	"openai embeddings":             `^576$`,
	"openai response streamed":      `^\["response\.created","response\.incomplete"\]$`,
	"openai response helper":        `^\["incomplete","max_output_tokens"\]$`,
	"openai echo":                   `^BadRequestError 400 echo `,
	"anthropic message":             `^\["message","max_tokens","msg_","string"\]$`,
	"anthropic streamed":            `^\["max_tokens","text"\]$`,
	"anthropic forced":              `^\["tool_use","weather"\]$`,
	"ai response":                   `^\["length",3\]$`,
	"ai response streamed":          `^\["length",true\]$`,
	"ai chat streamed":              `^\["length",true\]$`,
	"ai embedding":                  `^576$`,
}

// load are the rows of what measures servers: of the requests, how many went well and how many
// did not, and of the good ones the tokens and whether prompts and times are there.
var load = map[string]string{
	"guidellm_chat":        `^\(6, 0, \[5\], True\)$`,
	"guidellm_completions": `^\(6, 0, \[5\], True\)$`,
	"guidellm_model":       `^ValueError Model nobody not found in available models`,
}

// run is a script, and what its rows are.
type run struct {
	name        string
	rows        map[string]string
	environment string // the folder of clients
	script      string
}

// TestClients runs all rows.
func TestClients(t *testing.T) {
	m := rig.SharedMesh(t)
	runAll(t, startRecorder(t, m.URL(t, "")), []run{
		{"python", python, "python", "rows.py"},
		{"frameworks", frameworks, "python", "frameworks.py"},
		{"older", older, "older", "older.py"},
		{"load", load, "load", "load.py"},
		{"node", node, "node", "rows.mjs"},
	})
}

// runAll runs scripts through a recorder, and holds every answer and event that came against
// the published description of its API. Some kinds of answers need not hold, or come.
func runAll(t *testing.T, r *recorder, runs []run, but ...string) {
	t.Run("rows", func(t *testing.T) {
		for _, run := range runs {
			t.Run(run.name, func(t *testing.T) {
				t.Parallel()
				interpreter := "node"
				if run.environment != "node" {
					interpreter = pythonPath(run.environment)
				}
				check(t, run.rows, interpreter, filepath.Join("testdata", run.script), r.url, rig.Model)
			})
		}
	})
	t.Run("as described", func(t *testing.T) { r.described(t, but...) })
}

// TestBrokenStream kills the backends under a stream that nobody continues, being bound
// to a grammar: the client raises the API's error, or returns the event that says so.
func TestBrokenStream(t *testing.T) {
	for api, want := range map[string]string{
		"chat": "^APIError .*backend", "responses": "^(APIError .*backend|ended response.failed)", "messages": "^API(Status)?Error .*backend",
	} {
		t.Run(api, func(t *testing.T) {
			m := rig.SharedMesh(t)
			cmd := exec.CommandContext(t.Context(), pythonPath("python"), "testdata/broken.py", m.URL(t, ""), rig.Model, api)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			if !lines.Scan() || lines.Text() != "begun" {
				t.Fatalf("%q, want a stream that has begun", lines.Text())
			}
			r := m.Replicas(t)
			for _, node := range []string{r.Whole, r.Head} {
				if err := unix.Kill(m.Process(t, "backend@"+node).PID, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			lines.Scan()
			if got := lines.Text(); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("%q, want %s", got, want)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// pythonPath is the interpreter of an environment with clients.
func pythonPath(environment string) string {
	return filepath.Join(rig.Cache(), "clients", environment, "bin", "python")
}

// check runs a script, and compares the rows that it prints.
func check(t *testing.T, want map[string]string, command ...string) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*rig.StartLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &stdout, &stderr, append(os.Environ(), "CLIENTS="+filepath.Join(rig.Cache(), "clients", "node"))
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v; run `make test-clients`\n%s", command, err, stderr.String())
	}
	got := rig.Decode[map[string]string](t, stdout.Bytes())
	t.Logf("figure: %d rows after %s", len(got), time.Since(began).Round(time.Second))
	for name, pattern := range want {
		if !regexp.MustCompile(pattern).MatchString(got[name]) {
			t.Errorf("%s: %s, want %s", name, got[name], pattern)
		}
	}
	for name, row := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s, and nobody says what it should be", name, row)
		}
	}
}
