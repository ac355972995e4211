// Package admit bounds what an engine lets in: as many requests at a time as keep the
// goal of the model's answers (pace decides), at most as many as the backend has slots, and a
// bounded queue in front of them, in which the more urgent stand before the others.
//
// Called by api for each request, and read by status and the load report. Its one
// rule: each ticket is released exactly once.
//
// The queue, where there is a goal for first tokens: those who have waited too long to keep
// it are late. Late critical requests go before anybody's standard ones; other late ones go
// last, but that each fourth place is the oldest's. So a rush makes a few wait long, and not
// everybody a little too long. Sheddable ones are refused at once where, by those before
// them and by how long requests are in the backend, they would be late: when they come, when more urgent
// ones push them back, and when the limit shrinks. What runs is never ended for others: its
// client has a part of the answer, and what it has cost would be lost.
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
	// Prefill is how many tokens of a prompt the backend was measured to work on in a second; 0: not known.
	Prefill float64
}

// Load is what the engine has to do now.
type Load struct {
	// Slots is how many may run at a time: Limit says why that is not all that the backend has.
	Running, Waiting, Slots int
	Limit                   string
	// Tokens that running and waiting requests may still need.
	Tokens int64
}

// Counts are of what a Gate has done since it is there.
type Counts struct {
	// Full, Displaced and Late requests were refused: the queue had no room for them, it was
	// given to more urgent ones, or they were sheddable and could not be in time.
	Full, Displaced, Late uint64
	// Grown and Shrunk are how often the limit was changed by what was measured.
	Grown, Shrunk uint64
	// Kept and Missed are answers that kept the goal, the wait in the queue included, and those that did not.
	Kept, Missed uint64
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
	counts  Counts
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

	// Where its sample of the present window is; guarded by the gate's mu.
	window uint64
	sample int

	// Of the one who has the ticket.
	entered time.Time // when it was let in
	begun   time.Time // when its first token came; zero: it has not
	last    time.Time // when its last token came; zero: the next one's time does not count
	// What the tokens after the first took.
	n    int64
	took time.Duration
}

// Set sets the limits. Those who run or wait already stay.
func (g *Gate) Set(l Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.room = l.Queue
	g.limiter.set(l)
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
		t.entered = t.since
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
		t.entered = time.Now()
		return t, nil
	case <-late:
		g.leave(t, true)
		return nil, ErrLate
	case <-ctx.Done():
		g.leave(t, false)
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
		g.counts.Full++
		return 0, ErrFull
	}
	t.tokens.Store(tokens)
	g.tokens.Add(tokens)
	if free {
		g.runLocked()
		return 0, nil
	}
	t.turn = make(chan struct{})
	g.queued++
	t.waitLocked(&g.waiting[t.priority])
	g.admitLocked()
	g.shedLocked(t.since)
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
				g.refuseLocked(last.Value.(*Ticket), ErrFull)
				g.counts.Displaced++
				return true
			}
		}
	}
	return false
}

// shedLocked refuses the sheddable requests that wait and are not expected to be in time, from
// the last one on.
func (g *Gate) shedLocked(now time.Time) {
	first := g.limiter.goal.First
	if first == 0 || g.limiter.wait(0) == 0 || g.shut {
		return
	}
	queue := &g.waiting[Sheddable]
	urgent := g.late[Critical].Len() + g.waiting[Critical].Len() + g.waiting[Standard].Len()
	for last := queue.Back(); last != nil; last = queue.Back() {
		t := last.Value.(*Ticket)
		if now.Sub(t.since)+g.limiter.wait(urgent+queue.Len()-1) <= first {
			return
		}
		g.refuseLocked(t, ErrLate)
		g.counts.Late++
	}
}

// refuseLocked refuses one that waits.
func (g *Gate) refuseLocked(t *Ticket, why error) {
	g.takeLocked(t)
	g.tokens.Add(-t.tokens.Swap(0))
	t.refused = why
	close(t.turn)
}

// waitLocked puts the ticket at the end of a queue.
func (t *Ticket) waitLocked(queue *list.List) { t.queue, t.place = queue, queue.PushBack(t) }

// takeLocked takes one out of its queue.
func (g *Gate) takeLocked(t *Ticket) {
	t.queue.Remove(t.place)
	g.queued--
}

// leave gives up waiting, as it is late or for another reason. A turn that came at the same
// moment goes to the next.
func (g *Gate) leave(t *Ticket, late bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens.Add(-t.tokens.Swap(0))
	if late && t.refused == nil {
		g.counts.Late++
	}
	select {
	case <-t.turn:
		if t.refused == nil {
			g.endLocked()
		}
	default:
		g.takeLocked(t)
	}
}

// runLocked lets one in.
func (g *Gate) runLocked() {
	if g.running == 0 && g.paced.Load() {
		g.limiter.busy(time.Now())
	}
	g.running++
	g.taken++
}

// endLocked gives a slot to who is next.
func (g *Gate) endLocked() {
	g.running--
	g.admitLocked()
	if g.running == 0 && g.paced.Load() {
		g.limiter.idle(time.Now())
	}
}

// admitLocked gives free slots to those who wait.
func (g *Gate) admitLocked() {
	for g.running < g.limiter.now() && g.queued > 0 && !g.shut {
		t := g.nextLocked(time.Now())
		g.takeLocked(t)
		g.runLocked()
		close(t.turn)
	}
	g.limiter.pressed = g.limiter.pressed || g.queued > 0 && !g.shut
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

// Begun, Measured and Release of a nil Ticket, which is of a request that came in with another's,
// do nothing.

// Begun says that the first token of an answer to a prompt of so many tokens has come, or the
// whole answer where no tokens are generated.
func (t *Ticket) Begun(prompt int64) {
	if t == nil || !t.gate.paced.Load() {
		return
	}
	t.begun = time.Now()
	t.measured(t.begun.Sub(t.entered), prompt, 0, 0)
}

// Generated says that n more tokens have come. What came with the first one took no time of
// its own.
func (t *Ticket) Generated(n int64) {
	t.Progress(n)
	if !t.gate.paced.Load() {
		return
	}
	last := t.last
	if t.last = time.Now(); !last.IsZero() {
		t.measured(0, 0, n, t.last.Sub(last))
	}
}

// Blocked says that the client has held the answer up: how long the next tokens take is not
// the backend's doing.
func (t *Ticket) Blocked() { t.last = time.Time{} }

// Measured takes what the backend has measured of an answer that came whole: the time to
// its first token, with a prompt of so many, and of the n after it together. It does not
// count where the request was not in the backend for as long.
func (t *Ticket) Measured(first time.Duration, prompt, n int64, took time.Duration) {
	if t == nil || n <= 0 || first <= 0 || took <= 0 || !t.gate.paced.Load() {
		return
	}
	if inside := time.Since(t.entered); first > inside || took > inside-first {
		return
	}
	t.begun = t.entered.Add(first)
	t.measured(first, prompt, n, took)
}

// measured takes how long a first token took, if first is not 0, and n others together.
func (t *Ticket) measured(first time.Duration, prompt, n int64, took time.Duration) {
	g := t.gate
	t.n, t.took = t.n+n, t.took+took
	g.mu.Lock()
	defer g.mu.Unlock()
	if first > 0 {
		g.limiter.first(first, prompt)
	}
	if n > 0 {
		g.limiter.sample(t, n, took)
	}
	now, before := time.Now(), g.limiter.now()
	if !g.limiter.end(g.running, g.queued > 0, now) {
		return
	}
	if g.limiter.now() > before {
		g.counts.Grown++
		g.admitLocked()
	} else {
		g.counts.Shrunk++
		g.shedLocked(now)
	}
}

// More says that the request needs n tokens more: those of others that come in with it.
func (t *Ticket) More(n int64) {
	t.tokens.Add(n)
	t.gate.tokens.Add(n)
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
	if t == nil {
		return
	}
	t.once.Do(func() {
		g := t.gate
		g.tokens.Add(-t.tokens.Swap(0))
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.paced.Load() {
			t.accountLocked(time.Now())
		}
		g.endLocked()
	})
}

// accountLocked counts an answer that has begun.
func (t *Ticket) accountLocked(now time.Time) {
	g, goal := t.gate, t.gate.limiter.goal
	g.limiter.serve(now.Sub(t.entered))
	first := t.begun.Sub(t.since)
	switch {
	case t.begun.IsZero():
	case goal.First > 0 && first > goal.First, goal.Token > 0 && t.n > 0 && t.took/time.Duration(t.n) > goal.Token:
		g.counts.Missed++
	default:
		g.counts.Kept++
	}
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

// Counts returns what was counted.
func (g *Gate) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts
}

// Load returns the present load.
func (g *Gate) Load() Load {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Load{Running: g.running, Waiting: g.queued, Slots: g.limiter.now(), Limit: g.limiter.state.Why, Tokens: g.tokens.Load()}
}
