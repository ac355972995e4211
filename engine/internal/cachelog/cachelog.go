// Package cachelog keeps the log of what a backend's KV cache holds, by the keys
// that extproc gives to the beginnings of prompts.
//
// Called by api for each request and by main, which knows how large the cache is; read by
// status. Its one rule: the log says what the backend did, and memory is bounded
// whatever clients send.
//
// The log is an LRU list that can be reported in increments: a beginning that is used
// again is logged again in the newest segment, and the oldest segment is dropped
// when what the newer ones name fills the cache. So single evictions need no
// report.
package cachelog

import (
	"sync"
	"sync/atomic"

	"millrace.dev/millrace/engine/enginepb"
)

// Log is safe for concurrent use.
type Log struct {
	// Atomic.
	malformed atomic.Uint64 // headers that could not be read
	misses    atomic.Uint64 // beginnings that were evicted earlier than thought

	// mu guards the fields below.
	mu       sync.Mutex
	epoch    uint64
	size     int64            // tokens that the cache holds as far as is known; 0: not known
	learned  int64            // the same, by what was found evicted; 0: nothing was
	segments []*segment       // oldest first, the last one is open
	places   map[uint64]place // by key: where it was last logged
	live     int64            // tokens, of all segments
	next     uint64           // id of the next segment; they grow over restarts
	latest   *enginepb.Cache  // what Cache returned last; nil: it has changed
	changed  chan struct{}    // closed when it changes; nil: nobody waits for that

	restorable map[uint64]uint32 // tokens by key: see SetRestorable
}

// segment is one span of the log.
type segment struct {
	id     uint64
	keys   []uint64
	tokens []uint32
	live   int64 // tokens that no newer segment has
}

// place is where a key was last logged.
type place struct {
	at *segment
	// tokens as logged.
	tokens uint32
	// whole is whether it is a whole prompt that was answered.
	whole bool
	// restorable is whether it is not cached, but can be at once.
	restorable bool
}

// perCache is into how many segments a full cache falls at least: what is dropped
// at once is no more than that part of it. A log of all its segments covers at least
// four times what the cache holds, of which much may be named several times.
const perCache = 16

// leastEvidence is how many tokens must be found evicted to be believed: of a few
// the backend may have found less for other reasons.
const leastEvidence = 32

const (
	// leastSize is the smallest cache that is believed in, in tokens.
	leastSize = 1 << 10
	// growth is by which part of it a cache that was found smaller than thought is
	// taken to be larger again after each claim that held.
	growth = 32
)

// Use is one request's use of the cache.
type Use struct {
	chain []Link
	epoch uint64
	// fresh is, for each link that was not in the log before, the tokens that it
	// brought; -1: it was there.
	fresh []int64
	// claim is the whole prompt that was answered before and that this one
	// continues, in tokens; 0: there is none. It was last used in segment, and since
	// then so many others were.
	claim   int64
	segment uint64
	since   int64
}

// Links returns the beginnings that a header names; none if it is malformed, which
// is counted.
func (l *Log) Links(header string) []Link {
	links, err := Parse(header)
	if err != nil {
		l.malformed.Add(1)
		return nil
	}
	return links
}

// Malformed counts the headers that could not be read.
func (l *Log) Malformed() uint64 { return l.malformed.Load() }

// Misses counts the answers that showed that the log had claimed too much.
func (l *Log) Misses() uint64 { return l.misses.Load() }

// Reset empties the log if epoch is another start of the backend than before.
func (l *Log) Reset(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == epoch {
		return
	}
	l.epoch, l.segments, l.places, l.live, l.learned = epoch, nil, nil, 0, 0
	l.touchLocked()
	for k := range l.restorable {
		l.restoreLocked(k)
	}
}

// Resize says how many tokens the cache holds; 0: not known.
func (l *Log) Resize(tokens int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size != tokens {
		l.size = tokens
		l.dropLocked()
	}
}

// Begin logs that the backend works on a prompt with these beginnings, the shortest
// first. Fail or Finish must follow.
//
// A prompt is not known by all of its beginnings, and the next turn may be known by
// others. So tokens are counted from one beginning that is in the log to the next;
// only what lies behind the last of them, and behind its answer, is new.
func (l *Log) Begin(chain []Link) *Use {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := &Use{chain: chain, epoch: l.epoch, fresh: make([]int64, len(chain))}
	l.claimLocked(u)
	known := len(chain) - 1
	for known >= 0 && l.cachedLocked(chain[known].Key).at == nil {
		known--
	}
	counted := uint32(0)
	for i, k := range chain {
		p := l.cachedLocked(k.Key)
		switch {
		case p.at != nil:
			u.fresh[i] = -1
			to := k.Tokens
			switch {
			case i == len(chain)-1:
				to = max(to, p.tokens) // with an answer, in whose place Finish puts the next one
			case i == known:
				to = max(to, min(p.tokens, chain[len(chain)-1].Tokens))
			}
			l.putLocked(k, int64(to)-int64(counted), 0, false)
			counted = to
		case i < known:
			l.putLocked(k, 0, 0, false)
		default:
			u.fresh[i] = max(0, int64(k.Tokens)-int64(counted))
			counted = max(counted, k.Tokens)
			l.putLocked(k, 0, u.fresh[i], false)
		}
	}
	return u
}

// claimLocked finds out how much of u's prompt the backend must have cached.
func (l *Log) claimLocked(u *Use) {
	for i := len(u.chain) - 1; i >= 0; i-- {
		p := l.cachedLocked(u.chain[i].Key)
		if p.at == nil {
			continue
		}
		if !p.whole || u.chain[i].Tokens < leastEvidence {
			return // others may use it at this moment, so that it can't be had
		}
		u.claim, u.segment = int64(u.chain[i].Tokens), p.at.id
		for _, s := range l.segments {
			if s.id > p.at.id {
				u.since += s.live
			}
		}
		return
	}
}

// Fail says that the backend has not begun to answer: what is new in the prompt is
// not cached.
func (l *Log) Fail(u *Use) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.epoch != l.epoch {
		return
	}
	for i, k := range u.chain {
		if p, ok := l.places[k.Key]; ok && u.fresh[i] >= 0 && !p.whole {
			l.putLocked(Link{Key: k.Key}, u.fresh[i], -u.fresh[i], false)
			delete(l.places, k.Key)
			l.restoreLocked(k.Key)
		}
	}
}

// Finish says that the answer is whole: of the prompt so many tokens had been in
// the cache, and now prompt and answer are.
func (l *Log) Finish(u *Use, prompt, cached, completion uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.epoch != l.epoch || len(u.chain) == 0 {
		return
	}
	l.learnLocked(u, int64(min(cached, maxTokens)))
	last := uint32(0)
	for _, k := range u.chain {
		if l.cachedLocked(k.Key).at == nil { // another request's failure took it away, or it is dropped
			l.putLocked(k, 0, max(0, int64(k.Tokens)-int64(last)), false)
		}
		last = k.Tokens
	}
	end := u.chain[len(u.chain)-1]
	all := uint32(min(max(prompt, uint64(end.Tokens))+completion, maxTokens))
	before := uint32(0)
	if n := len(u.chain); n > 1 {
		before = u.chain[n-2].Tokens
	}
	counted := int64(max(end.Tokens, l.cachedLocked(end.Key).tokens)) // with an earlier answer to the same prompt
	l.putLocked(Link{Key: end.Key, Tokens: all}, counted-int64(before), int64(all)-counted, true)
}

// learnLocked compares what was claimed of a prompt with what the backend found.
// What it evicted it had used last of all that was claimed to be there still: what
// is older is gone as well, and the cache is smaller than thought.
func (l *Log) learnLocked(u *Use, cached int64) {
	size := l.sizeLocked()
	switch {
	case u.claim == 0:
	case cached >= u.claim/2:
		if l.learned != 0 {
			l.learned = max(l.learned, u.since) + l.learned/growth
		}
	default:
		l.misses.Add(1)
		if size == 0 {
			size = u.since
		}
		l.learned = max((size+min(size, u.since))/2, leastSize)
		for len(l.segments) > 1 && l.segments[0].id < u.segment {
			l.dropOldestLocked()
		}
		l.dropLocked()
	}
}

// Other says that so many tokens are cached whose keys nobody has named.
func (l *Log) Other(tokens uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := int64(min(tokens, maxTokens))
	l.openLocked().live += n
	l.live += n
	l.dropLocked()
}

// putLocked logs a key. Of its tokens so many go with it from where it was, as far
// as they are there; fresh ones come to them, or if fewer than none, go. A link of no
// tokens says that it is gone.
func (l *Log) putLocked(k Link, moved, fresh int64, whole bool) {
	s := l.openLocked()
	was := l.cachedLocked(k.Key)
	ok := was.at != nil
	if ok {
		moved = max(0, min(moved, was.at.live))
		was.at.live -= moved
		s.live += moved
		if k.Tokens > 0 && !whole {
			k.Tokens = max(k.Tokens, was.tokens) // with the answer behind it
		}
	}
	if !ok || was.at != s || was.tokens != k.Tokens {
		s.keys, s.tokens = append(s.keys, k.Key), append(s.tokens, k.Tokens)
		l.touchLocked()
	}
	fresh = max(fresh, -s.live) // what is taken back was there, whatever lengths a client names
	s.live += fresh
	l.live += fresh
	l.places[k.Key] = place{at: s, tokens: k.Tokens, whole: whole}
	l.dropLocked()
}

// openLocked returns the segment that takes the next entry.
func (l *Log) openLocked() *segment {
	if l.places == nil {
		l.places = make(map[uint64]place)
	}
	if n := len(l.segments); n > 0 {
		s := l.segments[n-1]
		size := l.sizeLocked()
		if len(s.keys) < enginepb.MaxEntries && (size == 0 || s.live < max(1, size/perCache)) {
			return s
		}
	}
	l.next++
	s := &segment{id: l.next}
	l.segments = append(l.segments, s)
	l.touchLocked()
	return s
}

// sizeLocked returns how many tokens the cache is taken to hold; 0: not known.
func (l *Log) sizeLocked() int64 {
	if l.learned != 0 && (l.size == 0 || l.learned < l.size) {
		return l.learned
	}
	return l.size
}

// dropLocked drops what the newer segments have evicted.
func (l *Log) dropLocked() {
	size := l.sizeLocked()
	for len(l.segments) > enginepb.MaxSegments || len(l.segments) > 1 && size > 0 && l.live-l.segments[0].live >= size {
		l.dropOldestLocked()
	}
}

func (l *Log) dropOldestLocked() {
	s := l.segments[0]
	l.live -= s.live
	l.segments = append(l.segments[:0], l.segments[1:]...)
	var gone []uint64
	for _, k := range s.keys {
		if l.places[k].at == s {
			delete(l.places, k)
			gone = append(gone, k)
		}
	}
	l.touchLocked()
	for _, k := range gone {
		l.restoreLocked(k)
	}
}

// Cache returns what is cached, as the contract has it.
func (l *Log) Cache() *enginepb.Cache {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.latest != nil {
		return l.latest
	}
	c := &enginepb.Cache{Epoch: l.epoch, Oldest: l.next + 1}
	for _, s := range l.segments {
		c.Oldest = min(c.Oldest, s.id)
		n := len(s.keys)
		c.Segments = append(c.Segments, &enginepb.CacheSegment{Id: s.id, Keys: s.keys[:n:n], Tokens: s.tokens[:n:n]})
	}
	l.latest = c
	return c
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

// Tokens returns how many tokens are known to be cached.
func (l *Log) Tokens() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(max(0, l.live))
}
