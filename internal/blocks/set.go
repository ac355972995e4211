package blocks

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Set is the blocks that one engine has cached, to look prompts up in: a Target.
// Readers take no lock.
type Set struct {
	// Atomic.
	known atomic.Uint32 // Knowledge
	size  atomic.Int32  // tokens in a block; 0: not known yet
	table atomic.Pointer[blockTable]

	// mu guards the field below, and writes to the table.
	mu sync.Mutex
	n  int // keys in the table
}

// Knowledge returns how much is known, and how many tokens a block has.
func (s *Set) Knowledge() (k Knowledge, size int) {
	return Knowledge(s.known.Load()), int(s.size.Load())
}

// Know takes in how much is known.
func (s *Set) Know(k Knowledge, size int) {
	s.known.Store(uint32(k))
	s.size.Store(int32(size))
}

// Add lets readers find a new key; a table that is full makes room for twice as many.
// It returns false if that does not help, as somebody has made keys that collide, or if
// the blocks of all engines take too much memory.
func (s *Set) Add(key Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.table.Load()
	if old != nil && old.put(key) {
		s.n++
		return true
	}
	n := max(minBuckets, s.n/bucketWays*2)
	for range maxDoublings {
		size := tableBytes(n)
		if !memory.take(size) {
			return false
		}
		if t := newBlockTable(n); t.copy(old) && t.put(key) {
			s.replaceLocked(t)
			s.n++
			return true
		}
		memory.taken.Add(-size)
		n *= 2
	}
	return false
}

// replaceLocked puts a table in place of the one before, and gives back what that has taken.
func (s *Set) replaceLocked(t *blockTable) {
	if old := s.table.Swap(t); old != nil {
		memory.taken.Add(-tableBytes(len(old.buckets)))
	}
}

// Drop takes a key out.
func (s *Set) Drop(key Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.table.Load(); t != nil && t.drop(key) {
		s.n--
	}
}

// Clear takes all keys out.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replaceLocked(nil)
	s.n = 0
}

// Count returns how many blocks of a prompt, from its first on, are cached.
func (s *Set) Count(prompt []Key) int {
	t := s.table.Load()
	if t == nil {
		return 0
	}
	for i, k := range prompt {
		if !t.has(k) {
			return i
		}
	}
	return len(prompt)
}

// Len is how many different blocks are cached.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// A bucket is a line of the CPU's cache. Each key has two that it may be in: so
// nearly all slots are used before a table must grow.
const (
	bucketWays = 8
	minBuckets = 16
	// maxDoublings is how often a table that is full is made larger at once.
	maxDoublings = 3
)

// blockTable is a set of keys for one writer and many readers.
type blockTable struct {
	buckets [][bucketWays]atomic.Uint64
	shift   uint8
}

// newBlockTable returns a table of at least so many buckets.
func newBlockTable(buckets int) *blockTable {
	log := bits.Len(uint(buckets - 1))
	return &blockTable{buckets: make([][bucketWays]atomic.Uint64, 1<<log), shift: uint8(64 - log)}
}

// tableBytes is what a table of at least so many buckets takes.
func tableBytes(buckets int) int64 {
	return bucketWays * 8 << bits.Len(uint(buckets-1))
}

// homes are the buckets that a key may be in.
func (t *blockTable) homes(k Key) (a, b *[bucketWays]atomic.Uint64) {
	return &t.buckets[uint64(k)*0x9e3779b97f4a7c15>>(t.shift&63)], &t.buckets[uint64(k)*0xd6e8feb86659fd93>>(t.shift&63)]
}

func (t *blockTable) has(k Key) bool {
	a, b := t.homes(k)
	return slotOf(a, uint64(k)) != nil || slotOf(b, uint64(k)) != nil
}

// slotOf returns the slot with a word, or nil; a free one has 0.
func slotOf(bucket *[bucketWays]atomic.Uint64, word uint64) *atomic.Uint64 {
	for i := range bucket {
		if bucket[i].Load() == word {
			return &bucket[i]
		}
	}
	return nil
}

// put adds a key that is not there, in the emptier bucket. It returns false if both
// are full.
func (t *blockTable) put(k Key) bool {
	a, b := t.homes(k)
	if filled(b) < filled(a) {
		a = b
	}
	free := slotOf(a, 0)
	if free == nil {
		return false
	}
	free.Store(uint64(k))
	return true
}

func filled(bucket *[bucketWays]atomic.Uint64) (n int) {
	for i := range bucket {
		if bucket[i].Load() != 0 {
			n++
		}
	}
	return n
}

// drop takes a key out. It returns whether the key was there.
func (t *blockTable) drop(k Key) bool {
	a, b := t.homes(k)
	s := slotOf(a, uint64(k))
	if s == nil {
		s = slotOf(b, uint64(k))
	}
	if s != nil {
		s.Store(0)
	}
	return s != nil
}

// copy adds all keys of another table, which may be nil. It returns false if there is no
// room for one of them.
func (t *blockTable) copy(from *blockTable) bool {
	if from == nil {
		return true
	}
	for i := range from.buckets {
		for j := range from.buckets[i] {
			if k := from.buckets[i][j].Load(); k != 0 && !t.put(Key(k)) {
				return false
			}
		}
	}
	return true
}
