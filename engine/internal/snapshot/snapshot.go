// Package snapshot keeps what conversations have in the KV cache of the backend, so that they continue
// without their history being computed again when the backend, or the whole engine, has died: after
// each turn the state is saved to a folder and copied to another engine of the same model, and
// before a prompt is worked on it is restored where that is faster.
//
// Called by api (Save, Restore) and main (Run). What can be restored here is in the log of the
// cache, by which xds and extproc know where a conversation continues best. Its one rule: a state
// costs time at most. None that is torn, forged, or of another model, backend, build or form is
// given to a backend, and what goes wrong with one is counted, and the prompt computed.
package snapshot

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/engine/internal/supervise"
)

// Config is what a Service needs.
type Config struct {
	Folder *Folder
	// Secret seals the files; nil: nothing does.
	Secret *kvfile.Secret
	Kinds  backend.Kinds
	// Snapshot is the supervisor's.
	Snapshot func() (*supervise.Snapshot, <-chan struct{})
	// Running counts the requests in the backend, Speed is what one of them gets.
	Running func() int
	Speed   func() backend.Speed
	// Cache logs what can be restored.
	Cache *cachelog.Log
	// Peers are the engines that may have copies. To them go Rate bytes per second at most.
	Peers   []*Peer
	Rate    int64
	Metrics *Metrics
	Log     *slog.Logger
}

// Service saves and restores.
type Service struct {
	cfg Config

	// Atomic.
	now atomic.Pointer[served] // nil: there is no backend whose states could be saved

	saves  queue[job]
	copies queue[*entry]
	limit  *rate.Limiter

	// announcing has the log say what is so now, and not what was so a moment ago.
	announcing sync.Mutex

	// mu guards the fields below.
	mu       sync.Mutex
	pace     pace
	perToken float64 // bytes of state; 0: none was saved yet
}

// served is the backend that runs, or that will run again.
type served struct {
	assignment *enginepb.Assignment
	epoch      uint64
	states     backend.States
	identity   *enginepb.SnapshotIdentity
}

// job is a state that is to be saved.
type job struct {
	served *served
	keys   []uint64
	tokens []uint32
	all    uint64 // tokens, with the answer
}

func (j job) key() uint64 { return j.keys[len(j.keys)-1] }

// New returns a Service.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, pace: pace{restore: firstPace}, saves: newQueue[job](), copies: newQueue[*entry](), limit: newLimit(cfg.Rate)}
	cfg.Metrics.service.Store(s)
	return s
}

// Run follows the backend, and saves what is to be saved, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.saving(ctx) })
	g.Go(func() error { return s.copying(ctx) })
	err := g.Wait()
	for _, p := range s.cfg.Peers {
		err = errors.Join(err, p.Close())
	}
	return err
}

// again is after how long a backend is asked again that has not said what it is.
const again = 5 * time.Second

// follow knows which backend runs.
func (s *Service) follow(ctx context.Context) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		snap, changed := s.cfg.Snapshot()
		if s.identify(ctx, snap) != nil {
			retry.Reset(again)
		}
		select {
		case <-changed:
		case <-retry.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// identify finds out what the backend is. One that died is what it was: it is started again.
func (s *Service) identify(ctx context.Context, snap *supervise.Snapshot) error {
	a, was := snap.Assignment, s.now.Load()
	same := was != nil && a != nil && a.GetReplica() == was.assignment.GetReplica() && enginepb.SameProcess(a, was.assignment)
	switch {
	case a == nil || a.GetStage() > 0 || was != nil && !same:
		if s.now.Swap(nil) != nil {
			s.announce()
		}
		if a == nil || a.GetStage() > 0 {
			return nil
		}
	case same && was.epoch == snap.Epoch:
		if was.assignment != a {
			next := *was
			next.assignment = a
			s.now.Store(&next)
		}
		return nil
	}
	if snap.State != enginepb.State_READY || snap.Dormant {
		return nil
	}
	kind := s.cfg.Kinds.Of(a)
	if kind == nil || kind.States(a) == nil {
		return nil
	}
	id, err := kind.States(a).Identity(ctx, a)
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.Warn("snapshots: what the backend is can't be found out", "err", err)
		}
		return err
	}
	s.now.Store(&served{assignment: a, epoch: snap.Epoch, states: kind.States(a), identity: id})
	s.announce()
	return nil
}

// serves returns the backend that serves an assignment; nil: its states can't be saved.
func (s *Service) serves(a *enginepb.Assignment) *served {
	if v := s.now.Load(); v != nil && a.GetReplica() == v.assignment.GetReplica() && enginepb.SameProcess(a, v.assignment) {
		return v
	}
	return nil
}

// announce logs what can be restored here.
func (s *Service) announce() {
	s.announcing.Lock()
	defer s.announcing.Unlock()
	v := s.now.Load()
	if v == nil {
		s.cfg.Cache.SetRestorable(nil)
		return
	}
	p, prefill := s.paces(), s.cfg.Speed().Prefill
	all := map[uint64]uint32{}
	s.cfg.Folder.each(func(e *entry) {
		if n := e.h.GetTokens(); n <= v.assignment.GetBackend().GetContextTokens() && proto.Equal(e.h.GetIdentity(), v.identity) {
			all[e.key()] = worth(e.h, n, 0, prefill, p)
		}
	})
	s.cfg.Cache.SetRestorable(all)
}

func (s *Service) paces() pace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pace
}

// split takes keys and lengths apart. Beginnings of no key have none.
func split(chain []cachelog.Link) (keys []uint64, tokens []uint32) {
	for _, l := range chain {
		if l.Key != 0 {
			keys, tokens = append(keys, l.Key), append(tokens, l.Tokens)
		}
	}
	return keys, tokens
}

// Restore puts what was saved of a prompt with these beginnings into the backend, if it is not
// there and that is faster than to compute it. free is to be called once the backend works on
// the prompt; it is never nil.
func (s *Service) Restore(ctx context.Context, a *enginepb.Assignment, chain []cachelog.Link) (free func()) {
	free = func() {}
	v := s.serves(a)
	if v == nil || len(chain) == 0 {
		return free
	}
	keys, _ := split(chain)
	prompt, have, prefill := chain[len(chain)-1].Tokens, s.cfg.Cache.Have(chain), s.cfg.Speed().Prefill
	e, useful, other := s.cfg.Folder.find(v.identity, keys)
	if other {
		s.cfg.Metrics.ignored.WithLabelValues(ignoredMismatch).Inc()
	}
	from := fromHere
	if rest := prompt - min(prompt, max(have, useful)); computing(rest, prefill, nil) > askFrom {
		if got, tokens := s.elsewhere(ctx, v, keys, max(have, useful), prefill); got != nil {
			e, useful, from = got, tokens, fromPeer
		}
	}
	if e == nil || e.h.GetTokens() > a.GetBackend().GetContextTokens() {
		return free
	}
	if useful = min(useful, prompt); worth(e.h, useful, have, prefill, s.paces()) == 0 {
		return free
	}
	within, cancel := context.WithTimeout(ctx, computing(useful-have, prefill, e.h))
	defer cancel()
	done, err := s.restore(within, v, e)
	switch {
	case err == nil:
		s.cfg.Metrics.restored.WithLabelValues(from).Inc()
		s.cfg.Metrics.tokens.Add(float64(useful - have))
		return done
	case errors.Is(err, kvfile.ErrTorn):
		s.cfg.Metrics.ignored.WithLabelValues(ignoredTorn).Inc()
		s.cfg.Log.Warn("snapshot removed", "err", err)
		s.cfg.Folder.remove(e)
		s.announce()
	case ctx.Err() == nil:
		s.cfg.Metrics.ignored.WithLabelValues(ignoredFailed).Inc()
		s.cfg.Log.Debug("snapshot not restored", "err", err)
	}
	return free
}
