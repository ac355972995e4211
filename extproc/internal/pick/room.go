package pick

import "time"

// Room returns how many more requests the model's endpoints can take, each as many
// as its slots and the allowance. Not bounded: nobody is ready, which waiting does not
// mend unless endpoints are awaited, or slots are not known and nothing waits, so that there seems to be room.
func (m *Model) Room(allowance int, now time.Time) (free int, bounded bool) {
	at := now.UnixNano()
	nobody := m.Awaited
	for _, e := range m.Endpoints {
		tier := e.tier(at)
		nobody = nobody && tier == tierNone
		if tier != tierReady {
			continue
		}
		w := e.load(at, &usual{})
		slots := e.Slots
		if slots == 0 {
			slots = int(w.slots)
		}
		if slots == 0 {
			return 0, false
		}
		free += max(0, slots+allowance-int(w.requests))
		bounded = true
	}
	return free, bounded || nobody
}

// Comes reports whether, besides, somebody sees to it that they come.
func (m *Model) Comes(now time.Time) bool { return !m.Unwoken && m.Awaits(now) }

// Awaits reports whether nobody takes requests now, and endpoints come by themselves.
func (m *Model) Awaits(now time.Time) bool {
	if !m.Awaited {
		return false
	}
	at := now.UnixNano()
	for _, e := range m.Endpoints {
		if e.tier(at) != tierNone {
			return false
		}
	}
	return true
}
