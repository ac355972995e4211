package blocks

import (
	"runtime"
	"slices"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
)

const most = 24 << 20

// bounded sets the memory of blocks for a test, beside what others have left, and checks that
// all of it is given back. It returns what is taken.
func bounded(t *testing.T) func() int64 {
	t.Helper()
	others, was, _ := Memory()
	SetMemory(others + most)
	own := func() int64 {
		taken, _, _ := Memory()
		return taken - others
	}
	t.Cleanup(func() {
		SetMemory(was)
		if n := own(); n != 0 {
			t.Errorf("%d bytes are taken of nobody", n)
		}
	})
	return own
}

// heapInUse is the heap after a collection.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// filler is an engine that says that it stores more and more.
type filler interface {
	// more says that 256 further blocks are cached; false: not all were taken in.
	more(n uint64) bool
	forget()
}

type named struct {
	*Names
	set Set
}

func (f *named) more(n uint64) bool {
	s := Stored{Root: true, Size: 1, Tokens: make([]uint32, 256), Hashes: make([]uint64, 256)}
	for i := range s.Hashes {
		s.Tokens[i], s.Hashes[i] = uint32(n), n<<8+uint64(i)
	}
	return f.Store(&s)
}

func (f *named) forget() { f.Forget() }

type logger struct{ *Log }

func (f logger) more(n uint64) bool {
	for i := range uint64(256) {
		if !f.Add(Key(mix(n, i) | 1)) {
			return false
		}
	}
	return true
}

func (f logger) forget() { f.Clear() }

type reading struct {
	*Reader
	set *Set
}

func (f reading) more(n uint64) bool {
	s := &enginepb.CacheSegment{Id: n + 1, Keys: make([]uint64, 256), Tokens: slices.Repeat([]uint32{16}, 256)}
	for i := range s.Keys {
		s.Keys[i] = mix(n, uint64(i)) | 1
	}
	f.Put(s, 16, true)
	f.Read()
	k, _ := f.set.Knowledge()
	return k == Whole
}

func (f reading) forget() { f.Forget() }

// TestBlocksTakeNoMoreMemoryThanAllowed has engines say that they store more than there is
// room for: what all of them take together ends at the bound, and by the heap, too; what one
// of them gives back another one may take.
func TestBlocksTakeNoMoreMemoryThanAllowed(t *testing.T) {
	// segments are what is read, which the sender bounds.
	const segments = 256*12 + 512
	tests := []struct {
		name  string
		make  func() filler
		extra int64 // bytes of 256 blocks that are counted elsewhere
	}{
		{"names and a set", func() filler {
			f := new(named)
			f.Names = NewNames(&f.set)
			return f
		}, 0},
		{"a log", func() filler {
			f := logger{NewLog()}
			f.Know(Whole, 16)
			return f
		}, 0},
		{"a reader and a set", func() filler {
			f := reading{set: new(Set)}
			f.Reader = NewReader(f.set)
			return f
		}, segments},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			own := bounded(t)
			_, _, before := Memory()
			empty := heapInUse()
			var all []filler
			var extra int64
			for n, full := uint64(0), 0; full < 4; n++ { // the first one that has no room, and some more
				f := tt.make()
				all = append(all, f)
				for i := uint64(0); ; i++ {
					if extra += tt.extra; !f.more(n<<20 + i) {
						full++
						break
					}
					if i == 256 {
						break
					}
				}
			}
			taken := own()
			_, _, refused := Memory()
			if taken > most || taken < most*3/4 {
				t.Errorf("%d bytes are taken of %d", taken, most)
			}
			if heap := heapInUse() - empty - extra; heap > most*9/8 || heap < taken/4 {
				t.Errorf("the heap has grown by %d bytes, and %d are counted", heap, taken)
			}
			if refused == before {
				t.Error("nothing is counted as refused")
			}
			all[0].forget()
			if after := own(); after >= taken {
				t.Errorf("%d bytes are taken after one engine was forgotten, %d before", after, taken)
			}
			last := tt.make()
			if all = append(all, last); !last.more(1 << 40) {
				t.Error("there is no room after one engine was forgotten")
			}
			for _, f := range all {
				f.forget()
			}
			runtime.KeepAlive(all)
		})
	}
}
