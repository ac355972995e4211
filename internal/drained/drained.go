// Package drained is DIR/drained.json: which nodes of a mesh a person has drained.
//
// Written by `millrace drain` and `millrace undrain`, followed by xds. It is desired state, so
// it outlives every program of the mesh and `millrace up` itself. Its one rule: a reader sees
// it whole, as it was before a change or after.
package drained

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
)

// Node is a node that is drained.
type Node struct {
	Name string `json:"node"`
	// Since is when somebody asked for it.
	Since time.Time `json:"since"`
}

// content is what the file holds.
type content struct {
	Drained []Node `json:"drained"`
}

// In is the path of the file in the folder of a mesh.
func In(dir string) string { return filepath.Join(dir, "drained.json") }

// most bounds the file, in bytes.
const most = 1 << 20

// Read returns the nodes that are drained, by name; none where there is no file.
func Read(path string) ([]Node, error) {
	text, err := regular.Read(path, most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var c content
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, &obs.Hint{Err: fmt.Errorf("%s: %w", path, err), Next: "correct the file, or remove it, then no node is drained: drain again with millrace drain"}
	}
	return c.Drained, nil
}

// Names returns the nodes' names.
func Names(all []Node) []string {
	names := make([]string, len(all))
	for i, n := range all {
		names[i] = n.Name
	}
	return names
}

// Set has the node drained from now on, or not any more. It reports whether that changes
// anything. Of several who do so at a time each waits for the one before.
func Set(path, node string, drain bool, now time.Time) (changed bool, err error) {
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd) // and unlocks it
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return false, &fs.PathError{Op: "lock", Path: dir, Err: err}
	}
	all, err := Read(path)
	if err != nil {
		return false, err
	}
	if slices.Contains(Names(all), node) == drain {
		return false, nil
	}
	if drain {
		all = append(all, Node{node, now.UTC().Round(time.Second)})
	} else {
		all = slices.DeleteFunc(all, func(n Node) bool { return n.Name == node })
	}
	slices.SortFunc(all, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	text, err := json.MarshalIndent(content{all}, "", "  ")
	if err != nil {
		return false, err
	}
	if err := regular.Replace(path, append(text, '\n')); err != nil {
		return false, err
	}
	if err := unix.Fsync(fd); err != nil { // the new name lasts, too
		return true, &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	return true, nil
}

// poll is how often the file is checked for changes.
const poll = 250 * time.Millisecond

// Follow gives use the nodes that are drained each time that the file changes, until ctx ends.
// before is what it held when it was read the first time. While it can't be read, what it
// held is in force, and each look tries again: why it can't be read may lie elsewhere.
func Follow(ctx context.Context, path string, before []Node, log *slog.Logger, use func([]Node)) error {
	t := time.NewTicker(poll)
	defer t.Stop()
	stamps := stamp.Of() // of nothing: it is read once more, as it may have changed
	failed := ""         // why the last look could not read it, shown once
	for first := true; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if !first && failed == "" && !stamps.Changed() {
			continue
		}
		first, stamps = false, stamp.Of(path)
		all, err := Read(path)
		switch {
		case err != nil:
			if failed != err.Error() {
				log.Warn("drained nodes are not known, what was in force stays", "err", err)
			}
			failed = err.Error()
			continue
		case !slices.Equal(all, before):
			log.Info("drained nodes changed", "nodes", Names(all), "were", Names(before))
			before = all
			use(all)
		}
		failed = ""
	}
}
