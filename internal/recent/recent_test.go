package recent

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestListAgreesWithAll compares lists with ones that forget nothing.
func TestListAgreesWithAll(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		most := 1 + r.IntN(8)
		l := New[uint64](most)
		var all []uint64
		for range r.IntN(30) {
			l.Put(func(n uint64) uint64 { return n })
			all = append(all, uint64(len(all)+1))
			since := r.Uint64N(uint64(len(all)) + 2)
			want := all[max(min(int(since), len(all)), len(all)-most):]
			got, last := l.Since(since)
			if !slices.Equal(got, want) || last != uint64(len(all)) {
				t.Fatalf("of %d items, %d at most, Since(%d) = %v, %d; want %v", len(all), most, since, got, last, want)
			}
		}
	}
}

func TestEmptyListHasNothing(t *testing.T) {
	if got, last := New[int](3).Since(0); len(got) != 0 || last != 0 {
		t.Errorf("Since(0) = %v, %d", got, last)
	}
}

// TestRate lets its number through at once, and then one each interval.
func TestRate(t *testing.T) {
	r, now := NewRate(10, 4), time.Unix(1e9, 0)
	taken := func(n int, d time.Duration) (taken int) {
		for range n {
			if now = now.Add(d); r.Take(now) {
				taken++
			}
		}
		return taken
	}
	if got := taken(10, 0); got != 4 {
		t.Errorf("at once: %d, want 4", got)
	}
	if got := taken(100, 10*time.Millisecond); got < 9 || got > 10 {
		t.Errorf("in the next second: %d, want 10", got)
	}
	if got := taken(10, time.Hour); got != 10 {
		t.Errorf("seldom: %d, want all of 10", got)
	}
}
