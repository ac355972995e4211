package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// prefix begins the names of clusters' folders, and of their control groups.
const prefix = "millrace-kube-"

// lockFolder makes a cluster's folder, a new one if the name is empty, and locks it
// until the file is closed or this process ends, however it does.
func lockFolder(dir *string) (*os.File, error) {
	var err error
	if *dir == "" {
		*dir, err = os.MkdirTemp("", prefix)
	} else if err = os.MkdirAll(*dir, 0o755); err == nil {
		*dir, err = filepath.Abs(*dir)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(*dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is another cluster's: %w", *dir, err)
	}
	return f, nil
}

// sweep removes what clusters left whose process was killed: folders and control
// groups. All else of theirs has ended with the process.
func sweep() error {
	folders, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range folders {
		f, err := lockFolder(&dir)
		if err != nil {
			continue // it lives
		}
		groups, _ := filepath.Glob(filepath.Join(cgroups, "*", filepath.Base(dir)+"-*"))
		for _, g := range groups {
			errs = append(errs, removeCgroup(filepath.Base(g)))
		}
		errs = append(errs, os.RemoveAll(dir), f.Close())
	}
	return errors.Join(errs...)
}
