package llamacpp

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"sync"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/regular"
)

// states are the server's slots, saved and restored through its own files. It writes and reads
// them between two batches, so that whatever it decodes waits for that. A file that is torn ends
// its process: none is given to it that was not checked.
type states struct {
	k *Kind

	// mu guards the fields below.
	mu    sync.Mutex
	taken map[int]bool // slots of which others were promised that nobody takes them
	last  summed       // the zero summed: nothing was read yet
}

// kvTypes are how the server keeps keys and values, with the arguments that it is given here, and
// layout is how its files have them: layer by layer, on whichever device each is.
const (
	kvTypes = "f16/f16"
	layout  = "layers"
)

// States are the server's slots; nil: it was given no folder for them.
func (k *Kind) States(*enginepb.Assignment) backend.States {
	if k.StateFolder == "" {
		return nil
	}
	return &k.states
}

// Identity reads the weights, unless they are as an earlier start found them.
func (s *states) Identity(ctx context.Context, a *enginepb.Assignment) (*enginepb.SnapshotIdentity, error) {
	reply, err := s.k.do(ctx, http.MethodGet, "/props", nil)
	if err != nil {
		return nil, fmt.Errorf("props: %w", err)
	}
	var props struct {
		Build string `json:"build_info"`
	}
	if err := json.Unmarshal(reply, &props); err != nil {
		return nil, fmt.Errorf("props: %w", err)
	}
	sum, err := s.weights(ctx, a.GetBackend().GetWeights())
	if err != nil {
		return nil, fmt.Errorf("weights: %w", err)
	}
	version := props.Build
	if s.k.LlamaServer == "" { // the binding's builds have no number of their own
		version = filepath.Base(s.k.Runtime) + " " + version
	}
	return &enginepb.SnapshotIdentity{WeightsSha256: sum, Backend: "llamacpp", Version: version, KvTypes: kvTypes, Layout: layout}, nil
}

// weights returns the sum of all files of the weights.
func (s *states) weights(ctx context.Context, path string) ([]byte, error) {
	files := append([]string{path}, otherParts(path)...)
	stamp, err := stampOf(files)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last.Files == "" {
		last = s.recall()
	}
	if last.Files != stamp || len(last.Sha256) != sha256.Size {
		h := sha256.New()
		for _, f := range files {
			if err := copyFile(ctx, h, f); err != nil {
				return nil, err
			}
		}
		last = summed{Files: stamp, Sha256: h.Sum(nil)}
		s.remember(last)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = last
	return last.Sha256, nil
}

// copyFile writes what a file has.
func copyFile(ctx context.Context, to io.Writer, path string) error {
	f, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const piece = 8 << 20
	for {
		n, err := io.CopyN(to, f, piece)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case n == 0:
			return nil
		}
	}
}

// slot is one of the server's sequences.
type slot struct {
	ID     int    `json:"id"`
	Task   int64  `json:"id_task"` // the last one; they grow
	Tokens uint64 `json:"n_prompt_tokens"`
	Busy   bool   `json:"is_processing"`
}

// slots returns those that are idle, the one used last first.
func (s *states) slots(ctx context.Context) ([]slot, error) {
	reply, err := s.k.do(ctx, http.MethodGet, "/slots", nil)
	if err != nil {
		return nil, fmt.Errorf("slots: %w", err)
	}
	var all []slot
	if err := json.Unmarshal(reply, &all); err != nil {
		return nil, fmt.Errorf("slots: %w", err)
	}
	all = slices.DeleteFunc(all, func(a slot) bool { return a.Busy })
	slices.SortFunc(all, func(a, b slot) int { return cmp.Compare(b.Task, a.Task) })
	return all, nil
}

// Save saves a slot. The last token of an answer may not be in the cache yet.
func (s *states) Save(ctx context.Context, _ *enginepb.Assignment, tokens uint64, file string) (backend.Saved, error) {
	idle, err := s.slots(ctx)
	if err != nil {
		return backend.Saved{}, err
	}
	for _, one := range idle {
		if one.Tokens == 0 || one.Tokens != tokens && one.Tokens+1 != tokens {
			continue
		}
		var saved struct {
			Tokens  uint64 `json:"n_saved"`
			Timings struct {
				Save float64 `json:"save_ms"`
			} `json:"timings"`
		}
		if err := s.act(ctx, one.ID, "save", file, &saved); err != nil {
			return backend.Saved{}, err
		}
		if saved.Tokens != one.Tokens { // it was taken meanwhile
			break
		}
		return backend.Saved{Tokens: saved.Tokens, Stalled: milliseconds(saved.Timings.Save)}, nil
	}
	return backend.Saved{}, backend.ErrNoState
}

// Restore restores a slot.
func (s *states) Restore(ctx context.Context, _ *enginepb.Assignment, file string) (func(), error) {
	idle, err := s.slots(ctx)
	if err != nil {
		return nil, err
	}
	id := s.take(idle)
	if id < 0 {
		return nil, backend.ErrNoState
	}
	free := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.taken, id)
	}
	if err := s.act(ctx, id, "restore", file, &struct{}{}); err != nil {
		free()
		return nil, err
	}
	return free, nil
}

// take takes an idle slot, an empty one or the one used the longest ago; -1: there is none.
func (s *states) take(idle []slot) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := -1
	for _, one := range idle {
		if s.taken[one.ID] {
			continue
		}
		if id = one.ID; one.Tokens == 0 {
			break
		}
	}
	if id >= 0 {
		if s.taken == nil {
			s.taken = map[int]bool{}
		}
		s.taken[id] = true
	}
	return id
}

func (s *states) act(ctx context.Context, id int, action, file string, into any) error {
	body, err := json.Marshal(map[string]string{"filename": file})
	if err != nil {
		return err
	}
	reply, err := s.k.do(ctx, http.MethodPost, fmt.Sprintf("/slots/%d?action=%s", id, action), body)
	if err == nil {
		err = json.Unmarshal(reply, into)
	}
	if err != nil {
		return fmt.Errorf("%s of slot %d: %w", action, id, err)
	}
	return nil
}
