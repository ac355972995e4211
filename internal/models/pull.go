package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/fetch"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/setup"
	"millrace.dev/millrace/internal/weights"
)

// Have returns a model that is there, asking nobody; false: it must be fetched first. What
// the user has is always there, or an error.
func (s *Store) Have(ctx context.Context, r Ref) (Model, bool, error) {
	switch {
	case r.path != "":
		m, err := own(r)
		return m, err == nil, err
	case r.builtin:
		return Model{Name: r.Name, Ref: r.Text, Format: config.GGUF}, true, nil
	}
	folder := s.place(r)
	rec, ok, err := readRecord(folder)
	if err == nil && ok {
		rec, ok, err = rec.check(ctx, folder)
	}
	switch {
	case err != nil:
		return Model{}, false, err
	case !ok || r.stale(rec):
		return Model{}, false, s.canAsk(r)
	}
	return rec.model(r, folder), true, nil
}

// canAsk reports what keeps a model from being fetched that is known without asking anybody.
func (s *Store) canAsk(r Ref) error {
	repo := r.repo.name != "" || r.catalogue != nil && r.catalogue.Repo != ""
	if !repo || len(s.mirrors) > 0 {
		return nil
	}
	return &obs.Hint{Err: fmt.Errorf("model %s: no mirror is named that could have it", r.Text), Next: "name one with -mirror or $MILLRACE_MIRROR, such as https://hub.example.org"}
}

// stale reports whether the catalogue files another file than the one that is there.
func (r Ref) stale(rec record) bool {
	if r.catalogue == nil || r.catalogue.SHA256 == "" || rec.Main == "" {
		return false
	}
	p := rec.pin(rec.Main)
	return p == nil || p.SHA256 != r.catalogue.SHA256
}

// own checks what the user has.
func own(r Ref) (Model, error) {
	m := Model{Name: r.Name, Ref: r.Text, Format: config.GGUF, Weights: r.path}
	st, err := os.Stat(r.path)
	if err == nil && st.IsDir() {
		m.Format = config.Safetensors
		err = weights.CheckFolder(r.path)
	} else if err == nil {
		err = weights.Check(r.path)
	}
	if err != nil {
		return Model{}, &obs.Hint{Err: fmt.Errorf("-model: %w", err), Next: "point -model at an existing file, whole, or leave it out: set-up then fetches the pinned one"}
	}
	return m, nil
}

// Pull fetches a model unless it is there. Several processes may want the same one: one
// fetches it, the others wait. accept is asked, once its format is known, whether it is to be
// fetched; nil: it is.
func (s *Store) Pull(ctx context.Context, r Ref, accept func(format string) error) (Model, error) {
	m, ok, err := s.Have(ctx, r)
	if r.builtin && err == nil {
		m.Weights, err = setup.Model(ctx, setup.Options{Cache: s.o.Cache, Out: s.o.Out})
		return m, err
	}
	if err != nil || ok {
		return m, err
	}
	folder := s.place(r)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return Model{}, err
	}
	stop := s.show.Start()
	defer stop()
	unlock, err := setup.Lock(ctx, lockOf(folder), "another that fetches "+r.Text, s.show)
	if err != nil {
		return Model{}, err
	}
	defer unlock()
	if m, ok, err := s.Have(ctx, r); err != nil || ok {
		return m, err
	}
	if m, err = s.pull(ctx, r, folder, accept); err != nil {
		return Model{}, advise(fmt.Errorf("model %s: %w", r.Text, err))
	}
	return m, nil
}

// pull fetches a model into its folder, whose lock is held.
func (s *Store) pull(ctx context.Context, r Ref, folder string, accept func(format string) error) (Model, error) {
	p, err := s.plan(ctx, r)
	if err == nil && accept != nil {
		err = accept(p.format)
	}
	if err != nil {
		return Model{}, err
	}
	rec, had, err := readRecord(folder)
	if err != nil {
		return Model{}, err
	}
	if had && rec.Format != p.format {
		return Model{}, fmt.Errorf("it was %s, and is %s now: %w", rec.Format, p.format, fetch.ErrMismatch)
	}
	rec.Ref, rec.Name, rec.Format, rec.Main, rec.Tokenizer, rec.Context, rec.Whole = r.Text, r.Name, p.format, p.main, p.tokenizer, p.context, false
	if err := s.fetchAll(ctx, r, folder, &rec, p.files); err != nil {
		return Model{}, err
	}
	if p.guess {
		rest, err := p.guessed(folder)
		if err == nil {
			err = s.fetchAll(ctx, r, folder, &rec, rest)
		}
		if err != nil {
			return Model{}, err
		}
	}
	if p.format == config.Safetensors {
		if err := weights.CheckRepository(folder); err != nil {
			return Model{}, err
		}
	}
	rec.Whole = true
	if err := rec.write(folder); err != nil {
		return Model{}, err
	}
	return rec.model(r, folder), nil
}

// fetchAll fetches files, and keeps what became known of each.
func (s *Store) fetchAll(ctx context.Context, r Ref, folder string, rec *record, files []wanted) error {
	var need int64
	for i, w := range files {
		if pin := rec.pin(w.name); pin != nil && !r.explicit(w) {
			if w.sha256 != "" && w.sha256 != pin.SHA256 {
				return fmt.Errorf("%s: sha256 is %s there, was %s when it was first fetched: %w", w.name, w.sha256, pin.SHA256, fetch.ErrMismatch)
			}
			files[i].sha256, files[i].size = pin.SHA256, pin.Size
		}
		need += max(0, files[i].size-onDisk(filepath.Join(folder, filepath.FromSlash(w.name))))
	}
	if err := s.client.Room(folder, need); err != nil {
		return &obs.Hint{Err: err, Next: "free some space, remove a model (millrace models list, rm), or set -cache (MILLRACE_CACHE) to a folder on another disk"}
	}
	if err := rec.write(folder); err != nil {
		return err
	}
	for _, w := range files {
		got, err := s.fetch(ctx, r, folder, w)
		if w.optional && errors.Is(err, fetch.ErrMissing) {
			continue
		}
		if err != nil {
			return err
		}
		if pin := rec.pin(w.name); pin != nil && pin.SHA256 == got.SHA256 {
			got.Learnt, got.From = pin.Learnt, pin.From // how it was known the first time says more
		}
		rec.set(got)
		if err := rec.write(folder); err != nil {
			return err
		}
	}
	return nil
}

// explicit reports whether the user's catalogue has a file's hash: it says more than what came
// another time.
func (r Ref) explicit(w wanted) bool {
	return r.catalogue != nil && r.catalogue.SHA256 != "" && w.sha256 == r.catalogue.SHA256
}

// onDisk is how much of a file is there, in bytes.
func onDisk(path string) int64 {
	for _, p := range []string{path, path + ".part"} {
		if st, err := os.Stat(p); err == nil {
			return st.Size()
		}
	}
	return 0
}

// eventEvery is how often a script gets to know how far a file is.
const eventEvery = time.Second

// fetch returns a file that is there as it must be, or fetches it.
func (s *Store) fetch(ctx context.Context, r Ref, folder string, w wanted) (pinned, error) {
	path := filepath.Join(folder, filepath.FromSlash(w.name))
	if w.sha256 != "" {
		if sum, err := hashOf(ctx, path); err == nil && sum == w.sha256 {
			return stamped(path, pinned{Name: w.name, SHA256: sum, Learnt: fetch.Given, From: fetch.Shown(w.urls[0])})
		}
	}
	var done atomic.Int64
	last := time.Time{}
	t := s.show.Begin(r.Name+": "+w.name, w.size, done.Load)
	got, err := s.client.Get(ctx, fetch.File{
		To: path, URLs: w.urls, SHA256: w.sha256, Size: w.size, Sidecar: w.sidecar, Check: checkOf(w.name),
		Progress: func(n, total int64) {
			done.Store(n)
			if now := time.Now(); s.o.Events != nil && (n == total || now.Sub(last) >= eventEvery) {
				last = now
				s.o.Events(Event{Model: r.Name, File: w.name, Done: n, Total: total})
			}
		},
	})
	if err != nil {
		s.show.Drop(t)
		return pinned{}, err
	}
	s.show.End(t)
	return stamped(path, pinned{Name: w.name, SHA256: got.SHA256, Learnt: got.Learnt, From: got.From})
}

// stamped returns a pin with the file's size and time.
func stamped(path string, p pinned) (pinned, error) {
	st, err := os.Stat(path)
	if err != nil {
		return p, err
	}
	p.Size, p.Mtime = st.Size(), st.ModTime()
	return p, nil
}

// checkOf returns how a file of that name is checked; nil: there is nothing to check.
func checkOf(name string) func(string) error {
	switch {
	case strings.HasSuffix(name, "."+config.Safetensors):
		return weights.CheckSafetensors
	case strings.HasSuffix(name, ".json"):
		return checkJSON
	case strings.HasSuffix(name, ".gguf"), filepath.Ext(name) == "":
		return weights.Check
	}
	return nil
}

// checkJSON finds a page that says that there is no such file.
func checkJSON(path string) error {
	f, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 64)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if text := strings.TrimSpace(string(head[:n])); !strings.HasPrefix(text, "{") && !strings.HasPrefix(text, "[") {
		return fmt.Errorf("not JSON: it begins with %.20q", text)
	}
	return nil
}
