package supervise

import (
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// rest is what a Machine remembers of a backend that is ended while nobody asks for it.
//
// The door is shut first: only when no request is in the backend, and none can get there, is it
// ended. A request that comes then waits before the door, which has it started again. For
// everybody else the replica is READY all the while: requests may be sent, they take longer.
// One whose backend does not come up again is BROKEN, as any other, and says why to whoever
// asks; but as nobody waits for it then, nothing is tried. After failedFor it counts as ended
// again: the next request has it tried.
type rest struct {
	used   time.Time     // when it was last asked for; zero: it is not READY
	taken  uint64        // requests that had been let in then
	ended  bool          // whether the backend is ended
	key    string        // what it was started with
	last   uint64        // run that was ended last
	waking time.Time     // since when it is started again; zero: it is not
	failed time.Time     // when that has failed last; zero: it is well, or ended again
	took   time.Duration // how long a backend that was started took until its first token; 0: none was
	proven uint64        // run that took is of
}

// keepAlive is how long a backend is kept without requests; 0: for ever.
func (m *Machine) keepAlive() time.Duration {
	return m.have.GetBackend().GetKeepAlive().AsDuration()
}

// Dormant reports whether the replica is READY, but its backend is not loaded.
func (m *Machine) Dormant() bool {
	return m.state == enginepb.State_READY && (m.rest.ended || !m.rest.waking.IsZero())
}

// Wake is how long a request would wait until the backend is loaded again; 0: it is loaded.
func (m *Machine) Wake(now time.Time) time.Duration {
	switch {
	case !m.Dormant():
		return 0
	case m.rest.waking.IsZero():
		return m.rest.loads()
	}
	return max(m.rest.loads()-now.Sub(m.rest.waking), time.Millisecond)
}

// unmeasured is how long a backend is thought to take that was never loaded: some gigabytes from
// a disk of one a second. Too much only has others asked first; with nothing, requests would go
// to it while a loaded one is free.
const unmeasured = 10 * time.Second

// failedFor is how long a replica is BROKEN whose backend could not be loaded for who waited:
// so long the reason is known to everybody, and nothing is sent there.
const failedFor = 5 * time.Second

// unwanted reports whether a backend that could not be loaded is not to be tried again, as
// nobody waits for it.
func (m *Machine) unwanted(w World) bool {
	return !m.rest.failed.IsZero() && w.Waiting == 0 && w.Running == 0 && (m.onDemand() || m.keepAlive() > 0)
}

// giveUp has a backend that could not be loaded count as ended, once the door is shut.
func (m *Machine) giveUp(w World) {
	r := &m.rest
	switch {
	case !m.unwanted(w) || m.state != enginepb.State_BROKEN || w.Now.Sub(r.failed) < failedFor:
	case !w.Shut:
		m.out = append(m.out, Command{Do: Shut})
	default:
		r.ended, r.key, r.failed, r.last = true, key(backend.Head, m.have), time.Time{}, w.Parts[backend.Head].Run
		if w.Parts[backend.Head].Up {
			m.replace(backend.Head, "could not be loaded")
		}
	}
}

// loads is how long it takes to load the backend.
func (r *rest) loads() time.Duration {
	if r.took == 0 {
		return unmeasured
	}
	return max(r.took, time.Millisecond)
}

// onDemand is whether the backend is not to be started before somebody asks for it.
func (m *Machine) onDemand() bool { return m.have.GetBackend().GetOnDemand() }

// unasked shuts the door of a backend that is loaded on demand, was never started and is about
// to be. Once the door is shut it counts as one that was ended.
func (m *Machine) unasked(w World) bool {
	r, k := &m.rest, key(backend.Head, m.have)
	p := &m.parts[backend.Head]
	if !m.onDemand() || k == "" || k == r.key {
		return false
	}
	if w.Parts[backend.Head].Up || p.asked {
		if p.key == k {
			r.key = k // it is loaded already
		}
		return false
	}
	if !w.Shut {
		m.out = append(m.out, Command{Do: Shut})
		return true
	}
	r.ended, r.key, r.took, r.last = true, k, 0, w.Parts[backend.Head].Run
	return true
}

// epoch is the start of the backend whose run is given, as others know it: one that is ended
// has nothing cached any more, and is known as the next one already.
func (m *Machine) epoch(run uint64) uint64 {
	if run != 0 && run == m.rest.last {
		return run + 1
	}
	return run
}

// resting judges, and ends or starts a backend by who asks for it.
func (m *Machine) resting(w World) (enginepb.State, string) {
	r := &m.rest
	if m.asleep() && (w.Waiting > 0 || m.keepAlive() == 0 && !m.onDemand()) {
		r.waking, r.ended = w.Now, false
		m.doubted("", w)
	}
	m.giveUp(w)
	state, reason := m.judge(w)
	if key(backend.Head, m.have) != r.key {
		r.ended, r.waking, r.failed, r.key = false, time.Time{}, time.Time{}, "" // it is to be something else
	}
	if !r.waking.IsZero() {
		state, reason = m.wake(state, reason, w)
	}
	if state == enginepb.State_READY {
		r.failed = time.Time{}
	}
	switch {
	case state != enginepb.State_READY:
		r.used = time.Time{}
	case m.Dormant() && r.ended:
	case w.Running > 0 || w.Waiting > 0 || w.Taken != r.taken || r.used.IsZero() || !r.waking.IsZero():
		r.used, r.taken = w.Now, w.Taken
		m.measure(w)
	case m.idles(w) && w.Parts[backend.Head].Up:
		m.lieDown(w)
	}
	// Who waits at the door of a backend that is broken learns so first: the state of the
	// step before is what is known.
	if w.Shut && !r.ended && r.waking.IsZero() && !m.idles(w) && (state == enginepb.State_READY || m.state != enginepb.State_READY) {
		m.out = append(m.out, Command{Do: Open})
	}
	return state, reason
}

// idles reports whether nobody has asked for a backend for longer than it is to be kept.
func (m *Machine) idles(w World) bool {
	r := &m.rest
	return m.keepAlive() > 0 && w.Running == 0 && w.Waiting == 0 && w.Taken == r.taken && !r.used.IsZero() && w.Now.Sub(r.used) >= m.keepAlive()
}

// lieDown shuts the door, and once it is shut ends the backend.
func (m *Machine) lieDown(w World) {
	if !w.Shut {
		m.out = append(m.out, Command{Do: Shut})
		return
	}
	m.rest.ended, m.rest.key, m.rest.last = true, m.parts[backend.Head].key, w.Parts[backend.Head].Run
	m.replace(backend.Head, "was not asked for")
}

// asleep reports whether the backend of what is assigned is ended as nobody asks for it.
func (m *Machine) asleep() bool { return m.rest.ended && key(backend.Head, m.have) == m.rest.key }

// wake keeps a replica READY whose backend is being loaded again, until it is or can't be.
func (m *Machine) wake(state enginepb.State, reason string, w World) (enginepb.State, string) {
	if state == enginepb.State_STARTING || state == enginepb.State_WARMING {
		return enginepb.State_READY, ""
	}
	if m.rest.waking = (time.Time{}); state == enginepb.State_BROKEN {
		m.rest.failed = w.Now
	}
	return state, reason
}

// measure keeps how long it took to load the backend that runs.
func (m *Machine) measure(w World) {
	p := &m.parts[backend.Head]
	if m.rest.waking.IsZero() && m.rest.proven != p.run && p.up {
		m.rest.proven, m.rest.took = p.run, w.Now.Sub(p.started)
	}
}
