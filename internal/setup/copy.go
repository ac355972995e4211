package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"millrace.dev/millrace/internal/progress"
	"millrace.dev/millrace/internal/regular"
)

// Copy makes the file to the same as from, and reports whether it wrote it: a file with
// the same hash stays as it is. A reader of to sees the old file or the new one, whole;
// several may copy at once, and what a killed one left is removed by the next.
func Copy(ctx context.Context, from, to string) (bool, error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, explainCopy(err, to)
	}
	unlock, err := Lock(ctx, filepath.Join(filepath.Dir(to), ".copy.lock"), "another set-up that uses this cache", progress.New(io.Discard, who))
	if err != nil {
		return false, explainCopy(err, to)
	}
	defer unlock()
	want, err := hashFile(ctx, from)
	if err != nil {
		return false, err
	}
	have, err := hashFile(ctx, to)
	if err == nil && have == want {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, explainCopy(err, to)
	}
	return true, explainCopy(replace(ctx, from, to, want), to)
}

// replace writes from, whose SHA-256 is sum, beside to and moves it there.
func replace(ctx context.Context, from, to, sum string) error {
	pattern := "." + filepath.Base(to) + ".new-*"
	left, err := filepath.Glob(filepath.Join(filepath.Dir(to), pattern))
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	in, err := regular.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), pattern)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // gone already if all went well
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, h), contextReader{ctx, in})
	if err := errors.Join(err, out.Chmod(0o644), out.Sync(), out.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return mismatch(from, sum, got) // it was changed meanwhile
	}
	return os.Rename(out.Name(), to)
}

// explainCopy adds the way out to errors of the file system that holds to.
func explainCopy(err error, to string) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint(fmt.Errorf("%s: %w", to, err), "free some space there, or mount a larger volume")
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return hint(fmt.Errorf("%s: %w", to, err), "give the folder to this user, in a Pod by fsGroup or by the volume's own rights")
	}
	return err
}
