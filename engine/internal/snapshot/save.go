package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/internal/regular"
)

// Save has the state saved that the backend has of a prompt with these beginnings, and of its
// answer: so many tokens in all. It returns at once.
func (s *Service) Save(a *enginepb.Assignment, chain []cachelog.Link, tokens uint64) {
	v := s.serves(a)
	if v == nil || tokens < leastTokens {
		return
	}
	if s.cheap(tokens) {
		s.cfg.Metrics.saved.WithLabelValues(savedCheap).Inc()
		return
	}
	j := job{served: v, all: tokens}
	if j.keys, j.tokens = split(chain); len(j.keys) == 0 {
		return
	}
	for range s.saves.put(j, func(old job) bool { return slices.Contains(j.keys, old.key()) }) {
		s.cfg.Metrics.saved.WithLabelValues(savedBusy).Inc()
	}
}

// cheap reports whether so many tokens are computed about as fast as their state is restored, by
// what the last one took.
func (s *Service) cheap(tokens uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &enginepb.SnapshotHeader{Tokens: uint32(tokens), StateBytes: uint64(s.perToken * float64(tokens))}
	prefill := s.cfg.Speed().Prefill
	return prefill == 0 || worth(h, h.Tokens, 0, prefill, s.pace) == 0
}

// settled are closed when all is saved, and when that is copied: the second is to be asked for after
// the first.
func (s *Service) settled() []func() <-chan struct{} {
	return []func() <-chan struct{}{s.saves.settled, s.copies.settled}
}

// Settle waits until all states are saved and copied, or ctx has ended.
func (s *Service) Settle(ctx context.Context) {
	for _, settled := range s.settled() {
		select {
		case <-settled():
		case <-ctx.Done():
			return
		}
	}
}

// Settling reports whether states are still being saved or copied. The nil Service saves none.
func (s *Service) Settling() bool {
	if s == nil {
		return false
	}
	for _, settled := range s.settled() {
		select {
		case <-settled():
		default:
			return true
		}
	}
	return false
}

// saveFor bounds how long the backend may take to save, which it does not begin while the sequence
// is in use again.
const saveFor = 10 * time.Second

// niceness is that of the thread that makes files, as nice(2) has it: beside a busy thread of the
// backend's it gets 36 shares to 1024 of a core, 3.4 %, and all of what is idle. The least priority
// has 1.4 %, with which a long state would take a minute on a machine that is always busy.
const niceness = 15

// saving saves one state after the other, in a thread that gives way to others: the backend is to
// have the processor. The thread ends with it.
func (s *Service) saving(ctx context.Context) error {
	runtime.LockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness); err != nil {
		s.cfg.Log.Warn("snapshots are made at the priority of requests", "err", err)
	}
	var next time.Time
	for {
		j, ok := s.saves.take(ctx)
		if !ok {
			return nil
		}
		if rest := time.Until(next); rest > 0 && s.cfg.Running() > 0 {
			select {
			case <-time.After(rest):
			case <-ctx.Done():
				return nil
			}
		}
		outcome, stalled, err := s.save(ctx, j)
		next = time.Now().Add(wait(stalled))
		s.cfg.Metrics.saved.WithLabelValues(outcome).Inc()
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("snapshot not saved", "err", err)
		}
	}
}

// save saves a state. stalled is for how long the backend stood still.
func (s *Service) save(ctx context.Context, j job) (outcome string, stalled time.Duration, err error) {
	v := j.served
	if s.now.Load() == nil || s.now.Load().epoch != v.epoch {
		return savedGone, 0, nil
	}
	file := s.cfg.Folder.temporary()
	defer os.Remove(file)
	within, cancel := context.WithTimeout(ctx, saveFor)
	defer cancel()
	saved, err := v.states.Save(within, v.assignment, j.all, filepath.Base(file))
	switch {
	case errors.Is(err, backend.ErrNoState):
		return savedGone, saved.Stalled, nil
	case err != nil:
		return savedFailed, 0, err
	}
	s.cfg.Metrics.seconds.WithLabelValues(phaseStall).Observe(saved.Stalled.Seconds())
	info, err := os.Stat(file)
	if err != nil {
		return savedFailed, saved.Stalled, err
	}
	h := &enginepb.SnapshotHeader{
		Identity: v.identity, Keys: j.keys, KeyTokens: j.tokens, Tokens: uint32(saved.Tokens),
		ContextTokens: v.assignment.GetBackend().GetContextTokens(), StateBytes: uint64(info.Size()), Saved: time.Now().Unix(),
	}
	for i := range h.KeyTokens { // the client's lengths are estimates where its tokens are not known
		h.KeyTokens[i] = min(h.KeyTokens[i], h.Tokens)
	}
	s.mu.Lock()
	s.perToken = float64(h.GetStateBytes()) / float64(h.GetTokens())
	s.mu.Unlock()
	h.RecomputeMs = uint32(computing(h.GetTokens(), s.cfg.Speed().Prefill, h).Milliseconds())
	if worth(h, h.GetTokens(), 0, s.cfg.Speed().Prefill, s.paces()) == 0 || !s.cfg.Folder.Room(h, info.Size()) {
		return savedCheap, saved.Stalled, nil
	}
	if err := s.encode(file, h); err != nil {
		return savedFailed, saved.Stalled, fmt.Errorf("state of %d tokens: %w", h.GetTokens(), err)
	}
	return savedOK, saved.Stalled, nil
}

// encode makes a snapshot of a state.
func (s *Service) encode(state string, h *enginepb.SnapshotHeader) error {
	began := time.Now()
	from, err := regular.Open(state)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := s.cfg.Folder.create(partDir)
	if err != nil {
		return err
	}
	defer os.Remove(to.Name()) // it has another name if all went well
	file, err := kvfile.Encode(to, h, from, s.cfg.Secret)
	if failed := to.Close(); err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	s.cfg.Metrics.took(phaseEncode, began)
	kept, err := s.cfg.Folder.Put(to.Name(), h, file)
	if err != nil {
		return err
	}
	s.announce()
	if e := s.cfg.Folder.has(kvfile.Key(h)); kept && e != nil && len(s.cfg.Peers) > 0 {
		s.copies.put(e, func(old *entry) bool { return slices.Contains(h.GetKeys(), old.key()) })
	}
	return nil
}
