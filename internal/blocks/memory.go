package blocks

import (
	"sync"
	"sync/atomic"
)

// What the blocks of all engines take of a program's memory is bounded for all of them
// together, as its memory is: however many engines publish, and however many blocks each
// says that it has. One for which there is no room is not taken in, and its engine's word
// counts as incomplete from then on; the room of an engine that is forgotten is free again.

// Bytes that an entry takes at most, in a map of Go that has just grown, beside its part of
// a Set's table, which is counted as it is.
const (
	nameBytes   = 120 // of Names, in both maps
	loggedBytes = 40  // of a Reader
	entryBytes  = 80  // of a Log: in its map, and what segments hold of live and dead ones
)

// DefaultMemory is what the blocks of all engines take at most of a program that was not
// given another limit, in bytes.
const DefaultMemory = 128 << 20

var memory = func() *budget {
	b := new(budget)
	b.most.Store(DefaultMemory)
	return b
}()

// budget is so many bytes.
type budget struct{ most, taken, refused atomic.Int64 }

// SetMemory sets how many bytes the blocks of all engines may take of the process. What is
// there already stays.
func SetMemory(most int64) { memory.most.Store(most) }

// Memory returns how many bytes the blocks of all engines take of the process, how many they
// may, and how often there was no room for one.
func Memory() (taken, most, refused int64) {
	return memory.taken.Load(), memory.most.Load(), memory.refused.Load()
}

// take takes n bytes; false: they are not there.
func (b *budget) take(n int64) bool {
	if b.taken.Add(n) <= b.most.Load() {
		return true
	}
	b.taken.Add(-n)
	b.refused.Add(1)
	return false
}

// charge is what one map has taken: Go's maps keep their memory when entries are deleted,
// so that the most that they ever had counts.
type charge struct{ entries int }

// grow makes sure of room for n entries of so many bytes each.
func (c *charge) grow(n int, each int64) bool {
	if n <= c.entries {
		return true
	}
	if !memory.take(int64(n-c.entries) * each) {
		return false
	}
	c.entries = n
	return true
}

// free gives everything back: the map is another one from now on.
func (c *charge) free(each int64) {
	memory.taken.Add(-int64(c.entries) * each)
	c.entries = 0
}

// Charge is what a log of others, which is kept as it came, takes of the memory of blocks.
// It is safe for concurrent use.
type Charge struct {
	// mu guards the fields below.
	mu    sync.Mutex
	taken int64
	freed bool
}

// Resize makes the log one of so many bytes. It returns false if there is no room for it,
// or Free was called: then it takes what it took.
func (c *Charge) Resize(bytes int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if more := bytes - c.taken; c.freed || more > 0 && !memory.take(more) {
		return false
	} else if more < 0 {
		memory.taken.Add(more)
	}
	c.taken = bytes
	return true
}

// Free gives everything back, for ever. Doing it again does nothing; c may be nil.
func (c *Charge) Free() {
	if c == nil {
		return
	}
	c.Resize(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.freed = true
}
