package stream

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what is remembered of requests that failed on several engines.
const (
	mostHurts = 1024
	hurtFor   = 10 * time.Minute
)

// hurts remembers requests that failed on several engines: clients ask again, and each
// time one engine is enough to find out. It holds at most mostHurts keys of 16 bytes.
type hurts struct {
	n    atomic.Int32 // keys
	mu   sync.Mutex
	keys map[uint64]time.Time // until when
}

// has reports whether a request has failed so of late.
func (h *hurts) has(key uint64, now time.Time) bool {
	if key == 0 || h.n.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	until, ok := h.keys[key]
	if ok && now.After(until) {
		delete(h.keys, key)
		h.n.Store(int32(len(h.keys)))
		return false
	}
	return ok
}

// add remembers a request. Of too many those go whose time is over, then any.
func (h *hurts) add(key uint64, now time.Time) {
	if key == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys == nil {
		h.keys = make(map[uint64]time.Time)
	}
	if len(h.keys) >= mostHurts {
		for k, until := range h.keys {
			if now.After(until) || len(h.keys) >= mostHurts {
				delete(h.keys, k)
			}
		}
	}
	h.keys[key] = now.Add(hurtFor)
	h.n.Store(int32(len(h.keys)))
}

// forget says that a request was answered.
func (h *hurts) forget(key uint64) {
	if key == 0 || h.n.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, key)
	h.n.Store(int32(len(h.keys)))
}
