// Package coalesce gathers calls that a backend answers better together than one after the
// other, such as embeddings of single texts that come from many clients.
//
// Called by api: who comes first leads a batch, others join it until it is sealed, and each gets
// its part of the answer. Nobody waits while nothing of the kind is in the backend. Else a batch
// is gathered until it is full, or until nothing is there any more, for Deadline at most; and
// in any case while it waits in the engine's queue. That is group commit, as databases have it
// for their logs (Gawlick and Kinkade 1985), with a deadline as batchers of inference servers
// have one (Clipper, NSDI 2017), which load alone makes longer than nothing.
//
// Its one rule: a batch that was sealed gets no more members, and what is in it is sent once.
package coalesce

import (
	"context"
	"sync"
	"time"
)

// Longest bounds how long a batch is gathered before it gets into the queue.
const Longest = 5 * time.Millisecond

// usualWeight is the weight of the newest call in how long calls take usually.
const usualWeight = 0.1

// Deadline is how long a batch is gathered while running calls of the kind are in a backend of so
// many slots, which take so long usually: at most half of that, as long as all slots are busy, and
// less with fewer; nothing, while none is.
func Deadline(running, slots int, usual time.Duration) time.Duration {
	if running < 1 || slots < 1 || usual <= 0 {
		return 0
	}
	return min(Longest, time.Duration(float64(usual)/2*min(1, float64(running)/float64(slots))))
}

// Size is what a batch holds at most.
type Size struct {
	Inputs int
	Tokens int64
}

// Batcher gathers calls with equal keys.
type Batcher[K comparable, C, R any] struct {
	// mu guards the fields below, and those of its batches.
	mu      sync.Mutex
	open    map[K]*Batch[K, C, R] // those that may be joined
	waiting int                   // members of batches that were not sealed
	running int                   // batches that were sealed and have not ended
	usual   time.Duration         // that they take
}

// Member is one call in a batch.
type Member[C, R any] struct {
	Call C
	// Tokens of its input.
	Tokens int64
	// Result is set by the leader before the batch has ended.
	Result R

	left bool
}

// Batch is calls that are sent as one.
type Batch[K comparable, C, R any] struct {
	// Constant.
	batcher *Batcher[K, C, R]
	key     K
	size    Size
	ctx     context.Context // ends when all members have left
	cancel  context.CancelFunc
	ready   chan struct{} // closed when there is nothing to wait for
	done    chan struct{} // closed when it has ended

	// Guarded by the Batcher's mu.
	members []*Member[C, R]
	tokens  int64
	living  int
	hurried bool // whether ready is closed
	sealed  time.Time
}

// New returns a Batcher without calls.
func New[K comparable, C, R any]() *Batcher[K, C, R] {
	return &Batcher[K, C, R]{open: map[K]*Batch[K, C, R]{}}
}

// Join has a call be a member of the batch of its key. Whoever leads a batch must End it. ctx
// gives the values of the batch's context, and nothing else.
func (b *Batcher[K, C, R]) Join(ctx context.Context, key K, size Size, call C, tokens int64) (batch *Batch[K, C, R], m *Member[C, R], leads bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m = &Member[C, R]{Call: call, Tokens: tokens}
	batch = b.open[key]
	if batch != nil && (batch.living == 0 || batch.tokens+tokens > batch.size.Tokens) {
		batch.closeLocked()
		batch = nil
	}
	if batch == nil {
		leads = true
		batch = &Batch[K, C, R]{batcher: b, key: key, size: size, ready: make(chan struct{}), done: make(chan struct{})}
		batch.ctx, batch.cancel = context.WithCancel(context.WithoutCancel(ctx))
		b.open[key] = batch
	}
	batch.members, batch.tokens, batch.living = append(batch.members, m), batch.tokens+tokens, batch.living+1
	b.waiting++
	if len(batch.members) >= size.Inputs || batch.tokens >= size.Tokens {
		batch.closeLocked()
	}
	return batch, m, leads
}

// closeLocked lets nobody join any more.
func (b *Batch[K, C, R]) closeLocked() {
	if b.batcher.open[b.key] == b {
		delete(b.batcher.open, b.key)
	}
	b.hurryLocked()
}

func (b *Batch[K, C, R]) hurryLocked() {
	if !b.hurried {
		b.hurried = true
		close(b.ready)
	}
}

// Context ends when all members have left, or the batch has ended.
func (b *Batch[K, C, R]) Context() context.Context { return b.ctx }

// Done is closed when the batch has ended: then members have their results.
func (b *Batch[K, C, R]) Done() <-chan struct{} { return b.done }

// Gather waits for others to join, of a backend with so many slots.
func (b *Batch[K, C, R]) Gather(slots int) {
	b.batcher.mu.Lock()
	wait := Deadline(b.batcher.running, slots, b.batcher.usual)
	b.batcher.mu.Unlock()
	if wait == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.ready:
	case <-b.ctx.Done():
	}
}

// Seal lets nobody join any more, and returns who has not left.
func (b *Batch[K, C, R]) Seal(now time.Time) (members []*Member[C, R]) {
	b.batcher.mu.Lock()
	defer b.batcher.mu.Unlock()
	b.closeLocked()
	b.sealed = now
	b.batcher.running++
	b.batcher.waiting -= b.living
	for _, m := range b.members {
		if !m.left {
			members = append(members, m)
		}
	}
	return members
}

// Leave has a member get no answer. It need not be called once the batch has ended.
func (b *Batch[K, C, R]) Leave(m *Member[C, R]) {
	b.batcher.mu.Lock()
	defer b.batcher.mu.Unlock()
	if m.left {
		return
	}
	m.left = true
	if b.sealed.IsZero() {
		b.tokens -= m.Tokens
		b.batcher.waiting--
	}
	if b.living--; b.living == 0 {
		b.closeLocked()
		b.cancel()
	}
}

// End gives the members of a batch their results, which were set. It is called by who leads it,
// once; of a batch that was never sealed, too.
func (b *Batch[K, C, R]) End(now time.Time) {
	r := b.batcher
	r.mu.Lock()
	defer r.mu.Unlock()
	b.closeLocked()
	b.cancel()
	close(b.done)
	if b.sealed.IsZero() {
		r.waiting -= b.living
		return
	}
	took := now.Sub(b.sealed)
	if r.usual == 0 {
		r.usual = took
	}
	r.usual += time.Duration(usualWeight * float64(took-r.usual))
	if r.running--; r.running == 0 {
		for _, other := range r.open {
			other.hurryLocked()
		}
	}
}

// Waiting is how many calls have joined batches that are not sealed, and have not left.
func (b *Batcher[K, C, R]) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}
