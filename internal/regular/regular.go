// Package regular reads files that somebody else names and may change while a program
// runs: configuration, the fleet, keys, certificates.
//
// Called by whoever reads such a file, and by stamp; Replace is for files of ours that others
// read meanwhile. Its one rule: nobody waits for a file.
// Only regular files are read, since a pipe or a device may have no end, and what a file
// system does not answer in time (a mount whose server has gone) is an error, and stays
// one until it does.
package regular

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// Patience is how long a file system may take for an answer.
const Patience = 2 * time.Second

// Errors of files that are not read.
var (
	// ErrKind says that a file is none with a content and an end.
	ErrKind = errors.New("not a regular file")
	// ErrLarge says that a file is larger than who reads it takes.
	ErrLarge = errors.New("too large")
	// ErrSlow says that the file system does not answer.
	ErrSlow = errors.New("the file system does not answer")
)

// Read returns the content of the regular file at path, of at most so many bytes.
func Read(path string, most int64) ([]byte, error) {
	return In(Patience, path, func() ([]byte, error) {
		f, err := Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, most+1))
		if err == nil && int64(len(b)) > most {
			err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w: more than %d bytes", ErrLarge, most)}
		}
		return b, err
	})
}

// Stat says what is at path.
func Stat(path string) (os.FileInfo, error) {
	return In(Patience, path, func() (os.FileInfo, error) { return os.Stat(path) })
}

// Open opens the regular file at path. It does not wait for a pipe's other end, but for
// the file system: see In.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: path, Err: ErrKind}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Check returns why the file at path is none that can be read, or can't be had now.
func Check(path string) error {
	_, err := In(Patience, path, func() (struct{}, error) {
		f, err := Open(path)
		if err == nil {
			err = f.Close()
		}
		return struct{}{}, err
	})
	return err
}

// Append opens the regular file at path to be written at its end; there may be none yet. flags
// are more of os.OpenFile's.
func Append(path string, flags int, perm os.FileMode) (*os.File, error) {
	return OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|flags, perm)
}

// Create opens the regular file at path to be written from its beginning, and empties it.
func Create(path string) (*os.File, error) {
	return OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
}

// Write makes text the content of the regular file at path.
func Write(path string, text []byte, perm os.FileMode) error {
	f, err := OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// OpenFile is os.OpenFile for regular files, to write to them.
func OpenFile(path string, flags int, perm os.FileMode) (*os.File, error) {
	return In(Patience, path, func() (*os.File, error) {
		f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, perm)
		if errors.Is(err, syscall.ENXIO) { // a pipe that nobody reads
			return nil, &fs.PathError{Op: "write", Path: path, Err: ErrKind}
		}
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			f.Close()
			return nil, errors.Join(err, &fs.PathError{Op: "write", Path: path, Err: ErrKind})
		}
		return f, nil
	})
}

// stuck is by path what the file system has not answered yet.
var stuck sync.Map

// In is Until that nothing ends.
func In[T any](wait time.Duration, path string, do func() (T, error)) (T, error) {
	return Until(context.Background(), wait, path, do)
}

// Until does what takes the file system an answer about path, and returns ErrSlow if that
// takes longer than wait, or until ctx ends. It is then left alone with it: until it has
// its answer, all else about the path is ErrSlow at once, so that no more than one waits.
func Until[T any](ctx context.Context, wait time.Duration, path string, do func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	var none T
	slow := &fs.PathError{Op: "read", Path: path, Err: ErrSlow}
	if _, is := stuck.Load(path); is {
		return none, slow
	}
	got := make(chan answer, 1)
	go func() {
		v, err := do()
		got <- answer{v, err}
		stuck.Delete(path)
	}()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case a := <-got:
		return a.v, a.err
	case <-ctx.Done():
	case <-t.C:
	}
	stuck.Store(path, nil)
	select {
	case a := <-got: // in that very moment
		stuck.Delete(path)
		return a.v, a.err
	default:
		return none, slow
	}
}
