// Package recent keeps the newest of what happens, for those who follow it.
//
// Called by extproc, which publishes its decisions so, and by xds, whose page shows them. Its
// one rule: a list is bounded; who follows it too slowly misses the oldest, and can see that.
package recent

import "sync"

// List has the newest items, each with a number: the first put is 1. It is safe for
// concurrent use.
type List[T any] struct {
	// Constant after New.
	most int

	// mu guards the fields below.
	mu   sync.Mutex
	ring []T    // the item of number n at n modulo most
	last uint64 // number of the newest item; 0: none was put
}

// New returns a list of so many items at most.
func New[T any](most int) *List[T] { return &List[T]{most: most, ring: make([]T, 0, most)} }

// Put adds an item, made by its number, in place of the oldest if there is no room.
func (l *List[T]) Put(item func(n uint64) T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	one := item(l.last)
	if len(l.ring) < l.most {
		l.ring = append(l.ring, one) // numbers begin at 1, places at 0
		return
	}
	l.ring[(l.last-1)%uint64(l.most)] = one
}

// Since returns the items after number n, the oldest first, and the number of the newest.
func (l *List[T]) Since(n uint64) ([]T, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n >= l.last {
		return nil, l.last
	}
	if oldest := l.last - uint64(len(l.ring)); n < oldest {
		n = oldest
	}
	all := make([]T, 0, l.last-n)
	for ; n < l.last; n++ {
		all = append(all, l.ring[n%uint64(l.most)])
	}
	return all, l.last
}
