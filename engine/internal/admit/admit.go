// Package admit bounds what an engine lets in: as many requests at a time as the
// backend has slots, a bounded queue in front of them, first come first served.
//
// Called by api for each request, and read by status and the load report. Its one
// rule: each ticket is released exactly once.
package admit

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// ErrFull is returned when the queue has no room.
var ErrFull = errors.New("all slots are busy and the queue is full")

// Load is what the engine has to do now.
type Load struct {
	Running, Waiting, Slots int
	// Tokens that running and waiting requests may still need.
	Tokens int64
}

// Gate lets requests in.
type Gate struct {
	// Atomic.
	tokens atomic.Int64

	// mu guards the fields below.
	mu      sync.Mutex
	slots   int
	queue   int // requests that may wait; one more is refused
	running int
	waiting list.List // of *Ticket, oldest first
	taken   uint64    // requests ever let in
	shut    bool      // whether none is let in
}

// Ticket is a request that was let in, or waits.
type Ticket struct {
	gate *Gate
	turn chan struct{} // closed when it may run
	// tokens that it may still need.
	tokens atomic.Int64
	once   sync.Once
}

// Resize sets the limits. Those who run or wait already stay.
func (g *Gate) Resize(slots, queue int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slots, g.queue = slots, queue
	g.admitLocked()
}

// Acquire waits for a slot for a request that may need so many tokens. The
// caller must Release the ticket. The error is ErrFull, or the cause of ctx's end.
func (g *Gate) Acquire(ctx context.Context, tokens int64) (*Ticket, error) {
	t := &Ticket{gate: g}
	place, err := g.enter(t, tokens)
	if err != nil {
		return nil, err
	}
	if place == nil {
		return t, nil
	}
	select {
	case <-t.turn:
		return t, nil
	case <-ctx.Done():
		g.leave(t, place)
		return nil, context.Cause(ctx)
	}
}

// enter takes a slot, or a place in the queue.
func (g *Gate) enter(t *Ticket, tokens int64) (*list.Element, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	free := g.running < g.slots && g.waiting.Len() == 0 && !g.shut
	room := g.queue
	if g.shut {
		room += g.slots // those who will be let in as soon as it is opened
	}
	if !free && g.waiting.Len() >= room {
		return nil, ErrFull
	}
	t.tokens.Store(tokens)
	g.tokens.Add(tokens)
	if free {
		g.running++
		g.taken++
		return nil, nil
	}
	t.turn = make(chan struct{})
	return g.waiting.PushBack(t), nil
}

// leave gives up waiting. A turn that came at the same moment goes to the next.
func (g *Gate) leave(t *Ticket, place *list.Element) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens.Add(-t.tokens.Swap(0))
	select {
	case <-t.turn:
		g.running--
		g.admitLocked()
	default:
		g.waiting.Remove(place)
	}
}

// admitLocked gives free slots to the oldest in the queue.
func (g *Gate) admitLocked() {
	for g.running < g.slots && g.waiting.Len() > 0 && !g.shut {
		t := g.waiting.Remove(g.waiting.Front()).(*Ticket)
		g.running++
		g.taken++
		close(t.turn)
	}
}

// Progress says that n of the request's tokens are done.
func (t *Ticket) Progress(n int64) {
	if n = min(n, t.tokens.Load()); n > 0 {
		t.tokens.Add(-n)
		t.gate.tokens.Add(-n)
	}
}

// Release gives the slot back. Calls after the first do nothing.
func (t *Ticket) Release() {
	t.once.Do(func() {
		g := t.gate
		g.tokens.Add(-t.tokens.Swap(0))
		g.mu.Lock()
		defer g.mu.Unlock()
		g.running--
		g.admitLocked()
	})
}

// Shut lets nobody in from now on, unless somebody is in or waits: then it does nothing.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = g.shut || g.running == 0 && g.waiting.Len() == 0
}

// Open undoes Shut.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
	g.admitLocked()
}

// Demand returns how many wait, how many were ever let in, and whether the gate is shut.
func (g *Gate) Demand() (waiting int, taken uint64, shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting.Len(), g.taken, g.shut
}

// Load returns the present load.
func (g *Gate) Load() Load {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Load{Running: g.running, Waiting: g.waiting.Len(), Slots: g.slots, Tokens: g.tokens.Load()}
}
