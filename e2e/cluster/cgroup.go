package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cgroups is where the machine's control groups are.
const cgroups = "/sys/fs/cgroup"

// hierarchies returns the folders of all hierarchies: one, or one for each controller
// of version 1.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); err == nil {
		return []string{cgroups}, nil
	}
	names, err := filepath.Glob(filepath.Join(cgroups, "*", "cgroup.procs"))
	if err != nil || len(names) == 0 {
		return nil, errors.New("no control groups in " + cgroups)
	}
	for i := range names {
		names[i] = filepath.Dir(names[i])
	}
	return names, nil
}

// makeCgroup makes a group below the root of every hierarchy, for kubelet to fill.
func makeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := os.MkdirAll(filepath.Join(h, name), 0o755); err != nil {
			return err
		}
		// A new group of version 1 has no CPUs until it is given some; one of
		// version 2 has no controllers.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(h, file)); err == nil && len(all) > 1 {
				if err := os.WriteFile(filepath.Join(h, name, file), b, 0o644); err != nil {
					return err
				}
			}
		}
		if b, err := os.ReadFile(filepath.Join(h, "cgroup.controllers")); err == nil && len(all) == 1 {
			on := "+" + strings.Join(strings.Fields(string(b)), " +")
			for _, dir := range []string{h, filepath.Join(h, name)} {
				if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(on), 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// removeCgroup removes a group with all below it, once its processes have ended.
func removeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(h, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
