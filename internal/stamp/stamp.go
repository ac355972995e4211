// Package stamp says whether files have changed since they were read.
//
// Called by whoever reads files again while it runs: configuration, fleet, keys,
// certificates. Its one rule: take the stamp before reading; what changes meanwhile
// then counts as changed, so that no content is missed. One stat of each file costs
// less than a thread that waits for the kernel's word, and sees what editors and
// Kubernetes do: a new file under the old name, links that are bent, folders of the
// network.
package stamp

import (
	"os"
	"slices"

	"millrace.dev/millrace/internal/regular"
)

// Files is one state of some files.
type Files []file

type file struct {
	name string
	info os.FileInfo // nil: it isn't there
}

// Of returns the state of the files now. An empty name is no file.
func Of(names ...string) Files {
	var all Files
	for _, name := range names {
		if name != "" {
			info, _ := regular.Stat(name)
			all = append(all, file{name, info})
		}
	}
	return all
}

// Now returns the state of the same files now.
func (f Files) Now() Files {
	names := make([]string, len(f))
	for i, old := range f {
		names[i] = old.name
	}
	return Of(names...)
}

// Changed reports whether one of the files has changed since.
func (f Files) Changed() bool {
	return slices.ContainsFunc(f, func(old file) bool {
		info, _ := regular.Stat(old.name)
		return !same(info, old.info)
	})
}

// Agree reports whether the files that both have are the same.
func (f Files) Agree(o Files) bool {
	for _, a := range f {
		for _, b := range o {
			if a.name == b.name && !same(a.info, b.info) {
				return false
			}
		}
	}
	return true
}

// same reports whether two states of a file are one. A file that was put in place of
// another may be as old and as large.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
