package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
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
			n := len(marked(m.dir))
			if want := 1 + len(m.state(t).Processes); n < want {
				t.Fatalf("%d processes run, want at least %d", n, want)
			}
			if err := m.end(tt.sig); err != nil {
				t.Fatal(err)
			}
			if got := exitCode(m.proc.Err()); got != tt.code {
				t.Errorf("exit code %d, want %d", got, tt.code)
			}
			if tt.code == 0 {
				checkDown(t, m)
			}
		})
	}
}

func exitCode(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// checkDown wants that the file of a mesh that ended in order claims nothing.
func checkDown(t *testing.T, m *mesh) {
	t.Helper()
	s := m.state(t)
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
	pause(t)
	m, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.abandon)
	waitFor(t, startLimit, "something is started", func() error {
		if len(marked(m.dir)) < 4 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := m.end(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := exitCode(m.proc.Err()); got != 0 {
		t.Errorf("exit code %d, want 0\n%s", got, m.out)
	}
}
