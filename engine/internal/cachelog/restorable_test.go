package cachelog

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhatCanBeRestoredIsLogged(t *testing.T) {
	var l Log
	l.Resize(1600)
	l.SetRestorable(map[uint64]uint32{2: 140, 9: 500})
	want := func(what string, all map[uint64]uint32) {
		t.Helper()
		if diff := cmp.Diff(all, cached(l.Cache())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	want("at first", map[uint64]uint32{2: 140, 9: 500})
	chain := []Link{{1, 40}, {2, 120}, {3, 200}}
	if got := l.Have(chain); got != 0 {
		t.Errorf("Have() = %d before anything is cached", got)
	}
	answer(&l, 120, 30, chain[:2]...)
	want("answered", map[uint64]uint32{1: 40, 2: 150, 9: 500})
	if got := l.Have(chain); got != 150 {
		t.Errorf("Have() = %d, want 150: prompt and answer", got)
	}
	if got := l.Tokens(); got != 150 {
		t.Errorf("Tokens() = %d, want 150: the cache holds no more", got)
	}
	for i := range uint64(40) { // evict it
		answer(&l, 100, 0, Link{100 + i, 100})
	}
	if got := cached(l.Cache()); got[1] != 0 || got[2] != 140 || got[9] != 500 {
		t.Errorf("evicted, and not restorable but 2 and 9: %v", got)
	}
	u := l.Begin(chain[:2])
	l.Fail(u)
	if got := cached(l.Cache()); got[2] != 140 {
		t.Errorf("after a request that failed %d is restorable, want 140", got[2])
	}
	l.Reset(7) // the backend was started again
	want("started again", map[uint64]uint32{2: 140, 9: 500})
	l.SetRestorable(map[uint64]uint32{9: 510})
	want("one is gone", map[uint64]uint32{9: 500})
	l.SetRestorable(map[uint64]uint32{9: 900})
	want("one is worth more", map[uint64]uint32{9: 900})
}

// TestSnapshotsAreNotMissed: what the log has named as restorable is no claim about the cache.
func TestSnapshotsAreNotMissed(t *testing.T) {
	var l Log
	l.Resize(1600)
	l.SetRestorable(map[uint64]uint32{2: 140})
	u := l.Begin([]Link{{1, 40}, {2, 120}, {3, 200}})
	l.Finish(u, 200, 0, 10)
	if l.Misses() != 0 || l.Tokens() != 210 {
		t.Errorf("Misses() = %d, Tokens() = %d, want 0 and 210", l.Misses(), l.Tokens())
	}
}
