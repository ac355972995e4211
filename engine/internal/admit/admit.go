// Package admit bounds what an engine lets in: as many requests at a time as keep the
// goal of the model's answers, at most as many as the backend has slots, and a bounded
// queue in front of them, in which the more urgent stand before the others.
//
// Called by api for each request, and read by status and the load report. Its one
// rule: each ticket is released exactly once.
//
// The queue, where there is a goal for first tokens: those who have waited too long to keep
// it are late. Late critical requests go before anybody's standard ones; other late ones go
// last, but that each fourth place is the oldest's; late sheddable ones are refused. So a
// rush makes a few wait long, and not everybody a little too long.
package admit

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Why a request is not let in.
var (
	// ErrFull is that the queue has no room.
	ErrFull = errors.New("all slots are busy and the queue is full")
	// ErrLate is that a sheddable request has waited too long.
	ErrLate = errors.New("all slots are busy, and the goal for the first token can't be kept")
)

// Priority is who goes first.
type Priority uint8

// The priorities, the most urgent first.
const (
	Critical Priority = iota
	Standard
	Sheddable
	priorities
)

// fairEvery is at which places the oldest goes first, whoever it is.
const fairEvery = 4

// Limits are what a Gate lets in.
type Limits struct {
	// Slots is how many requests the backend runs at a time.
	Slots int
	// Queue is how many may wait; one more is refused.
	Queue int
	Goal  Goal
}

// Load is what the engine has to do now.
type Load struct {
	// Slots is how many may run at a time: Limit says why that is not all that the backend has.
	Running, Waiting, Slots int
	Limit                   string
	// Tokens that running and waiting requests may still need.
	Tokens int64
}

// Gate lets requests in.
type Gate struct {
	// Atomic.
	tokens atomic.Int64
	paced  atomic.Bool // whether there is a goal: else nothing need be measured

	// mu guards the fields below.
	mu      sync.Mutex
	limiter limiter
	room    int // requests that may wait; one more is refused
	running int
	waiting [priorities]list.List // of *Ticket, oldest first
	late    [priorities]list.List // those of them that have waited too long, oldest first
	queued  int
	taken   uint64 // requests ever let in
	shut    bool   // whether none is let in
}

// Ticket is a request that was let in, or waits.
type Ticket struct {
	gate     *Gate
	priority Priority
	since    time.Time
	turn     chan struct{} // closed when it may run, or was refused
	refused  error         // set before turn is closed
	// Where it waits; guarded by the gate's mu.
	queue *list.List
	place *list.Element
	// tokens that it may still need.
	tokens atomic.Int64
	once   sync.Once

	// Of the one who has the ticket.
	last time.Time // when it was let in, or its last token came
}

// Set sets the limits. Those who run or wait already stay.
func (g *Gate) Set(l Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.room = l.Queue
	g.limiter.set(l.Slots, l.Goal)
	g.paced.Store(l.Goal != Goal{})
	g.admitLocked()
}

// Acquire waits for a slot for a request that may need so many tokens. The
// caller must Release the ticket. The error is ErrFull, ErrLate, or the cause of ctx's end.
func (g *Gate) Acquire(ctx context.Context, p Priority, tokens int64) (*Ticket, error) {
	t := &Ticket{gate: g, priority: p, since: time.Now()}
	patience, err := g.enter(t, tokens)
	if err != nil {
		return nil, err
	}
	if t.turn == nil {
		t.last = t.since
		return t, nil
	}
	var late <-chan time.Time // a nil one waits for ever
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-t.turn:
		if t.refused != nil {
			return nil, t.refused
		}
		t.last = time.Now()
		return t, nil
	case <-late:
		g.leave(t)
		return nil, ErrLate
	case <-ctx.Done():
		g.leave(t)
		return nil, context.Cause(ctx)
	}
}

// enter takes a slot, or a place in the queue: then the ticket has a turn, and patience is
// how long the request may wait for it; 0: as long as its client.
func (g *Gate) enter(t *Ticket, tokens int64) (patience time.Duration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	free := g.running < g.limiter.now() && g.queued == 0 && !g.shut
	room := g.room
	if g.shut {
		room += g.limiter.most // those who will be let in as soon as it is opened
	}
	if !free && g.queued >= room && !g.displaceLocked(t.priority) {
		return 0, ErrFull
	}
	t.tokens.Store(tokens)
	g.tokens.Add(tokens)
	if free {
		g.running++
		g.taken++
		return 0, nil
	}
	t.turn = make(chan struct{})
	g.queued++
	t.waitLocked(&g.waiting[t.priority])
	g.admitLocked()
	if t.priority == Sheddable {
		patience = g.limiter.goal.First
	}
	return patience, nil
}

// displaceLocked refuses the newest of the least urgent that waits, if it is less urgent
// than p.
func (g *Gate) displaceLocked(p Priority) bool {
	for victim := priorities - 1; victim > p; victim-- {
		for _, queue := range []*list.List{&g.late[victim], &g.waiting[victim]} {
			if last := queue.Back(); last != nil {
				t := last.Value.(*Ticket)
				g.takeLocked(t)
				g.tokens.Add(-t.tokens.Swap(0))
				t.refused = ErrFull
				close(t.turn)
				return true
			}
		}
	}
	return false
}

// waitLocked puts the ticket at the end of a queue.
func (t *Ticket) waitLocked(queue *list.List) { t.queue, t.place = queue, queue.PushBack(t) }

// takeLocked takes one out of its queue.
func (g *Gate) takeLocked(t *Ticket) {
	t.queue.Remove(t.place)
	g.queued--
}

// leave gives up waiting. A turn that came at the same moment goes to the next.
func (g *Gate) leave(t *Ticket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens.Add(-t.tokens.Swap(0))
	select {
	case <-t.turn:
		if t.refused == nil {
			g.running--
			g.admitLocked()
		}
	default:
		g.takeLocked(t)
	}
}

// admitLocked gives free slots to those who wait.
func (g *Gate) admitLocked() {
	for g.running < g.limiter.now() && g.queued > 0 && !g.shut {
		t := g.nextLocked(time.Now())
		g.takeLocked(t)
		g.running++
		g.taken++
		close(t.turn)
	}
	g.limiter.pressed = g.limiter.pressed || g.queued > 0
}

// nextLocked is who goes first, of one or more that wait.
func (g *Gate) nextLocked(now time.Time) *Ticket {
	if first := g.limiter.goal.First; first > 0 {
		for p := range priorities {
			for e := g.waiting[p].Front(); e != nil && now.Sub(e.Value.(*Ticket).since) > first; e = g.waiting[p].Front() {
				t := e.Value.(*Ticket)
				t.queue.Remove(e)
				t.waitLocked(&g.late[p])
			}
		}
	}
	if g.taken%fairEvery == 0 {
		if t := g.oldestLocked(); t != nil {
			return t
		}
	}
	for _, queue := range []*list.List{
		&g.waiting[Critical], &g.late[Critical], &g.waiting[Standard], &g.waiting[Sheddable], &g.late[Standard],
	} {
		if e := queue.Front(); e != nil {
			return e.Value.(*Ticket)
		}
	}
	return g.late[Sheddable].Front().Value.(*Ticket)
}

// oldestLocked is the late one that has waited longest; nil: nobody is late.
func (g *Gate) oldestLocked() *Ticket {
	var oldest *Ticket
	for p := range priorities {
		if e := g.late[p].Front(); e != nil && (oldest == nil || e.Value.(*Ticket).since.Before(oldest.since)) {
			oldest = e.Value.(*Ticket)
		}
	}
	return oldest
}

// Begun says that the request's first token has come.
func (t *Ticket) Begun() { t.measured(t.lap(), 0, 0) }

// Generated says that n more tokens have come.
func (t *Ticket) Generated(n int64) {
	t.Progress(n)
	t.measured(0, n, t.lap())
}

// Measured takes what the backend has measured of an answer that came whole: the time to
// its first token, and of the n after it together.
func (t *Ticket) Measured(first time.Duration, n int64, took time.Duration) {
	if n > 0 && first > 0 && took > 0 {
		t.measured(first, n, took)
	}
}

// lap is the time since it was let in, or since the last lap.
func (t *Ticket) lap() time.Duration {
	last := t.last
	t.last = time.Now()
	return t.last.Sub(last)
}

// measured takes how long a first token took, if first is not 0, and n others together.
func (t *Ticket) measured(first time.Duration, n int64, took time.Duration) {
	g := t.gate
	if !g.paced.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if first > 0 {
		g.limiter.first(first)
	}
	if n > 0 && g.limiter.token(n, took, g.running, time.Now()) {
		g.admitLocked()
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
	g.shut = g.shut || g.running == 0 && g.queued == 0
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
	return g.queued, g.taken, g.shut
}

// Load returns the present load.
func (g *Gate) Load() Load {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Load{Running: g.running, Waiting: g.queued, Slots: g.limiter.now(), Limit: g.limiter.why, Tokens: g.tokens.Load()}
}
