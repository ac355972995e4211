package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestStatusShowsTheFleet reads the table and its JSON form.
func TestStatusShowsTheFleet(t *testing.T) {
	m := shared(t)
	table := m.statusTable(t)
	t.Logf("\n%s", table)
	for _, want := range []string{"node-a", "node-b", "node-c", "smollm2", "smollm2-0", "smollm2-1", "READY", "1000"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table has no %q", want)
		}
	}
	got := millrace(t, "", "status", "-dir", m.dir, "-json")
	if got.code != 0 || !json.Valid([]byte(got.stdout)) {
		t.Fatalf("status -json: exit code %d, %s%s", got.code, got.stdout, got.stderr)
	}
	for _, want := range []string{`"node-a"`, `"smollm2-1"`, `"weight"`} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("status -json has no %s", want)
		}
	}
}

// TestStatusWithoutAMesh says so, and how to start one.
func TestStatusWithoutAMesh(t *testing.T) {
	got := millrace(t, "", "status", "-dir", t.TempDir())
	if got.code != 1 || !strings.Contains(got.stderr, "hint: ") {
		t.Errorf("exit code %d, %s; want 1 and a hint", got.code, got.stderr)
	}
}

// TestChatFromAScript talks to the mesh over standard input.
func TestChatFromAScript(t *testing.T) {
	m := shared(t)
	got := millrace(t, "Say hi.\nAnd again.\n", "chat", "-url", "http://"+m.state(t).Listen)
	t.Logf("\n%s%s", got.stdout, got.stderr)
	if got.code != 0 {
		t.Errorf("exit code %d", got.code)
	}
	both := strings.ToLower(got.stdout + got.stderr)
	for _, want := range []string{"node-", "cached", "ttft", "tok"} {
		if !strings.Contains(both, want) {
			t.Errorf("the chat shows no %q", want)
		}
	}
}

// TestCheckFindsAllInOrder runs the doctor on a machine that can run meshes.
func TestCheckFindsAllInOrder(t *testing.T) {
	got := millrace(t, "", "check", "-cache", cache())
	t.Logf("\n%s%s", got.stdout, got.stderr)
	if got.code != 0 {
		t.Errorf("exit code %d", got.code)
	}
	for _, want := range []string{"envoy", "python", "model"} {
		if !strings.Contains(strings.ToLower(got.stdout), want) {
			t.Errorf("the doctor says nothing of %q", want)
		}
	}
}

// TestCheckFindsWhatIsMissing runs the doctor without python.
func TestCheckFindsWhatIsMissing(t *testing.T) {
	got := runWith(t, []string{"PATH=" + t.TempDir()}, "", "check", "-cache", cache())
	t.Logf("\n%s%s", got.stdout, got.stderr)
	if both := got.stdout + got.stderr; got.code != exitSetup || !strings.Contains(both, "python3") {
		t.Errorf("exit code %d, want %d and a word about python3", got.code, exitSetup)
	}
}
