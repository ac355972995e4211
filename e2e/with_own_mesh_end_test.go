package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// TestNothingIsLeft ends a mesh in each way that a mesh can end.
func TestNothingIsLeft(t *testing.T) {
	tests := []struct {
		name string
		sig  syscall.Signal
		code int // -1: ended by the signal
	}{
		{"after SIGTERM", syscall.SIGTERM, 0},
		{"after Ctrl-C", syscall.SIGINT, 0},
		{"after SIGKILL", syscall.SIGKILL, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := own(t)
			n := len(rig.Marked(m.Dir))
			if want := 1 + len(m.State(t).Processes); n < want {
				t.Fatalf("%d processes run, want at least %d", n, want)
			}
			if err := m.End(tt.sig); err != nil {
				t.Fatal(err)
			}
			if got := rig.ExitCode(m.Proc.Err()); got != tt.code {
				t.Errorf("exit code %d, want %d", got, tt.code)
			}
			if tt.code == 0 {
				checkDown(t, m)
			}
		})
	}
}

// checkDown wants that the file of a mesh that ended in order claims nothing.
func checkDown(t *testing.T, m *mesh) {
	t.Helper()
	s := m.State(t)
	if s.Ready {
		t.Error("state.json: ready is true")
	}
	for _, p := range s.Processes {
		if p.PID != 0 {
			t.Error(fmt.Errorf("state.json: %s has pid %d", p.Name, p.PID))
		}
	}
}

// TestNothingIsLeftWhileStarting ends a mesh before it is ready.
func TestNothingIsLeftWhileStarting(t *testing.T) {
	rig.PauseShared(t)
	m, err := rig.StartMesh(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Abandon)
	rig.Wait(t, rig.StartLimit, "something is started", func() error {
		s, err := m.ReadState() // set-up, before it, ends otherwise
		n := 0
		for _, pid := range s.PIDs() {
			n += min(pid, 1)
		}
		if err == nil && n < 4 {
			err = fmt.Errorf("%d processes", n)
		}
		return err
	})
	if err := m.End(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := rig.ExitCode(m.Proc.Err()); got != 0 {
		t.Errorf("exit code %d, want 0\n%s", got, m.Out)
	}
}
