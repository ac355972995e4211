package supervise

import (
	"context"
	"slices"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// publish makes the machine's state everybody's.
func (s *Supervisor) publish(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.snapshot.Load()
	next := s.snapshotLocked()
	s.snapshot.Store(next)
	s.serveLocked(ctx, next)
	if same(last, next) {
		return
	}
	if last.State != next.State || last.Reason != next.Reason {
		s.cfg.Log.Info("state", "state", next.State.String(), "reason", next.Reason,
			"replica", next.Assignment.GetReplica(), "stage", next.Assignment.GetStage())
	}
	if last.Dormant != next.Dormant {
		s.cfg.Log.Info("dormant", "dormant", next.Dormant, "replica", next.Assignment.GetReplica())
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Supervisor) snapshotLocked() *Snapshot {
	m := s.machine
	next := &Snapshot{State: m.state, Reason: m.reason, Since: m.since, Version: m.have.Version(), Dormant: m.Dormant(), Wake: m.Wake(time.Now())}
	if !m.have.Releases() {
		next.Assignment = m.have
	}
	for r, c := range s.children {
		if c == nil || c.remote {
			continue
		}
		p := Process{Role: backend.Role(r), Restarts: s.starts[r] - 1, Since: s.born[r]}
		if c.up() {
			p.PID, p.RSS, p.CPU = c.pid(), c.rss, c.cpu
		}
		if p.PID != 0 || key(p.Role, m.have) != "" && !(p.Role == backend.Head && m.Dormant()) {
			next.Processes = append(next.Processes, p)
		}
	}
	leader := backend.Head
	if m.have.GetStage() > 0 {
		leader = backend.Shard
	}
	if c := s.children[leader]; c != nil && next.Assignment != nil {
		next.Epoch = c.run
		if leader == backend.Head {
			next.Epoch = m.epoch(c.run)
		}
	}
	return next
}

// same reports whether b need not be sent at once to those who have a.
func same(a, b *Snapshot) bool {
	return a.State == b.State && a.Reason == b.Reason && a.Version == b.Version && a.Assignment == b.Assignment && a.Epoch == b.Epoch && a.Dormant == b.Dormant &&
		slices.EqualFunc(a.Processes, b.Processes, func(p, q Process) bool { return p.Role == q.Role && p.PID == q.PID })
}

// serveLocked opens and closes the door for requests.
func (s *Supervisor) serveLocked(ctx context.Context, next *Snapshot) {
	v := s.serving.Load()
	switch {
	case v != nil && next.State == enginepb.State_DRAINING && s.machine.leaving(time.Now()):
	case v != nil && next.State == enginepb.State_DRAINING:
		s.serving.Store(nil)
		v.close(ErrEnds)
		s.draining = v
	case v != nil && next.Dormant:
		s.servedEpoch = next.Epoch // requests may come, and wait before the door
	case v != nil && (next.State != enginepb.State_READY || next.Epoch != s.servedEpoch):
		s.serving.Store(nil)
		v.close(ErrEnds)
		v.kill(ErrEnds)
	}
	if old := s.draining; next.State != enginepb.State_DRAINING && old != nil {
		s.draining = nil
		if next.State == enginepb.State_READY && next.Epoch == s.servedEpoch {
			s.reopenLocked(ctx, old, next) // what was to come was taken back
		} else {
			old.kill(ErrEnds)
		}
	}
	if v = s.serving.Load(); next.State == enginepb.State_READY && next.Assignment.GetStage() == 0 && (v == nil || v.Assignment != next.Assignment) {
		s.serveNewLocked(ctx, v, next)
	}
}

// reopenLocked opens the door again that a drain had closed. The requests that went on
// through the drain are still alive, and stay so with those that come.
func (s *Supervisor) reopenLocked(ctx context.Context, old *Serving, next *Snapshot) {
	v := &Serving{Assignment: next.Assignment, Alive: old.Alive, kill: old.kill}
	v.Open, v.close = context.WithCancelCause(ctx)
	s.serving.Store(v)
}

// serveNewLocked opens the door. An assignment that changed nothing but its
// generation keeps the contexts of the one before.
func (s *Supervisor) serveNewLocked(ctx context.Context, old *Serving, next *Snapshot) {
	v := &Serving{Assignment: next.Assignment}
	if old != nil {
		v.Open, v.Alive, v.close, v.kill = old.Open, old.Alive, old.close, old.kill
	} else {
		v.Open, v.close = context.WithCancelCause(ctx)
		v.Alive, v.kill = context.WithCancelCause(ctx)
	}
	s.servedEpoch = next.Epoch
	s.serving.Store(v)
}
