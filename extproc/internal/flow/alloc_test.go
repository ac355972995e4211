//go:build !race

package flow

import "testing"

func TestEnterAllocatesNothing(t *testing.T) {
	w := newTwin(t)
	w.room.places.Store(10)
	a := Ask{Policy: w.policy, Priority: Sheddable, Tokens: 100, Now: w.now}
	n := testing.AllocsPerRun(100, func() {
		got := w.q.Enter(&a, w.room)
		got.Pass.Reserved()
		got.Pass.Release(w.now)
	})
	if n != 0 {
		t.Errorf("a request that finds a place allocates %v times", n)
	}
}

func BenchmarkEnter(b *testing.B) {
	w := newTwin(nil)
	w.room.places.Store(10)
	a := Ask{Policy: w.policy, Priority: Standard, Tokens: 100, Now: w.now}
	for b.Loop() {
		got := w.q.Enter(&a, w.room)
		got.Pass.Reserved()
		got.Pass.Release(w.now)
	}
}
