package snapshot

import (
	"context"
	"slices"
	"sync"
)

// mostWaiting is how many wait in a queue: of more the oldest is dropped.
const mostWaiting = 32

// queue is what waits for one goroutine. It is safe for concurrent use.
type queue[T any] struct {
	more chan struct{} // holds one when something waits

	// mu guards the fields below.
	mu   sync.Mutex
	all  []T
	idle chan struct{} // closed when nothing waits, and the last one is done; nil: that is so now
}

func newQueue[T any]() queue[T] { return queue[T]{more: make(chan struct{}, 1)} }

// put puts one at the end, in the place of those that it replaces. It returns how many were
// dropped for lack of room.
func (q *queue[T]) put(x T, replaces func(T) bool) (dropped int) {
	q.mu.Lock()
	q.all = append(slices.DeleteFunc(q.all, replaces), x)
	dropped = max(0, len(q.all)-mostWaiting)
	q.all = slices.Delete(q.all, 0, dropped)
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
	return dropped
}

// take waits for the first one: the one that was taken before is done. ok is false when ctx has
// ended.
func (q *queue[T]) take(ctx context.Context) (x T, ok bool) {
	for {
		q.mu.Lock()
		some := len(q.all) > 0
		switch {
		case some:
			x = q.all[0]
			q.all = slices.Delete(q.all, 0, 1)
		case q.idle != nil:
			close(q.idle)
			q.idle = nil
		}
		q.mu.Unlock()
		if some {
			return x, ctx.Err() == nil
		}
		select {
		case <-q.more:
		case <-ctx.Done():
			return x, false
		}
	}
}

// settled returns a channel that is closed when nothing waits, and what was taken is done.
func (q *queue[T]) settled() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.idle != nil {
		return q.idle
	}
	done := make(chan struct{})
	close(done)
	return done
}
