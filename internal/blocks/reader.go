package blocks

import (
	"maps"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
)

// Reader keeps a Target true to the segments of a log of blocks, as they come and go. It
// is not safe for concurrent use.
//
// The newest segment is the only one that grows, and new ones have larger ids, so that
// most of the time there is only something to append. When anything else comes, all is
// read again.
type Reader struct {
	target   Target
	segments map[uint64]*part // by id
	read     uint64           // the largest id of a segment of which something was read
	logged   map[Key]uint64   // by key: the segment by which it is cached
	charge   charge           // of logged
	refused  bool             // whether target had no room for a block
}

// part is one segment.
type part struct {
	*enginepb.CacheSegment
	size     int
	complete bool
	read     int // how many entries were
}

// NewReader returns a reader of a log of which nothing has come.
func NewReader(target Target) *Reader {
	return &Reader{target: target, segments: map[uint64]*part{}, logged: map[Key]uint64{}}
}

// Put takes in a segment, or one that has grown, of blocks of so many tokens. complete is
// whether the log named all blocks when it was written. The segment must not be changed.
// Read applies it.
func (r *Reader) Put(s *enginepb.CacheSegment, size int, complete bool) {
	p := r.segments[s.GetId()]
	if p == nil {
		p = &part{}
		r.segments[s.GetId()] = p
	}
	p.CacheSegment, p.size, p.complete = s, size, complete
}

// Drop takes in that a segment is no more: what is cached by it alone is cached no more.
func (r *Reader) Drop(id uint64) {
	p := r.segments[id]
	if p == nil {
		return
	}
	delete(r.segments, id)
	for _, k := range p.GetKeys()[:p.read] {
		if r.logged[Key(k)] == id {
			delete(r.logged, Key(k))
			r.target.Drop(Key(k))
		}
	}
	r.know()
}

// Read applies what was put.
func (r *Reader) Read() {
	ids := slices.Sorted(maps.Keys(r.segments))
	again := false
	for _, id := range ids {
		p := r.segments[id]
		again = again || id < r.read && p.read < len(p.GetKeys()) || p.read > len(p.GetKeys())
	}
	if again {
		r.target.Know(Nothing, 0)
		r.target.Clear()
		r.empty()
		r.refused = false
		for _, p := range r.segments {
			p.read = 0
		}
	}
	for _, id := range ids {
		r.apply(id, r.segments[id])
	}
	r.know()
}

// apply reads what a segment has more than was read.
func (r *Reader) apply(id uint64, p *part) {
	if p.read == len(p.GetKeys()) {
		return
	}
	for i := p.read; i < len(p.GetKeys()); i++ {
		k := Key(p.GetKeys()[i])
		_, cached := r.logged[k]
		switch {
		case p.GetTokens()[i] == 0 && cached:
			delete(r.logged, k)
			r.target.Drop(k)
		case p.GetTokens()[i] > 0 && (cached || r.charge.grow(len(r.logged)+1, loggedBytes) && r.target.Add(k)):
			r.logged[k] = id
		case p.GetTokens()[i] > 0:
			r.refused = true
		}
	}
	p.read = len(p.GetKeys())
	r.read = max(r.read, id)
}

// know judges how much is known, by the newest segment.
func (r *Reader) know() {
	newest := uint64(0)
	for id := range r.segments {
		newest = max(newest, id)
	}
	switch p := r.segments[newest]; {
	case p == nil:
		r.target.Know(Nothing, 0)
	case p.complete && !r.refused:
		r.target.Know(Whole, p.size)
	default:
		r.target.Know(Parts, p.size)
	}
}

// Forget forgets all segments.
func (r *Reader) Forget() {
	clear(r.segments)
	r.empty()
	r.read, r.refused = 0, false
	r.target.Know(Nothing, 0)
	r.target.Clear()
}

func (r *Reader) empty() {
	if r.charge.entries > 0 {
		r.logged = map[Key]uint64{}
		r.charge.free(loggedBytes)
	}
}
