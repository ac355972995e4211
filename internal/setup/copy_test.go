package setup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/obs"
)

// two returns a source with the text and a destination that isn't there.
func two(t *testing.T, text string) (from, to string) {
	t.Helper()
	from, to = filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "deep", "model.gguf")
	put(t, from, text)
	return from, to
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// names lists the folder of the file.
func names(t *testing.T, file string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestCopy(t *testing.T) {
	tests := []struct {
		name  string
		there string // what the destination holds; "": it isn't there
		wrote bool
	}{
		{name: "a new file", wrote: true},
		{name: "the same file", there: "weights"},
		{name: "another file", there: "older", wrote: true},
		{name: "a file of the same length", there: "WEIGHTS", wrote: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from, to := two(t, "weights")
			old := time.Unix(1, 0)
			if tt.there != "" {
				put(t, to, tt.there)
				if err := os.Chtimes(to, old, old); err != nil {
					t.Fatal(err)
				}
				// A copy that was killed half-way.
				put(t, filepath.Join(filepath.Dir(to), ".model.gguf.new-1"), "wei")
			}
			wrote, err := Copy(t.Context(), from, to)
			if err != nil || wrote != tt.wrote {
				t.Fatalf("Copy() = %v, %v; want %v", wrote, err, tt.wrote)
			}
			b, err := os.ReadFile(to)
			if err != nil || string(b) != "weights" {
				t.Errorf("%q, %v", b, err)
			}
			if st, err := os.Stat(to); err != nil || st.ModTime().Equal(old) == tt.wrote || st.Mode().Perm() != 0o644 {
				t.Errorf("%v of %v, %v; written: %v", st.Mode(), st.ModTime(), err, tt.wrote)
			}
			if got := names(t, to); tt.wrote && !cmp.Equal(got, []string{".copy.lock", "model.gguf"}) {
				t.Errorf("the folder has %q", got)
			}
		})
	}
}

func TestCopiesAtOnce(t *testing.T) {
	from, to := two(t, strings.Repeat("weights", 1<<16))
	var g errgroup.Group
	written := make(chan bool, 8)
	for range cap(written) {
		g.Go(func() error {
			wrote, err := Copy(t.Context(), from, to)
			written <- wrote
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range cap(written) {
		if <-written {
			n++
		}
	}
	if n != 1 {
		t.Errorf("written %d times, want once", n)
	}
}

func TestCopyFaults(t *testing.T) {
	from, to := two(t, "weights")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Copy(ctx, from, to); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy() of one that was cancelled: %v", err)
	}
	if got := names(t, to); !cmp.Equal(got, []string{".copy.lock"}) {
		t.Errorf("a cancelled copy left %q", got)
	}
	if _, err := Copy(t.Context(), from+"x", to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Copy() of nothing: %v", err)
	}
	// The memory file system of the kernel has no room for files.
	var h *obs.Hint
	if _, err := Copy(t.Context(), from, "/proc/x/model.gguf"); err == nil {
		t.Error("Copy() to where nothing can be written: no error")
	}
	if err := explainCopy(os.ErrPermission, to); !errors.As(err, &h) || !strings.Contains(h.Next, "fsGroup") {
		t.Errorf("explainCopy() = %v", err)
	}
}

func TestInventory(t *testing.T) {
	w := newWorld(t)
	if _, err := inventory(w.cache, w.parts); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("inventory of an empty cache: %v", err)
	}
	if err := w.ensure(); err != nil {
		t.Fatal(err)
	}
	got, err := inventory(w.cache, w.parts)
	if err != nil {
		t.Fatal(err)
	}
	want := Installed{
		Name: w.parts[0].Name, Folder: filepath.Join(w.cache, w.parts[0].Folder),
		Archives: []Archive{{Project: "gate", Version: "1", SHA256: w.parts[0].Archives[0].SHA256}},
		Files:    []File{{Name: "gate", SHA256: sum("#!gate")}},
	}
	if len(got) != len(w.parts) || !cmp.Equal(got[0], want) {
		t.Errorf("inventory: %s", cmp.Diff(want, got[0]))
	}
	w.parts[0].Archives[0].Version = "2"
	if _, err := inventory(w.cache, w.parts); err == nil || !strings.Contains(err.Error(), "differs from the pinned one") {
		t.Errorf("inventory of another pin: %v", err)
	}
}
