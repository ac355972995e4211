package setup

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/progress"
)

// installer installs parts into a cache whose lock is held.
type installer struct {
	cache    string
	tmp      string // below the cache, of this run alone
	python   Python
	compiler Compiler
	show     *progress.Progress
}

// install fetches p's archives, builds its folder aside and moves it in. The
// stamp comes last: without it nothing counts as installed.
func (i installer) install(ctx context.Context, p part) error {
	files := make([]string, len(p.Archives))
	g, fetching := errgroup.WithContext(ctx)
	for n, a := range p.Archives {
		g.Go(func() (err error) {
			files[n], err = i.fetch(fetching, a)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(i.tmp, "part-")
	if err != nil {
		return err
	}
	s, err := i.assemble(ctx, p, files, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	if err := s.move(dir, filepath.Join(i.cache, p.Folder)); err != nil {
		return err
	}
	if err := s.write(i.cache, p); err != nil {
		return err
	}
	for _, f := range files {
		if err := os.RemoveAll(filepath.Dir(f)); err != nil {
			return err
		}
	}
	return nil
}

// assemble makes p's folder in dir and returns its stamp.
func (i installer) assemble(ctx context.Context, p part, files []string, dir string) (stamp, error) {
	t := i.show.Begin("unpack "+p.Name, 0, nil)
	for n, a := range p.Archives {
		if err := unpack(ctx, a, files[n], dir); err != nil {
			return stamp{}, err
		}
	}
	i.show.End(t)
	if p.Plugin {
		if err := i.compile(ctx, p, dir); err != nil {
			return stamp{}, err
		}
	}
	s := stamp{Pin: p.pin()}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := newStamped(ctx, dir, name)
		s.Files = append(s.Files, f)
		return err
	})
	if err != nil {
		return stamp{}, err
	}
	// Pinned files first: a fault of the model says more than one of its licence.
	slices.SortStableFunc(s.Files, func(a, b stamped) int {
		return cmp.Compare(len(p.Sums[b.Name]), len(p.Sums[a.Name]))
	})
	return s, s.pinned(p)
}

// newStamped describes the file name below dir.
func newStamped(ctx context.Context, dir, name string) (stamped, error) {
	rel, err := filepath.Rel(dir, name)
	if err != nil {
		return stamped{}, err
	}
	st, err := os.Stat(name)
	if err != nil {
		return stamped{}, err
	}
	sum, err := hashFile(ctx, name)
	return stamped{Name: rel, SHA256: sum, Size: st.Size(), Mtime: st.ModTime()}, err
}

// pinned says which of p's pinned files isn't there as it must be.
func (s stamp) pinned(p part) error {
	got := map[string]string{} // SHA-256 by name
	for _, f := range s.Files {
		got[f.Name] = f.SHA256
	}
	for name, want := range p.Sums {
		if got[name] != want {
			return hint(mismatch(name, want, got[name]), untrustedHint)
		}
	}
	return nil
}

// move puts the stamped files from dir to their final place. It goes file by
// file: what else a user put into the folder stays.
func (s stamp) move(dir, folder string) error {
	for _, f := range s.Files {
		to := filepath.Join(folder, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, f.Name), to); err != nil {
			return err
		}
	}
	return nil
}
