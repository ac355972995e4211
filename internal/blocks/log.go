package blocks

import (
	"sync"
	"time"

	"millrace.dev/millrace/engine/enginepb"
)

// Bounds of a Log.
const (
	// maxLogged is how many blocks are logged at a time: with as many dead entries as a
	// third of them, they fill the segments that a log may have.
	maxLogged = enginepb.MaxBlockSegments * enginepb.MaxEntries / 4 * 3
	// spareEntries is how many dead entries a log may have beside as many as there are
	// blocks before it is compacted.
	spareEntries = 4 * enginepb.MaxEntries
)

// Log writes down what is cached as the log of blocks that CacheReports carry: a Target,
// safe for concurrent use. A block that is stored or evicted is one entry more. The
// oldest segments are dropped when most of the entries are dead; what is still cached of
// them is logged again before.
type Log struct {
	// mu guards the fields below.
	mu       sync.Mutex
	epoch    uint64
	size     int // tokens in a block; 0: not known
	complete bool
	segments []*segment       // oldest first; the last one is open
	logged   map[Key]*segment // by key of a block that is cached: where it was last logged
	charge   charge           // of logged and segments
	entries  int              // of all segments
	last     uint64           // id of the last segment
	latest   *enginepb.Cache  // what Cache returned last; nil: it has changed
	changed  chan struct{}    // closed when it changes; nil: nobody waits for that
}

// segment is a piece of the log.
type segment struct {
	id     uint64
	keys   []uint64
	tokens []uint32
	full   *enginepb.CacheSegment // as the contract has it; nil: it may grow
}

// NewLog returns a log of which nothing is known. Its segments' ids begin at the time, in
// microseconds: a later log of the same cache, of another process, continues behind them.
func NewLog() *Log {
	return &Log{last: uint64(max(1, time.Now().UnixMicro())), logged: map[Key]*segment{}}
}

// SetEpoch sets the start of the engine whose cache it is. What is logged stays: it is
// for the Names before the log to forget what another start has evicted.
func (l *Log) SetEpoch(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch != epoch {
		l.epoch = epoch
		l.touchLocked()
	}
}

// Know takes in how much is known. The size of blocks, once known, holds until another
// one is.
func (l *Log) Know(k Knowledge, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if size > 0 && size != l.size {
		l.clearLocked()
		l.size = size
	}
	if complete := k == Whole; complete != l.complete {
		l.complete = complete
		l.openLocked()
	}
}

// Add logs a block that is cached from now on.
func (l *Log) Add(k Key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.logged) >= maxLogged || !l.charge.grow(len(l.logged)+1, entryBytes) {
		return false
	}
	l.appendLocked(k, uint32(l.size))
	l.compactLocked()
	return true
}

// Drop logs that a block is cached no more.
func (l *Log) Drop(k Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logged[k] == nil {
		return
	}
	l.appendLocked(k, 0)
	l.compactLocked()
}

// Clear drops all segments.
func (l *Log) Clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLocked()
}

func (l *Log) clearLocked() {
	if l.entries == 0 {
		return
	}
	l.segments, l.entries, l.logged = nil, 0, map[Key]*segment{}
	l.charge.free(entryBytes)
	l.openLocked()
}

// appendLocked writes an entry: a block of so many tokens, 0 for one that is evicted.
func (l *Log) appendLocked(k Key, tokens uint32) {
	s := l.lastLocked()
	if s == nil || len(s.keys) == enginepb.MaxEntries {
		s = l.openLocked()
	}
	s.keys, s.tokens = append(s.keys, uint64(k)), append(s.tokens, tokens)
	l.entries++
	if tokens > 0 {
		l.logged[k] = s
	} else {
		delete(l.logged, k)
	}
	l.touchLocked()
}

func (l *Log) lastLocked() *segment {
	if len(l.segments) == 0 {
		return nil
	}
	return l.segments[len(l.segments)-1]
}

// openLocked opens a segment for what comes next, in place of an empty one.
func (l *Log) openLocked() *segment {
	if s := l.lastLocked(); s != nil && len(s.keys) == 0 {
		l.segments = l.segments[:len(l.segments)-1]
	}
	l.last++
	s := &segment{id: l.last}
	l.segments = append(l.segments, s)
	l.touchLocked()
	return s
}

// compactLocked drops the oldest segments while there are too many, or too many dead
// entries.
func (l *Log) compactLocked() {
	for len(l.segments) > 1 && (l.entries > 2*len(l.logged)+spareEntries || len(l.segments) > enginepb.MaxBlockSegments) {
		oldest := l.segments[0]
		for i, k := range oldest.keys {
			if oldest.tokens[i] > 0 && l.logged[Key(k)] == oldest {
				l.appendLocked(Key(k), oldest.tokens[i])
			}
		}
		l.segments = append(l.segments[:0], l.segments[1:]...)
		l.entries -= len(oldest.keys)
		l.touchLocked()
	}
}

// Cache returns what is cached, as the contract has it; nil: the size of blocks is not
// known yet.
func (l *Log) Cache() *enginepb.Cache {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size == 0 {
		return nil
	}
	if l.latest != nil {
		return l.latest
	}
	c := &enginepb.Cache{Epoch: l.epoch, Oldest: l.last + 1, BlockTokens: uint32(l.size), Complete: l.complete}
	for i, s := range l.segments {
		c.Oldest = min(c.Oldest, s.id)
		c.Segments = append(c.Segments, s.asContract(i < len(l.segments)-1))
	}
	l.latest = c
	return c
}

// asContract returns the segment as the contract has it; full is whether it grows no
// more.
func (s *segment) asContract(full bool) *enginepb.CacheSegment {
	if s.full != nil {
		return s.full
	}
	n := len(s.keys)
	out := &enginepb.CacheSegment{Id: s.id, Keys: s.keys[:n:n], Tokens: s.tokens[:n:n]}
	if full {
		s.full = out
	}
	return out
}

// Changed returns a channel that is closed when Cache has something new.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// touchLocked notes that there is something new.
func (l *Log) touchLocked() {
	l.latest = nil
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Tokens returns how many tokens the log names.
func (l *Log) Tokens() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.logged) * l.size)
}
