package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/internal/regular"
)

// lockName is the file whose locks say that `millrace up` runs in the folder, and that it
// can't write the state: a lock takes no room on the disk. The kernel drops them with the
// process, however it ends.
const lockName = "lock"

// The bytes of the file that are locked.
const (
	runsByte = iota
	staleByte
)

// byteLock is a lock of one byte, or the end of one.
func byteLock(typ int16, at int64) *unix.Flock_t { return &unix.Flock_t{Type: typ, Start: at, Len: 1} }

// openLock opens the file of a folder.
func openLock(dir string) (*os.File, error) {
	return regular.OpenFile(LockFile(dir), os.O_RDWR|os.O_CREATE, 0o644)
}

// LockFile is the path of that file in the folder of a mesh.
func LockFile(dir string) string { return filepath.Join(dir, lockName) }

// ErrRunning is returned by Lock when another mesh runs in the folder.
var ErrRunning = errors.New("a mesh runs here already")

// Lock takes the folder for this process until the returned file is closed. The
// lock belongs to the open file, so that it can be asked for without taking it.
func Lock(dir string) (*os.File, error) {
	f, err := openLock(dir)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, byteLock(unix.F_WRLCK, runsByte))
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = ErrRunning
	}
	return nil, fmt.Errorf("%s: %w", dir, err)
}

// Locked reports whether a mesh runs in dir.
func Locked(dir string) bool { return isLocked(dir, runsByte) }

// marked reports whether the mesh that runs in dir can't write its state.
func marked(dir string) bool { return isLocked(dir, staleByte) }

func isLocked(dir string, at int64) bool {
	f, err := regular.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer f.Close()
	lk := byteLock(unix.F_WRLCK, at)
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, lk)
	return err == nil && lk.Type != unix.F_UNLCK
}

// mark says by the lock file whether the state can't be written.
func mark(f *os.File, stale bool) error {
	typ := int16(unix.F_UNLCK)
	if stale {
		typ = unix.F_WRLCK
	}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, byteLock(typ, staleByte))
}
