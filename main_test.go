package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"millrace.dev/millrace/internal/program"
)

func call(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, files{in: strings.NewReader(""), out: &out, err: &out})
	return out.String(), err
}

func TestBadCommandLines(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{name: "no command", want: "a command is missing"},
		{name: "unknown command", args: []string{"start"}, want: `unknown command "start"`},
		{name: "mistyped command", args: []string{"stauts"}, want: `unknown command "stauts"; did you mean status?`},
		{name: "mistyped flag", args: []string{"up", "-lisen", ":0"}, want: "did you mean -listen?"},
		{name: "unknown flag", args: []string{"up", "-colour", "red"}, want: "-colour"},
		{name: "a model that nobody knows", args: []string{"up", "-check", "-model", "smollm3"}, want: `no model is called "smollm3"`},
		{name: "two models of one name", args: []string{"up", "-check", "-model", "smollm2", "-model", "smollm2=./x.gguf"}, want: "would both be called smollm2"},
		{name: "a mirror that is none", args: []string{"models", "list", "-mirror", "hub.example.org"}, want: "mirror: no URL"},
		{name: "models of nothing", args: []string{"models", "pull"}, want: "must be list, pull NAME or rm NAME"},
		{name: "models to nowhere", args: []string{"models", "push", "x"}, want: "must be list, pull NAME or rm NAME"},
		{name: "no model to remove", args: []string{"models", "rm", "x", "-cache", "nowhere"}, want: `no model "x" is kept here`},
		{name: "argument", args: []string{"up", "now"}, want: `"now"`},
		{name: "bad capacity", args: []string{"up", "-capacity", "node-a"}, want: "NODE=TOKENS_PER_SECOND"},
		{name: "nowhere to install to", args: []string{"install-models"}, want: "-to is missing"},
		{name: "identity of nobody", args: []string{"identity", "-check", "-roles", "root"}, want: `-roles: role "root"; must be one of`},
		{name: "an authority in plain text", args: []string{"identity", "-roles", "envoy", "-authority", "http://xds:7102"}, want: `-authority: "http://xds:7102"; must be https://`},
		{name: "half an authority", args: []string{"identity", "-roles", "xds", "-ca-key", "k"}, want: "-ca-cert and -ca-key; must be given both"},
		{name: "two authorities", args: []string{"identity", "-roles", "xds", "-ca-cert", "c", "-ca-key", "k", "-authority", "https://xds:7102"}, want: "give exactly one of them"},
		{name: "no node to drain", args: []string{"drain"}, want: "drain: NODE is missing"},
		{name: "two nodes to drain", args: []string{"drain", "node-a", "node-b"}, want: `unexpected argument "node-b"`},
		{name: "a wait that is none", args: []string{"undrain", "node-a", "-timeout", "-1s"}, want: "-timeout -1s; must be ≥ 0"},
		{name: "a word that was mistyped", args: []string{"models", "lst"}, want: `unknown "lst", did you mean list?`},
		{name: "a duration that is none", args: []string{"drain", "node-a", "-timeout", "1y"}, want: `invalid value "1y" for flag -timeout; must be a duration such as`},
		{name: "a number that is none", args: []string{"up", "-nodes", "many"}, want: `invalid value "many" for flag -nodes; must be a whole number`},
		{name: "a size that is none", args: []string{"up", "-snapshots", "much"}, want: "must be a size such as"},
		{name: "a switch that is none", args: []string{"up", "-d=perhaps"}, want: "must be true or false"},
		{name: "a folder that is a device", args: []string{"up", "-check", "-dir", "/dev/null"}, want: "-dir: /dev/null: a file; must be a folder"},
		{name: "a folder in a device", args: []string{"up", "-check", "-dir", "/dev/null/a/b"}, want: "-dir: stat /dev/null/a/b: not a directory"},
		{name: "bad address", args: []string{"up", "-check", "-listen", "x"}, want: `-listen "x"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := call(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != program.ExitUsage {
				t.Errorf("run(%q) = %v (exit %d), want %q (exit 2)", tt.args, err, program.ExitCode(err), tt.want)
			}
		})
	}
}

// TestAddresses takes what people write for an address, and says what is wrong with others.
func TestAddresses(t *testing.T) {
	for listen, wrong := range map[string]string{
		":0": "", "localhost:10000": "", "[::1]:1": "", "0.0.0.0:80": "", "127.0.0.1:99999": "0 to 65535", "x": "missing port", "127.0.0.1:http": "0 to 65535",
	} {
		_, err := call(t, "up", "-check", "-listen", listen, "-dir", t.TempDir())
		if (err != nil) != (wrong != "") || err != nil && !strings.Contains(err.Error(), wrong) {
			t.Errorf("-listen %s: %v, want %q", listen, err, wrong)
		}
	}
}

// TestFailedUpLeavesNothing has one that can't begin, in folders that are there and not.
func TestFailedUpLeavesNothing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	there := t.TempDir()
	for _, dir := range []string{there, filepath.Join(there, "new", "deep")} {
		if _, err := call(t, "up", "-listen", ln.Addr().String(), "-dir", dir); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("up = %v, want that the address is in use", err)
		}
		if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", there, left, err)
		}
	}
}

// TestInterruptedSetUp says how to continue, with the code that shells give SIGINT.
func TestInterruptedSetUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	std := files{in: strings.NewReader(""), out: io.Discard, err: io.Discard}
	err := run(ctx, []string{"setup", "-cache", t.TempDir()}, std)
	if program.ExitCode(err) != program.ExitInterrupted || !strings.Contains(err.Error(), "interrupted; run again") {
		t.Errorf("setup = %v (exit %d), want 130", err, program.ExitCode(err))
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out, err := call(t, "completion", shell)
		if err != nil || !strings.Contains(out, "explain") || !strings.Contains(out, "listen") {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
	if _, err := call(t, "completion", "tcsh"); program.ExitCode(err) != program.ExitUsage {
		t.Errorf("tcsh: %v", err)
	}
	script, err := call(t, "completion", "bash")
	if err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command("bash", "-c", script+"\nCOMP_WORDS=(millrace logs -); COMP_CWORD=2; _millrace; echo ${COMPREPLY[*]}").CombinedOutput()
	if err != nil || strings.TrimSpace(string(got)) != "-dir -f -n" {
		t.Errorf("completes to %s, %v", got, err)
	}
	got, err = exec.Command("bash", "-c", script+"\nCOMP_WORDS=(millrace models p); COMP_CWORD=2; _millrace; echo ${COMPREPLY[*]}").CombinedOutput()
	if err != nil || strings.TrimSpace(string(got)) != "pull" {
		t.Errorf("completes models p to %s, %v", got, err)
	}
}

func TestHelp(t *testing.T) {
	out, err := call(t, "help")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"up", "down", "logs", "status", "events", "drain", "undrain", "explain", "trace", "chat", "plan", "models", "check", "setup", "identity", "install-models", "completion"} {
		if !strings.Contains(out, "\n  "+command+" ") {
			t.Errorf("help has no %q", command)
		}
		if text, err := call(t, command, "-h"); !errors.Is(err, flag.ErrHelp) || !strings.Contains(text, "usage: millrace "+command) {
			t.Errorf("%s -h: %q, %v", command, text, err)
		}
	}
}

// TestUpCheckReadsWhatItNames: files that are not there, or are something else.
func TestUpCheckReadsWhatItNames(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	config := func(spec string) string {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte("apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: smollm2}\nspec: {"+spec+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.WriteFile(text, []byte("no GGUF"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
		code int
	}{
		{"no model", []string{"-model", "/nope.gguf"}, "/nope.gguf: no such file", program.ExitSetup},
		{"a model that is none", []string{"-model", text}, "-model: " + text + ": not a GGUF file", program.ExitSetup},
		{"no Envoy", []string{"-envoy", "/nope"}, "-envoy: stat /nope: no such file", program.ExitSetup},
		{"an Envoy that can't be run", []string{"-envoy", text}, "-envoy: " + text + ": not an executable file", program.ExitSetup},
		{"a llama-server that can't be run", []string{"-llama-server", text, "-rpc-server", text}, "-llama-server: " + text + ": not an executable file", program.ExitSetup},
		{"an environment without vLLM", []string{"-vllm", dir}, "-vllm: stat " + dir + "/bin/vllm: no such file", program.ExitUsage},
		{"no keys", []string{"-api-keys", "/nope"}, "-api-keys: open /nope: no such file", program.ExitUsage},
		{"no weights", []string{"-config", config("weights: /nope.gguf")}, "model smollm2: weights: stat /nope.gguf: no such file", program.ExitConfig},
		{"no tokenizer", []string{"-config", config("tokenizer: /nope.json")}, "model smollm2: tokenizer: open /nope.json: no such file", program.ExitConfig},
	} {
		out, err := call(t, append([]string{"up", "-check", "-dir", t.TempDir()}, tt.args...)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != tt.code {
			t.Errorf("%s: %q, %v (exit %d), want %q (exit %d)", tt.name, out, err, program.ExitCode(err), tt.want, tt.code)
		}
	}
}

// TestPlan: layouts are printed, and nothing starts.
func TestPlan(t *testing.T) {
	cache := t.TempDir()
	if _, err := call(t, "plan", "-cache", cache, "-dir", t.TempDir()); program.ExitCode(err) != program.ExitConfig || !strings.Contains(err.Error(), "plan: model smollm2: ") {
		t.Errorf("plan without the model: %v (exit %d)", err, program.ExitCode(err))
	}
	if _, err := call(t, "plan", "-nodes", "/nope"); program.ExitCode(err) != program.ExitConfig {
		t.Errorf("plan without the nodes: %v (exit %d)", err, program.ExitCode(err))
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) > 0 {
		t.Errorf("plan has written %v, %v", left, err)
	}
}

// TestModels lists what there is, and says of what is missing how to get it, before anything starts.
func TestModels(t *testing.T) {
	cache := t.TempDir()
	out, err := call(t, "models", "list", "-json", "-cache", cache, "-dir", t.TempDir())
	if err != nil || !strings.Contains(out, `"name": "smollm2"`) || !strings.Contains(out, `"state": "known"`) {
		t.Errorf("models list: %s, %v", out, err)
	}
	for name, code := range map[string]int{"org/repo:Q4_K_M": program.ExitSetup, "./none.gguf": program.ExitSetup, "https://h.example/m.gguf": 0} {
		if _, err := call(t, "up", "-check", "-cache", cache, "-model", name); program.ExitCode(err) != code {
			t.Errorf("up -check -model %s: %v, exit %d, want %d", name, err, program.ExitCode(err), code)
		}
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) > 0 {
		t.Errorf("-check has written %v, %v", left, err)
	}
}

func TestUpCheckStartsNothing(t *testing.T) {
	if out, err := call(t, "up", "-check"); err != nil || out != "millrace: flags and configuration are in order\n" {
		t.Errorf("up -check: %q, %v", out, err)
	}
}

// TestServiceUnit has what the unit of systemd runs be command lines that are in order.
func TestServiceUnit(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("manifests", "millrace.service"))
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(text)) {
		key, command, _ := strings.Cut(strings.TrimSpace(line), "=")
		if !strings.HasPrefix(key, "Exec") {
			continue
		}
		lines++
		args := strings.Fields(command)[1:]
		for i, a := range args {
			args[i] = strings.Replace(strings.Replace(a, "/etc/millrace", "manifests", 1), "/var/lib/millrace", t.TempDir(), 1)
		}
		if out, err := call(t, append(args, "-check")...); err != nil || !strings.Contains(out, "are in order") {
			t.Errorf("%s: %q, %v", line, out, err)
		}
	}
	if lines != 2 {
		t.Errorf("%d commands, want 2", lines)
	}
}
