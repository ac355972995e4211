package e2e

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// TestStatusShowsTheFleet reads the table and its JSON form.
func TestStatusShowsTheFleet(t *testing.T) {
	m := shared(t)
	table := m.StatusTable(t)
	t.Logf("\n%s", table)
	for _, want := range []string{"node-a", "node-b", "node-c", "smollm2", "smollm2-0", "smollm2-1", "READY", "1000"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table has no %q", want)
		}
	}
	got := rig.Millrace(t, "", "status", "-dir", m.Dir, "-json")
	if got.Code != 0 || !json.Valid([]byte(got.Stdout)) {
		t.Fatalf("status -json: exit code %d, %s%s", got.Code, got.Stdout, got.Stderr)
	}
	for _, want := range []string{`"node-a"`, `"smollm2-1"`, `"weight"`} {
		if !strings.Contains(got.Stdout, want) {
			t.Errorf("status -json has no %s", want)
		}
	}
}

// TestPlanOfTheMesh reads the plan of what runs: all replicas have a place.
func TestPlanOfTheMesh(t *testing.T) {
	m := shared(t)
	got := rig.Millrace(t, "", "plan", "-dir", m.Dir, "-cache", rig.Cache())
	t.Logf("\n%s%s", got.Stdout, got.Stderr)
	for _, want := range []string{"smollm2: 30 layers, 92 MiB of weights", "spec: {replicas: 2", "what runs"} {
		if got.Code != 0 || !strings.Contains(got.Stdout, want) {
			t.Errorf("exit code %d; the plan has no %q", got.Code, want)
		}
	}
}

// TestStatusWithoutAMesh says so, and how to start one.
func TestStatusWithoutAMesh(t *testing.T) {
	got := rig.Millrace(t, "", "status", "-dir", t.TempDir())
	if got.Code != 1 || !strings.Contains(got.Stderr, "hint: ") {
		t.Errorf("exit code %d, %s; want 1 and a hint", got.Code, got.Stderr)
	}
}

// TestChatFromAScript talks to the mesh over standard input.
func TestChatFromAScript(t *testing.T) {
	m := shared(t)
	got := rig.Millrace(t, "Say hi.\nAnd again.\n", "chat", "-url", "http://"+m.State(t).Listen)
	t.Logf("\n%s%s", got.Stdout, got.Stderr)
	if got.Code != 0 {
		t.Errorf("exit code %d", got.Code)
	}
	both := strings.ToLower(got.Stdout + got.Stderr)
	for _, want := range []string{"node-", "cached", "ttft", "tok"} {
		if !strings.Contains(both, want) {
			t.Errorf("the chat shows no %q", want)
		}
	}
}

// TestCheckFindsAllInOrder runs the doctor on a machine that can run meshes.
func TestCheckFindsAllInOrder(t *testing.T) {
	got := rig.Millrace(t, "", "check", "-cache", rig.Cache())
	t.Logf("\n%s%s", got.Stdout, got.Stderr)
	if got.Code != 0 {
		t.Errorf("exit code %d", got.Code)
	}
	for _, want := range []string{"envoy", "python", "model"} {
		if !strings.Contains(strings.ToLower(got.Stdout), want) {
			t.Errorf("the doctor says nothing of %q", want)
		}
	}
}

// TestCheckFindsWhatIsMissing runs the doctor without python.
func TestCheckFindsWhatIsMissing(t *testing.T) {
	got := rig.MillraceEnv(t, []string{"PATH=" + t.TempDir()}, "", "check", "-cache", rig.Cache())
	t.Logf("\n%s%s", got.Stdout, got.Stderr)
	if both := got.Stdout + got.Stderr; got.Code != exitSetup || !strings.Contains(both, "python3") {
		t.Errorf("exit code %d, want %d and a word about python3", got.Code, exitSetup)
	}
}

// commandLine is a command of ours in a document: in a code span, or with its folder.
var commandLine = regexp.MustCompile("(?:`|\\bbin/)(millrace|extproc|xds|nodeagent|engine)((?: [^ `|#>\n]+)+)")

// flagName is a flag in a command line, or in what -h prints.
var flagName = regexp.MustCompile(`(?m)^\s*(-[a-z-]+)`)

// TestDocumentsNameCommandsThatExist holds each command and flag that a document shows
// against what the program's -h lists.
func TestDocumentsNameCommandsThatExist(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(rig.Root(), "*", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	help, found := map[string]string{}, 0
	for _, file := range append(files, filepath.Join(rig.Root(), "README.md")) {
		for _, m := range commandLine.FindAllStringSubmatch(rig.Read(t, file), -1) {
			command, words := []string{m[1]}, strings.Fields(m[2])
			if m[1] == "millrace" && words[0] != "-h" {
				command, words = append(command, words[0]), words[1:]
			}
			name := strings.Join(command, " ")
			if help[name] == "" {
				help[name] = helpOf(t, command)
			}
			found++
			for _, w := range words {
				flag := flagName.FindString(w)
				if flag != "" && flag != "-h" && !slices.Contains(flagName.FindAllString(help[name], -1), "  "+flag) {
					t.Errorf("%s: `%s`: %s has no flag %s", file, strings.TrimSpace(m[0]), name, flag)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("%d commands found in the documents, want far more", found)
	}
}

// helpOf returns what a command prints with -h.
func helpOf(t *testing.T, command []string) string {
	t.Helper()
	path, err := rig.Program(command[0])
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, append(command[1:], "-h")...).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "usage: ") {
		t.Errorf("%s -h: %v: %.200s", strings.Join(command, " "), err, out)
	}
	return string(out)
}
