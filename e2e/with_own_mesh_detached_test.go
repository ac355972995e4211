package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

// TestDetached brings a mesh up in the background, reads its logs, fails to bring up
// another one at its address, and ends it. Its folder has a blank in its name.
func TestDetached(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "my mesh")
	t.Cleanup(func() { _, _ = rig.Command(context.Background(), nil, "", "down", "-dir", dir) })
	up := rig.Millrace(t, "", "up", "-d", "-dir", dir, "-listen", "127.0.0.1:0", "-nodes", "1", "-cache", rig.Cache())
	if up.Code != 0 || !strings.Contains(up.Stdout, "ready http://") || !strings.Contains(up.Stdout, "end:  millrace down -dir '"+dir+"'") {
		t.Fatalf("up -d: exit code %d\n%s%s", up.Code, up.Stdout, up.Stderr)
	}
	at, _, _ := strings.Cut(up.Stdout[strings.Index(up.Stdout, "ready http://")+len("ready http://"):], "\n")
	if got := rig.Millrace(t, "Hi.", "chat", "-dir", dir, "-max-tokens", "2"); got.Code != 0 || got.Stdout == "" {
		t.Errorf("chat: exit code %d, %s%s", got.Code, got.Stdout, got.Stderr)
	}
	if got := rig.Millrace(t, "", "logs", "xds", "-dir", dir, "-n", "1000"); got.Code != 0 || !strings.Contains(got.Stdout, "msg=ready program=xds") {
		t.Errorf("logs xds: exit code %d, %s%s", got.Code, got.Stdout, got.Stderr)
	}
	if got := rig.Millrace(t, "", "logs", "-dir", dir); !strings.Contains(got.Stdout, "engine@node-a\n") || !strings.Contains(got.Stdout, "up\n") {
		t.Errorf("logs: %s%s", got.Stdout, got.Stderr)
	}
	again := rig.Millrace(t, "", "up", "-d", "-dir", filepath.Join(parent, "another"), "-listen", at, "-cache", rig.Cache())
	if again.Code != 5 || !strings.Contains(again.Stderr, "address already in use") {
		t.Errorf("a second mesh at the same address: exit code %d, %s%s", again.Code, again.Stdout, again.Stderr)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 1 {
		t.Errorf("the second mesh has left something: %v, %v", left, err)
	}
	pids := []int{}
	for _, p := range (&rig.Mesh{Dir: dir}).State(t).Processes {
		pids = append(pids, p.PID)
	}
	if got := rig.Millrace(t, "", "down", "-dir", dir); got.Code != 0 {
		t.Errorf("down: exit code %d, %s%s", got.Code, got.Stdout, got.Stderr)
	}
	for _, pid := range pids {
		if proc.Alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if got := rig.Millrace(t, "", "status", "-dir", dir); got.Code != 1 {
		t.Errorf("status: exit code %d, want 1: no mesh runs", got.Code)
	}
}
