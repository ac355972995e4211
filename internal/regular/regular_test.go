package regular

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "target"} {
		if err := syscall.Mkfifo(path(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"link": "file", "pipelink": "target", "zero": "/dev/zero", "loop": "loop"} {
		if err := os.Symlink(to, path(link)); err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := os.Create(path("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sparse.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	sparse.Close()
	for name, want := range map[string]error{
		"file": nil, "link": nil, "pipe": ErrKind, "pipelink": ErrKind, "zero": ErrKind, ".": ErrKind, "sparse": ErrLarge,
		"loop": syscall.ELOOP, "nothing": os.ErrNotExist,
	} {
		b, err := Read(path(name), 7)
		if !errors.Is(err, want) || want == nil && string(b) != "content" {
			t.Errorf("%s: %q, %v; want %v", name, b, err, want)
		}
	}
}

// TestAFileSystemThatDoesNotAnswer stands for a mount whose server has gone: one waits
// for it, others don't.
func TestAFileSystemThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mount, waits := make(chan struct{}), 0
		read := func() (int, error) { waits++; <-mount; return 1, nil }
		for i := range 3 {
			began := time.Now()
			_, err := In(Patience, "/mnt/x", read)
			if took := time.Since(began); !errors.Is(err, ErrSlow) || i == 0 && took != Patience || i > 0 && took != 0 {
				t.Errorf("%v after %v", err, took)
			}
		}
		if _, err := In(Patience, "/mnt/y", func() (int, error) { return 2, nil }); err != nil {
			t.Errorf("another path: %v", err)
		}
		close(mount)
		synctest.Wait()
		if v, err := In(Patience, "/mnt/x", read); v != 1 || err != nil || waits != 2 {
			t.Errorf("when it answers again: %v, %v; %d have waited", v, err, waits)
		}
	})
}

// TestWrite puts pipes, devices and folders where files are to be written.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, to := range map[string]string{"link": "file", "zero": "/dev/zero", "pipelink": "pipe"} {
		if err := os.Symlink(to, path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(syscall.Mkfifo(path("pipe"), 0o600), os.WriteFile(path("old"), []byte("longer than the new one"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"new": nil, "old": nil, "link": nil, "pipe": ErrKind, "pipelink": ErrKind, "zero": ErrKind, ".": syscall.EISDIR} {
		err := Write(path(name), []byte("text"), 0o600)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", name, err, want)
		}
		if b, _ := Read(path(name), 100); want == nil && string(b) != "text" {
			t.Errorf("%s: %q", name, b)
		}
	}
}
