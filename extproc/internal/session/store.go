package session

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// ways is how many entries share a set.
const ways = 8

// Place is one engine where a conversation's tokens are cached.
type Place struct {
	// Cache identifies the engine's cache as it is since its last start; 0: none.
	Cache uint32
	// Tokens is how much of the conversation is cached there.
	Tokens uint32
}

// Entry is what is remembered under a key.
type Entry struct {
	// Tail is the key of the conversation when it was last answered: a request
	// that continues it has Tail among its own prefixes.
	Tail Key
	// Places holds the engines, the last used first.
	Places [3]Place
}

// Store remembers a bounded number of entries for a bounded idle time.
//
// It is built like the cache of a CPU: a key belongs to one set of eight
// entries, and within the set the one unused the longest makes room. Every word
// is atomic and each set has a version, so that readers take no lock: they read
// again if a writer was at it. Writers of one set wait for each other, which
// takes some tens of nanoseconds. There are no pointers for the garbage
// collector to follow, and memory is touched only as entries come.
type Store struct {
	// Constant after NewStore.
	sets []set
	idle int64 // seconds
	base time.Time

	// Atomic.
	evicted atomic.Uint64
}

type set struct {
	version atomic.Uint32 // odd while a writer is at it
	_       uint32
	entries [ways]slot
}

// slot is an entry in words.
type slot struct {
	key    atomic.Uint64
	tail   atomic.Uint64
	places [len(Entry{}.Places)]atomic.Uint64 // cache<<32 | tokens
	used   atomic.Int64                       // seconds since base, from 1
}

// NewStore returns a store for at most `most` entries, in whole sets, each kept
// for idle after its last use.
func NewStore(most int, idle time.Duration) *Store {
	n := max(1, most/ways)
	return &Store{sets: make([]set, n), idle: max(1, int64(idle/time.Second)), base: time.Now()}
}

// Get returns the entry of k and counts as a use.
func (s *Store) Get(k Key, now time.Time) (Entry, bool) {
	set, clock := s.set(k), s.clock(now)
	for range 8 {
		v := set.version.Load()
		if v&1 != 0 {
			continue
		}
		e, used, ok := set.find(k)
		if set.version.Load() != v {
			continue
		}
		if !ok || clock-used.Load() > s.idle {
			return Entry{}, false
		}
		used.Store(clock)
		return e, true
	}
	return Entry{}, false // writers keep it busy: a miss does no harm
}

// find reads the entry of k, whole only if the set's version stays the same.
func (t *set) find(k Key) (e Entry, used *atomic.Int64, ok bool) {
	for i := range t.entries {
		w := &t.entries[i]
		if w.key.Load() != uint64(k) {
			continue
		}
		e.Tail = Key(w.tail.Load())
		for j := range w.places {
			p := w.places[j].Load()
			e.Places[j] = Place{Cache: uint32(p >> 32), Tokens: uint32(p)}
		}
		return e, &w.used, true
	}
	return Entry{}, nil, false
}

// Put records that under k the conversation tail is now cached at p.
func (s *Store) Put(k, tail Key, p Place, now time.Time) {
	set, clock := s.set(k), s.clock(now)
	set.lock()
	defer set.version.Add(1)
	w, fresh := set.victim(k, clock, s.idle)
	if fresh {
		if w.key.Load() != 0 && clock-w.used.Load() <= s.idle {
			s.evicted.Add(1)
		}
		for j := range w.places {
			w.places[j].Store(0)
		}
		w.key.Store(uint64(k))
	}
	w.tail.Store(uint64(tail))
	w.used.Store(clock)
	w.remember(p)
}

// remember puts p first among the places.
func (w *slot) remember(p Place) {
	carry := uint64(p.Cache)<<32 | uint64(p.Tokens)
	for j := range w.places {
		old := w.places[j].Swap(carry)
		if old == 0 || uint32(old>>32) == p.Cache {
			return
		}
		carry = old
	}
}

// victim returns the slot of k, else one to overwrite: empty, idle for too
// long, or unused the longest.
func (t *set) victim(k Key, clock, idle int64) (w *slot, fresh bool) {
	for i := range t.entries {
		e := &t.entries[i]
		if e.key.Load() == uint64(k) {
			return e, clock-e.used.Load() > idle
		}
		if w == nil || e.used.Load() < w.used.Load() {
			w = e
		}
	}
	return w, true
}

// lock makes the version odd.
func (t *set) lock() {
	for {
		v := t.version.Load()
		if v&1 == 0 && t.version.CompareAndSwap(v, v+1) {
			return
		}
	}
}

// set returns the set that k belongs to.
func (s *Store) set(k Key) *set {
	i, _ := bits.Mul64(uint64(k), uint64(len(s.sets)))
	return &s.sets[i]
}

func (s *Store) clock(now time.Time) int64 {
	return int64(now.Sub(s.base)/time.Second) + 1
}

// Len counts the entries that are not idle for too long. It walks over all of
// them: for metrics only.
func (s *Store) Len(now time.Time) int {
	n, clock := 0, s.clock(now)
	for i := range s.sets {
		for j := range s.sets[i].entries {
			e := &s.sets[i].entries[j]
			if e.key.Load() != 0 && clock-e.used.Load() <= s.idle {
				n++
			}
		}
	}
	return n
}

// Evicted counts the entries that made room before their idle time was over.
func (s *Store) Evicted() uint64 { return s.evicted.Load() }
