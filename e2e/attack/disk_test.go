package attack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

// diskSize is what a mesh of one node needs for its state and its first logs, and little more.
const diskSize = "size=4m"

// TestFullDisk fills the file system of a mesh's folder, and has processes of it start anew: the
// mesh serves, and `status` says that what it shows is not known to be true. So does a backend that is
// killed then: it starts again without room for its log. Where nothing may be mounted, a folder that
// can't be written to stands for it.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	full, free := func() error { return os.Chmod(dir, 0o500) }, func() error { return os.Chmod(dir, 0o700) }
	if err := syscall.Mount("none", dir, "tmpfs", 0, diskSize); err == nil {
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		full, free = func() error { return fill(filepath.Join(dir, "filler")) }, func() error { return os.Remove(filepath.Join(dir, "filler")) }
	} else if os.Geteuid() == 0 && !errors.Is(err, syscall.EPERM) {
		t.Fatal(err)
	}
	rig.PauseShared(t)
	m, err := rig.StartMesh(dir, "-nodes", "1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.End(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	if err := m.Ready(); err != nil {
		t.Fatal(err)
	}
	before, backend := m.Process(t, "extproc"), m.Process(t, "backend@node-a")
	if err := full(); err != nil {
		t.Fatal(err)
	}
	rig.Kill(t, before.PID)
	status := func() (string, error) {
		r, err := rig.Command(t.Context(), nil, "", "status", "-dir", dir, "-json")
		return r.Stdout + r.Stderr, err
	}
	stale := func(want bool) func() error {
		return func() error {
			text, err := status()
			if err == nil && strings.Contains(text, `"state-stale"`) != want {
				err = fmt.Errorf("status: %.600s", text)
			}
			return err
		}
	}
	rig.Wait(t, rig.BackLimit, "status says that it is out of date", stale(true))
	serves := func() error {
		a, err := rig.Post(t.Context(), m.URL(t, rig.ChatPath), rig.Ask(1, "Hi"))
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("status %d: %.200s", a.Status, a.Body)
		}
		return err
	}
	rig.Wait(t, rig.BackLimit, "the mesh serves", serves)
	rig.Kill(t, backend.PID)
	rig.Wait(t, rig.BackLimit, "the backend is gone", func() error {
		if proc.Alive(backend.PID) {
			return errors.New("it is alive")
		}
		return nil
	})
	rig.Wait(t, rig.BackLimit, "the mesh serves after its backend was killed", serves)
	if err := free(); err != nil {
		t.Fatal(err)
	}
	rig.Wait(t, rig.BackLimit, "status is true again", stale(false))
	rig.Wait(t, rig.BackLimit, "state.json has the new process", func() error { return m.Restarted(before) })
}

// fill makes a file that takes all the room there is.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 4096)
	for range 1 << 20 {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return errors.New("the file system is larger than it was made")
}
