// Package enginepb is the contract of one engine, made of engine.proto, and what
// the reports of a stream about the KV cache add up to.
//
// Served by engine; nodeagent and xds hand the reports on. Its one rule: a Cache is
// never changed, so that everybody may keep the one that he knows.
package enginepb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// The bounds of a log, as the contract has them.
const (
	// MaxSegments is how many segments a log of prompts has at most, MaxBlockSegments
	// how many one of blocks has.
	MaxSegments      = 64
	MaxBlockSegments = 1024
	// MaxEntries is how many entries a segment has at most.
	MaxEntries = 256
)

// Cache is what is known of a backend's KV cache; nil: nothing.
type Cache struct {
	// Epoch is the start of the backend whose cache it is.
	Epoch uint64
	// BlockTokens is how many tokens a block has; 0: the log is one of prompts.
	BlockTokens uint32
	// Complete is whether a log of blocks names all that is cached.
	Complete bool
	// Oldest is the smallest id that is not dropped.
	Oldest uint64
	// Segments are whole, by growing id.
	Segments []*CacheSegment
}

// Bytes is about what c takes of memory in a program that hands it on: as it came, and as
// it is sent. c may be nil.
func (c *Cache) Bytes() (n int64) {
	if c == nil {
		return 0
	}
	for _, s := range c.Segments {
		n += segmentBytes + int64(len(s.GetKeys()))*entryBytes
	}
	return n
}

// What Bytes counts for a segment, and for an entry: twelve bytes, in slices that may be
// nearly twice as large, and encoded.
const (
	segmentBytes = 1 << 10
	entryBytes   = 40
)

// Check returns which rule r breaks that the protobuf definition can't say.
func (r *CacheReport) Check() error {
	if n, most := len(r.GetSegments()), maxSegments(r.GetBlockTokens()); n > most {
		return fmt.Errorf("segments: %d; must be %d at most", n, most)
	}
	var last uint64
	for i, s := range r.GetSegments() {
		switch n := len(s.GetKeys()); {
		case len(s.GetTokens()) != n:
			return fmt.Errorf("segments[%d]: %d keys and %d tokens; must be as many", i, n, len(s.GetTokens()))
		case int(s.GetFrom())+n > MaxEntries:
			return fmt.Errorf("segments[%d]: %d entries from %d on; must be %d at most in all", i, n, s.GetFrom(), MaxEntries)
		case s.GetId() <= last:
			return fmt.Errorf("segments[%d].id: %d after %d; must grow", i, s.GetId(), last)
		case s.GetId() < r.GetOldest():
			return errors.New("oldest: is beyond the id of a segment")
		}
		last = s.GetId()
	}
	return nil
}

// maxSegments is how many segments a log has at most whose blocks have so many tokens.
func maxSegments(blockTokens uint32) int {
	if blockTokens > 0 {
		return MaxBlockSegments
	}
	return MaxSegments
}

// continues reports whether a log of an epoch and of blocks of a size is c's.
func (c *Cache) continues(epoch uint64, blockTokens uint32) bool {
	return c != nil && c.Epoch == epoch && c.BlockTokens == blockTokens
}

// Add returns what is known after a report that keeps the rules. It may have been
// added before, or have all from the beginning on. c may be nil, and so may r.
func (c *Cache) Add(r *CacheReport) *Cache {
	if r == nil {
		return c
	}
	next := &Cache{Epoch: r.GetEpoch(), Oldest: r.GetOldest(), BlockTokens: r.GetBlockTokens(), Complete: r.GetComplete()}
	if c.continues(next.Epoch, next.BlockTokens) {
		next.Oldest = max(next.Oldest, c.Oldest)
		next.Segments = slices.DeleteFunc(slices.Clone(c.Segments), func(s *CacheSegment) bool { return s.GetId() < next.Oldest })
	}
	for _, s := range r.GetSegments() {
		next.append(s)
	}
	if n := len(next.Segments) - maxSegments(next.BlockTokens); n > 0 {
		next.Segments, next.Complete = next.Segments[n:], false
		next.Oldest = next.Segments[0].GetId()
	}
	return next
}

// append takes in what s has more. What does not join on is left out: there are
// entries between that nobody knows, so the log is not complete.
func (c *Cache) append(s *CacheSegment) {
	i, found := slices.BinarySearchFunc(c.Segments, s.GetId(), func(s *CacheSegment, id uint64) int {
		return cmp.Compare(s.GetId(), id)
	})
	if !found {
		if s.GetFrom() == 0 && s.GetId() >= c.Oldest {
			c.Segments = slices.Insert(c.Segments, i, s)
		} else {
			c.Complete = c.Complete && s.GetId() < c.Oldest
		}
		return
	}
	have, from := c.Segments[i], int(s.GetFrom())
	if from > len(have.GetKeys()) {
		c.Complete = false
		return
	}
	if from+len(s.GetKeys()) <= len(have.GetKeys()) {
		return
	}
	c.Segments[i] = &CacheSegment{
		Id:     s.GetId(),
		Keys:   slices.Concat(have.GetKeys()[:from], s.GetKeys()),
		Tokens: slices.Concat(have.GetTokens()[:from], s.GetTokens()),
	}
}

// Since returns the report by which whoever has before comes to have c; nil if that
// is the same, or nothing is known.
func (c *Cache) Since(before *Cache) *CacheReport {
	if c == nil || c == before {
		return nil
	}
	r := &CacheReport{Epoch: c.Epoch, Oldest: c.Oldest, BlockTokens: c.BlockTokens, Complete: c.Complete}
	if !before.continues(c.Epoch, c.BlockTokens) {
		r.Segments = c.Segments
		return r
	}
	for i, j := 0, 0; i < len(c.Segments); i++ {
		s := c.Segments[i]
		for j < len(before.Segments) && before.Segments[j].GetId() < s.GetId() {
			j++
		}
		switch {
		case j == len(before.Segments) || before.Segments[j].GetId() != s.GetId():
			r.Segments = append(r.Segments, s)
		case len(before.Segments[j].GetKeys()) < len(s.GetKeys()):
			n := len(before.Segments[j].GetKeys())
			r.Segments = append(r.Segments, &CacheSegment{Id: s.GetId(), From: uint32(n), Keys: s.GetKeys()[n:], Tokens: s.GetTokens()[n:]})
		}
	}
	if len(r.Segments) == 0 && c.Oldest == before.Oldest && c.Complete == before.Complete {
		return nil
	}
	return r
}
