package stream

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what is remembered of requests that failed alike on two engines.
const (
	mostHurts = 1024
	hurtFor   = 10 * time.Minute
	// refuseFirst is for how long a request is sent to nobody that two engines had when they
	// ended; that doubles each time that it fails again, up to hurtFor.
	refuseFirst = time.Minute
	// mostWell is how many requests that were answered are remembered.
	mostWell = 4096
)

// deadly is how many engines end with a request in hand until it is taken for the cause.
const deadly = 2

// hurts remembers requests that failed alike on two engines: clients ask again. One that
// was answered with errors is sent to one engine then, which is enough to find out; one that
// engines ended over is sent to nobody for a while.
//
// What other requests ask in the same words may have been answered: then the engines are
// at fault.
type hurts struct {
	n    atomic.Int32 // keys
	well [mostWell]atomic.Uint64
	mu   sync.Mutex
	keys map[uint64]hurt
}

// hurt is what is remembered of a request.
type hurt struct {
	until  time.Time     // when it is forgotten
	refuse time.Time     // until when it is sent to nobody
	span   time.Duration // how long it is not sent the next time; 0: it is
}

// has reports whether a request is to be sent to one engine alone, or to none for so long.
func (h *hurts) has(key uint64, now time.Time) (once bool, wait time.Duration) {
	if key == 0 || h.n.Load() == 0 {
		return false, 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	one, ok := h.keys[key]
	if !ok {
		return false, 0
	}
	if now.After(one.until) {
		h.dropLocked(key)
		return false, 0
	}
	return true, max(0, one.refuse.Sub(now))
}

// add remembers a request that failed alike on two engines; ended is whether it was the end
// of them.
func (h *hurts) add(key uint64, ended bool, now time.Time) {
	if key == 0 || ended && h.well[key%mostWell].Load() == key {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.keys[key]
	if ended && one.span == 0 {
		one.span = refuseFirst
	}
	h.setLocked(key, one, now)
}

// again says that a request failed on the one engine that it was sent to.
func (h *hurts) again(key uint64, now time.Time) {
	if key == 0 || h.n.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if one, ok := h.keys[key]; ok {
		h.setLocked(key, one, now)
	}
}

// setLocked remembers a request. Of too many those go whose time is over, then any.
func (h *hurts) setLocked(key uint64, one hurt, now time.Time) {
	if h.keys == nil {
		h.keys = make(map[uint64]hurt)
	}
	if _, ok := h.keys[key]; !ok && len(h.keys) >= mostHurts {
		for k, old := range h.keys {
			if now.After(old.until) || len(h.keys) >= mostHurts {
				delete(h.keys, k)
			}
		}
	}
	if one.span > 0 {
		one.refuse = now.Add(one.span)
		one.span = min(2*one.span, hurtFor)
	}
	one.until = now.Add(hurtFor)
	if one.refuse.After(now) {
		one.until = one.refuse.Add(hurtFor)
	}
	h.keys[key] = one
	h.n.Store(int32(len(h.keys)))
}

func (h *hurts) dropLocked(key uint64) {
	delete(h.keys, key)
	h.n.Store(int32(len(h.keys)))
}

// answer says that a request was answered: it hurts nobody.
func (h *hurts) answer(key uint64) {
	if key == 0 {
		return
	}
	if slot := &h.well[key%mostWell]; slot.Load() != key {
		slot.Store(key)
	}
	if h.n.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked(key)
}
