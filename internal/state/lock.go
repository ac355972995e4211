package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockName is the file whose lock says that `millrace up` runs in the folder.
// The kernel drops the lock with the process, however it ends.
const lockName = "lock"

// LockFile is the path of that file in the folder of a mesh.
func LockFile(dir string) string { return filepath.Join(dir, lockName) }

// ErrRunning is returned by Lock when another mesh runs in the folder.
var ErrRunning = errors.New("a mesh runs here already")

// Lock takes the folder for this process until the returned file is closed. The
// lock belongs to the open file, so that it can be asked for without taking it.
func Lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
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
func Locked(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk)
	return err == nil && lk.Type != unix.F_UNLCK
}
