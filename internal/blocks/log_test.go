package blocks

import (
	"math/rand/v2"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
)

// far is a Set at the other end of the wire: a log's reports are added up to a Cache, whose
// segments go, one by one, to a Reader.
type far struct {
	log    *Log
	cache  *enginepb.Cache // as it was reported
	set    Set
	reader *Reader
}

func newFar() *far {
	f := &far{log: NewLog()}
	f.reader = NewReader(&f.set)
	return f
}

// report sends what is new, the segments in any order.
func (f *far) report(t *testing.T, rng *rand.Rand) {
	t.Helper()
	now := f.log.Cache()
	r := now.Since(f.cache)
	if r == nil {
		return
	}
	if err := r.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	had := f.cache
	f.cache = had.Add(r)
	left := map[uint64]bool{}
	if had != nil {
		for _, s := range had.Segments {
			left[s.GetId()] = true
		}
	}
	for _, i := range rng.Perm(len(f.cache.Segments)) {
		s := f.cache.Segments[i]
		delete(left, s.GetId())
		f.reader.Put(s, int(f.cache.BlockTokens), f.cache.Complete)
		if rng.IntN(20) == 0 {
			f.reader.Read()
		}
	}
	f.reader.Read()
	for id := range left {
		f.reader.Drop(id)
	}
}

// both is a Target for two.
type both [2]Target

func (b both) Know(k Knowledge, size int) {
	for _, t := range b {
		t.Know(k, size)
	}
}

func (b both) Add(k Key) bool { return b[0].Add(k) && b[1].Add(k) }

func (b both) Drop(k Key) {
	for _, t := range b {
		t.Drop(k)
	}
}

func (b both) Clear() {
	for _, t := range b {
		t.Clear()
	}
}

// TestLogAgreesWithItsTwin stores and evicts blocks, and now and then compares the Set that
// got all with the one that has read the log.
func TestLogAgreesWithItsTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var near Set
	f := newFar()
	names := NewNames(both{&near, f.log})
	names.SetKnown(Whole)
	compared := 0
	for step := range 60_000 {
		hash := uint64(rng.IntN(2000)) + 1
		switch n := rng.IntN(15_000); {
		case n == 0:
			names.SetKnown(Parts)
		case n == 1:
			names.SetKnown(Whole)
		case n == 2:
			names.Forget()
		case n == 3:
			names.Clear(0)
		case n == 4:
			f.log.SetEpoch(rng.Uint64N(100))
		case n%2 == 0:
			names.Store(stored(hash, uint32(hash), uint32(rng.IntN(2))))
		default:
			names.Remove(ID{Hash: hash})
		}
		if rng.IntN(200) > 0 && step%5000 != 0 {
			continue
		}
		f.report(t, rng)
		if f.cache == nil {
			continue // the size of blocks is not known
		}
		compared++
		want, _ := near.Knowledge()
		if want == Nothing {
			want = Parts // of which there are none
		}
		if got, size := f.set.Knowledge(); got != want || size != 2 || f.set.Len() != near.Len() {
			t.Fatalf("step %d: knowledge %d of %d blocks of %d tokens, want %d of %d", step, got, f.set.Len(), size, want, near.Len())
		}
		for h := range uint64(2000) {
			for last := range uint32(2) {
				key := Append(nil, Root(""), 0, []uint32{uint32(h) + 1, last, 0}, 2)
				if f.set.Count(key) != near.Count(key) {
					t.Fatalf("step %d: block %d is cached %d times, want %d", step, h, f.set.Count(key), near.Count(key))
				}
			}
		}
	}
	if compared < 150 {
		t.Errorf("compared %d times", compared)
	}
	if n := f.log.entries; n > 2*near.Len()+spareEntries+enginepb.MaxEntries {
		t.Errorf("%d entries for %d blocks", n, near.Len())
	}
}

// TestLogIsBounded stores more blocks than a log may name.
func TestLogIsBounded(t *testing.T) {
	l := NewLog()
	l.Know(Whole, 16)
	for i := range Key(maxLogged) {
		if !l.Add(i + 1) {
			t.Fatalf("block %d is refused", i)
		}
	}
	if l.Add(maxLogged + 1) {
		t.Error("one block more is taken")
	}
	rng := rand.New(rand.NewPCG(9, 10))
	for range 100_000 {
		l.Drop(Key(rng.IntN(maxLogged)) + 1)
		l.Add(Key(rng.IntN(maxLogged))<<20 + 7)
	}
	c := l.Cache()
	if err := (&enginepb.CacheReport{Segments: c.Segments, BlockTokens: c.BlockTokens, Oldest: c.Oldest}).Check(); err != nil {
		t.Error(err)
	}
	if c.BlockTokens != 16 || !c.Complete || l.Tokens() != uint64(16*len(l.logged)) {
		t.Errorf("blocks of %d tokens, complete %v, %d tokens", c.BlockTokens, c.Complete, l.Tokens())
	}
}

// TestLaterLogGoesOn follows a log, and then one that another process has begun.
func TestLaterLogContinues(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	f := newFar()
	names := NewNames(f.log)
	names.SetKnown(Whole)
	for i := range uint64(1000) {
		names.Store(stored(i+1, uint32(i), 1))
	}
	f.report(t, rng)
	if k, _ := f.set.Knowledge(); k != Whole || f.set.Len() != 1000 {
		t.Fatalf("knowledge %d of %d blocks", k, f.set.Len())
	}
	changed := f.log.Changed()
	f.log = NewLog()
	f.log.last += 1_000_000 // a second later
	names = NewNames(f.log)
	names.SetKnown(Whole)
	names.Store(stored(1, 1, 1))
	select {
	case <-changed:
		t.Error("the old log has changed")
	default:
	}
	f.report(t, rng)
	if k, _ := f.set.Knowledge(); k != Whole || f.set.Len() != 1 {
		t.Errorf("knowledge %d of %d blocks, want all of one", k, f.set.Len())
	}
	f.reader.Forget()
	if k, _ := f.set.Knowledge(); k != Nothing || f.set.Len() != 0 {
		t.Errorf("knowledge %d of %d blocks", k, f.set.Len())
	}
}

// FuzzReader reads segments in whatever order: the Set must agree with one that has read
// all at the end.
func FuzzReader(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0x81, 4, 5, 0x42, 7, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		var got, want Set
		r := NewReader(&got)
		all := map[uint64]*enginepb.CacheSegment{}
		for len(in) > 2 {
			id, key, what := uint64(in[0]%5)+1, uint64(in[1]%7)+1, in[2]
			in = in[3:]
			switch {
			case what < 16:
				for id = 1; id < 6 && all[id] == nil; id++ { // the oldest goes first
				}
				delete(all, id)
				r.Drop(id)
				continue
			case what < 32:
				r.Read()
				continue
			}
			s := &enginepb.CacheSegment{Id: id}
			if old := all[id]; old != nil {
				s.Keys, s.Tokens = append(s.Keys, old.Keys...), append(s.Tokens, old.Tokens...)
			}
			s.Keys, s.Tokens = append(s.Keys, key), append(s.Tokens, uint32(what%2))
			all[id] = s
			r.Put(s, 1, true)
		}
		r.Read()
		naive := map[uint64]bool{}
		for id := range uint64(7) {
			if s := all[id]; s != nil {
				for i, k := range s.Keys {
					naive[k] = s.Tokens[i] > 0
				}
			}
		}
		for k, cached := range naive {
			if cached {
				want.Add(Key(k))
			}
		}
		for k := range Key(8) {
			if k > 0 && got.Count([]Key{k}) != want.Count([]Key{k}) {
				t.Errorf("key %d: %d, want %d", k, got.Count([]Key{k}), want.Count([]Key{k}))
			}
		}
	})
}
