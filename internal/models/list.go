package models

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/setup"
)

// States of a model in a list.
const (
	Known   = "known"   // it can be fetched
	Partial = "partial" // some of it is there
	Fetched = "fetched" // it is there
)

// Place is a node of the mesh that serves a model.
type Place struct {
	Node string `json:"node"`
	// State is "loaded", "asleep", "loading" or "failed"; empty: none of these. Why is for a
	// person.
	State string `json:"state,omitempty"`
	Why   string `json:"why,omitempty"`
}

// placeLoaded is the State of one that has it.
const placeLoaded = "loaded"

// Entry is a model of a list.
type Entry struct {
	Model
	// State is one of the above.
	State string `json:"state"`
	// Learnt is how the hash came to be known: given, server, sidecar or first.
	Learnt string `json:"learnt,omitempty"`
	// Used is when a mesh last began with it; zero: never, or it is not known.
	Used time.Time `json:"used,omitzero"`
	// Loaded are the nodes of the mesh that have it now, Places those and others that would load
	// it.
	Loaded []string `json:"loaded,omitempty"`
	Places []Place  `json:"places,omitempty"`

	folder string // "": set-up's
}

// List returns the models that are there, and those that the catalogue has names for. nodes
// are those that serve weights, by the path of these.
func (s *Store) List(ctx context.Context, nodes map[string][]Place) ([]Entry, error) {
	all := []Entry{s.builtin()}
	folders, err := filepath.Glob(filepath.Join(s.folder, "*", recordFile))
	if err != nil {
		return nil, err
	}
	for _, path := range folders {
		e, err := s.entry(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	for _, m := range s.catalogue {
		if !slices.ContainsFunc(all, func(e Entry) bool { return e.Ref == m.Name }) {
			all = append(all, Entry{Model: Model{Name: m.Name, Ref: m.Name, Format: m.Format, Size: int64(m.Size), SHA256: m.SHA256, ContextTokens: m.ContextTokens}, State: Known})
		}
	}
	for i := range all {
		for path, places := range nodes {
			if all[i].holds(path) {
				all[i].serve(places)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return all, ctx.Err()
}

// serve notes which nodes serve the model.
func (e *Entry) serve(places []Place) {
	e.Places = append(e.Places, places...)
	for _, p := range places {
		if p.State == placeLoaded {
			e.Loaded = append(e.Loaded, p.Node)
		}
	}
}

// builtin is the model that set-up fetches.
func (s *Store) builtin() Entry {
	e := Entry{Model: Model{Name: config.DefaultModel, Ref: config.DefaultModel, Format: config.GGUF, SHA256: setup.ModelSum(), Size: setup.ModelSize()}, State: Known, Learnt: "given"}
	if path := setup.ModelPath(s.o.Cache); path != "" {
		if st, err := os.Stat(path); err == nil {
			e.Weights, e.Size, e.State = path, st.Size(), Fetched
		}
	}
	return e
}

func (s *Store) entry(folder string) (Entry, error) {
	rec, ok, err := readRecord(folder)
	if err != nil || !ok {
		return Entry{}, err
	}
	e := Entry{Model: rec.model(Ref{Name: rec.Name, Text: rec.Ref}, folder), Used: rec.Used, State: Fetched, folder: folder}
	there := int64(0)
	for _, f := range rec.Files {
		there += onDisk(filepath.Join(folder, filepath.FromSlash(f.Name)))
		if f.SHA256 == e.SHA256 {
			e.Learnt = f.Learnt
		}
	}
	switch parts, _ := filepath.Glob(filepath.Join(folder, "*.part")); {
	case there == 0 && len(parts) == 0:
		e.State = Known
	case !rec.Whole || there < e.Size:
		e.State = Partial
	}
	return e, nil
}

// Use keeps that a mesh begins with these models.
func (s *Store) Use(now time.Time, refs ...Ref) {
	for _, r := range refs {
		if r.path != "" || r.builtin {
			continue
		}
		folder := s.place(r)
		if rec, ok, err := readRecord(folder); err == nil && ok {
			rec.Used = now.UTC().Truncate(time.Second)
			_ = rec.write(folder) // a cache that can't be written serves on
		}
	}
}

// Remove removes the files of a model that is kept, by its name or by what it was called.
// Their hashes stay, unless they are to be forgotten. nodes are as in List: what one of them
// serves stays. It returns how many bytes are free now.
func (s *Store) Remove(ctx context.Context, name string, forget bool, nodes map[string][]Place) (int64, error) {
	all, err := s.List(ctx, nodes)
	if err != nil {
		return 0, err
	}
	var found []Entry
	var names []string
	for _, e := range all {
		if e.folder == "" {
			continue
		}
		names = append(names, e.Ref, e.Name)
		if e.Ref == name || e.Name == name {
			found = append(found, e)
		}
	}
	if i := slices.IndexFunc(found, func(e Entry) bool { return e.Ref == name }); i >= 0 {
		found = found[i : i+1]
	}
	switch {
	case len(found) > 1:
		return 0, &obs.Hint{Err: fmt.Errorf("%d models are called %q", len(found), name), Next: "say which: " + found[0].Ref + " or " + found[1].Ref}
	case len(found) == 0 && name == config.DefaultModel:
		return 0, errors.New("it belongs to set-up: it goes with the rest of the cache")
	case len(found) == 0:
		next := "millrace models list shows what is there"
		if near := nearest.Of(name, names); near != "" {
			next = "did you mean " + near + "?"
		}
		return 0, &obs.Hint{Err: fmt.Errorf("no model %q is kept here", name), Next: next}
	}
	e := found[0]
	if len(e.Places) > 0 {
		return 0, &obs.Hint{Err: fmt.Errorf("%s is served by %s", e.Ref, e.places()), Next: "end the mesh first, or take the model out of it"}
	}
	unlock, err := setup.Lock(ctx, lockOf(e.folder), "another that fetches "+e.Ref, s.show)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return s.remove(e, forget)
}

// remove removes the files of a folder whose lock is held.
func (s *Store) remove(e Entry, forget bool) (freed int64, err error) {
	_ = filepath.WalkDir(e.folder, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if st, err := d.Info(); err == nil {
				freed += st.Size()
			}
		}
		return nil
	})
	if forget {
		return freed, os.RemoveAll(e.folder)
	}
	rec, _, err := readRecord(e.folder)
	if err != nil {
		return 0, err
	}
	rec.Whole = false
	if err := rec.write(e.folder); err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(e.folder)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		if entry.Name() == recordFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(e.folder, entry.Name())); err != nil {
			return 0, err
		}
	}
	return freed, nil
}

// holds reports whether weights of that path are of a model of the list.
func (e Entry) holds(path string) bool {
	if e.folder == "" {
		return path != "" && path == e.Weights
	}
	return path == e.folder || strings.HasPrefix(path, e.folder+string(filepath.Separator))
}
