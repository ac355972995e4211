package flow

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// refreshEvery is how often the room is measured. In between each
	// that leaves lets one in.
	refreshEvery = 50 * time.Millisecond
	// longestRetry bounds the wait that a refused client is asked for.
	longestRetry = 60 * time.Second
	// paceShare is what one more counts in the pace of a queue.
	paceShare = 0.2
)

// Queue is where requests for one model wait.
type Queue struct {
	// Constant after newQueue.
	metrics *queueMetrics

	// Atomic.
	inside   atomic.Int64    // requests that have a pass
	entering atomic.Int64    // those of them that their endpoint's load does not show yet
	most     [2]atomic.Int64 // passes: for critical requests, for others
	waiting  atomic.Int64
	due      atomic.Int64 // when to measure the room again, in Unix nanoseconds

	// mu guards the fields below.
	mu      sync.Mutex
	classes [priorities]class
	pace    float64   // between two that come in from the queue, in nanoseconds; 0: unknown
	last    time.Time // when the last one did; zero: none since the queue was empty
}

func newQueue(m *queueMetrics) *Queue {
	q := &Queue{metrics: m}
	q.most[0].Store(unlimited)
	q.most[1].Store(unlimited)
	return q
}

// idle reports whether nobody has a pass, and nobody waits for one.
func (q *Queue) idle() bool { return q.inside.Load() == 0 && q.waiting.Load() == 0 }

// Ticket is a position in the queue.
type Ticket struct {
	// C has room for the one outcome: the ticket is settled when it holds something.
	C chan Outcome

	queue    *Queue
	priority Priority
	tenant   *tenant
	at       position
	tokens   int64
	since    time.Time
	until    time.Time
	wait     time.Duration // from since until until, at first
	latest   time.Time     // until at most, while the first endpoint is on its way
	overdue  bool          // whether it is admitted at until, room or not

	state ticketState // guarded by queue.mu
}

type ticketState uint8

const (
	queued ticketState = iota
	admitted
	done // turned away, given up, or its Pass taken
)

// Outcome is how a wait ended: with a Pass, or a Refusal.
type Outcome struct {
	Pass    Pass
	Refusal Refusal
}

// Enter asks for a pass.
func (q *Queue) Enter(a *Ask, r Room) Answer {
	if a.Policy.Queue == 0 && !r.Awaits(a.Now) {
		return Answer{Pass: q.force()}
	}
	q.refresh(a.Policy, r, a.Now)
	if q.waiting.Load() == 0 && q.take(a.Priority) {
		return Answer{Pass: Pass{queue: q}}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.enterLocked(a, r)
}

// Full reports whether so much waits that sheddable requests are better served by a
// smaller model.
func (q *Queue) Full(p *Policy) bool {
	n := q.waiting.Load()
	return n > 0 && float64(n) >= p.DegradeAt*float64(p.Queue)
}

// Try takes a pass if there is one, and nobody waits for it.
func (q *Queue) Try(a *Ask, r Room) (Pass, bool) {
	if a.Policy.Queue == 0 && !r.Awaits(a.Now) {
		return q.force(), true
	}
	q.refresh(a.Policy, r, a.Now)
	if q.waiting.Load() == 0 && q.take(a.Priority) {
		return Pass{queue: q}, true
	}
	return Pass{}, false
}

// force takes a pass, whether there is one or not.
func (q *Queue) force() Pass {
	q.entering.Add(1)
	q.inside.Add(1)
	return Pass{queue: q}
}

// take takes a pass if there is one.
func (q *Queue) take(p Priority) bool {
	most := &q.most[min(p, 1)]
	q.entering.Add(1) // before it is inside: see look
	for {
		n := q.inside.Load()
		if n >= most.Load() {
			q.entering.Add(-1)
			return false
		}
		if q.inside.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// refresh finds how many passes there are, if that is due.
func (q *Queue) refresh(p *Policy, r Room, now time.Time) {
	due := q.due.Load()
	if now.UnixNano() < due || !q.due.CompareAndSwap(due, now.Add(refreshEvery).UnixNano()) {
		return
	}
	// In this order what happens meanwhile makes passes fewer, never more.
	inside := q.inside.Load()
	entering := q.entering.Load()
	free, bounded := r.Room(p.Allowance, now)
	if !bounded || p.Queue == 0 && !r.Awaits(now) {
		q.most[0].Store(unlimited)
		q.most[1].Store(unlimited)
		return
	}
	most := inside + int64(free) - entering
	q.most[0].Store(most)
	q.most[1].Store(most - int64(p.Reserve*float64(most)))
}

// Refresh finds at once how many passes there are, and fills them: endpoints have come
// or gone.
func (q *Queue) Refresh(p *Policy, r Room, now time.Time) {
	q.due.Store(0)
	q.refresh(p, r, now)
	q.mu.Lock()
	q.pumpLocked(now)
	q.mu.Unlock()
}

func (q *Queue) enterLocked(a *Ask, r Room) Answer {
	c := &q.classes[a.Priority]
	wait, most, overdue := a.patience()
	bound := wait
	if r.Comes(a.Now) {
		bound = most
	}
	// One that nobody is before may wait in any case: by it the pace is learned.
	if expect := q.expectLocked(a.Priority); a.Priority != Critical && q.waiting.Load() > 0 && expect > bound && !overdue {
		return q.refuse(a.Priority, Refusal{Hopeless, retry(expect)})
	}
	places := a.Policy.Queue
	if places == 0 { // it waits for the first endpoint
		places = leastQueue
	}
	if q.waiting.Load() >= int64(places) {
		victim := q.newestBelowLocked(a.Priority)
		if victim == nil {
			return q.refuse(a.Priority, Refusal{Full, retry(q.expectLocked(a.Priority))})
		}
		q.removeLocked(victim)
		q.settleLocked(victim, Refusal{Full, retry(q.expectLocked(victim.priority))})
	}
	t := &Ticket{
		C: make(chan Outcome, 1), queue: q, priority: a.Priority, tokens: max(1, int64(a.Tokens)),
		since: a.Now, until: a.Now.Add(wait), wait: wait, latest: a.Now.Add(most), overdue: overdue,
	}
	c.push(t, a.Tenant)
	q.waiting.Add(1)
	q.metrics.waiting[a.Priority].Inc()
	// Whoever left before it was counted as waiting let nobody in.
	q.pumpLocked(a.Now)
	if t.state == admitted {
		t.state = done
		return Answer{Pass: (<-t.C).Pass}
	}
	return Answer{Ticket: t}
}

// patience is how long the request may wait, and most for an endpoint that is on its way, and
// whether it is admitted after wait.
func (a *Ask) patience() (wait, most time.Duration, overdue bool) {
	g := a.Policy.Gateway
	wait, most = a.Policy.MaxWait[a.Priority], g
	if a.Patience > 0 {
		wait, most = min(wait, a.Patience), min(most, a.Patience)
	}
	if wait > g {
		return g, g, a.Priority != Sheddable
	}
	return wait, max(wait, most), false
}

// refuse counts one that is turned away before it has waited.
func (q *Queue) refuse(p Priority, r Refusal) Answer {
	q.metrics.sheds[p][r.Reason].Inc()
	return Answer{Refusal: r}
}

// newestBelowLocked returns the newest ticket of the lowest class below p; nil: there
// is none.
func (q *Queue) newestBelowLocked(p Priority) *Ticket {
	for low := priorities - 1; low > p; low-- {
		if t := q.classes[low].newest(); t != nil {
			return t
		}
	}
	return nil
}

// oldest returns how many wait, and since when the oldest does.
func (q *Queue) oldest() (n int, since time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for p := range q.classes {
		c := &q.classes[p]
		if n += c.n; c.n == 0 {
			continue
		}
		if t := c.age.Front().Value.(*Ticket); since.IsZero() || t.since.Before(since) {
			since = t.since
		}
	}
	return n, since
}

// expectLocked is how long a newcomer is expected to wait.
func (q *Queue) expectLocked(p Priority) time.Duration {
	before := 1
	for c := Critical; c <= p; c++ {
		before += q.classes[c].n
	}
	return time.Duration(min(float64(before)*q.pace, math.MaxInt64/2))
}

// pumpLocked lets in whom there are passes for.
func (q *Queue) pumpLocked(now time.Time) {
	for {
		t := q.nextLocked()
		if t == nil || !q.take(t.priority) {
			return
		}
		q.removeLocked(t)
		q.classes[t.priority].charge(t)
		q.admitLocked(t, now)
	}
}

// nextLocked is who is admitted next.
func (q *Queue) nextLocked() *Ticket {
	for p := range q.classes {
		if t := q.classes[p].next(); t != nil {
			return t
		}
	}
	return nil
}

// admitLocked settles a ticket for which a pass was taken.
func (q *Queue) admitLocked(t *Ticket, now time.Time) {
	if gap := now.Sub(q.last); !q.last.IsZero() && q.pace > 0 {
		q.pace += paceShare * (float64(gap) - q.pace)
	} else if !q.last.IsZero() {
		q.pace = float64(gap)
	}
	if q.last = now; q.waiting.Load() == 0 {
		q.last = time.Time{}
	}
	t.state = admitted
	q.metrics.wait[t.priority].Observe(now.Sub(t.since).Seconds())
	t.C <- Outcome{Pass: Pass{queue: q}}
}

// removeLocked takes a ticket out of the queue.
func (q *Queue) removeLocked(t *Ticket) {
	q.classes[t.priority].remove(t)
	q.waiting.Add(-1)
	q.metrics.waiting[t.priority].Dec()
}

// settleLocked turns a ticket away that is out of the queue.
func (q *Queue) settleLocked(t *Ticket, r Refusal) {
	t.state = done
	q.metrics.sheds[t.priority][r.Reason].Inc()
	t.C <- Outcome{Refusal: r}
}

// Tick checks whether there is a pass by now, or no more use in waiting. It is called
// now and then while the ticket is not settled.
func (t *Ticket) Tick(p *Policy, r Room, now time.Time) {
	q := t.queue
	q.refresh(p, r, now)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pumpLocked(now)
	if t.state == queued && r.Comes(now) {
		t.until = latest(t.until, earliest(t.latest, now.Add(t.wait)))
	}
	if t.state != queued || now.Before(t.until) {
		return
	}
	q.removeLocked(t)
	if !t.overdue {
		q.settleLocked(t, Refusal{Late, retry(q.expectLocked(t.priority))})
		return
	}
	q.force()
	t.state = admitted
	q.metrics.wait[t.priority].Observe(now.Sub(t.since).Seconds())
	q.metrics.overdue.Inc()
	t.C <- Outcome{Pass: Pass{queue: q}}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Until is when Tick ends the wait.
func (t *Ticket) Until() time.Time { return t.until }

// Drop gives the ticket up, whether it is settled or not. It must not be used any
// more.
func (t *Ticket) Drop(now time.Time) {
	q := t.queue
	q.mu.Lock()
	was := t.state
	t.state = done
	if was == queued {
		q.removeLocked(t)
	}
	q.mu.Unlock()
	if was != admitted {
		return
	}
	select {
	case o := <-t.C:
		o.Pass.Release(now)
	default: // whoever took the outcome has the Pass
	}
}

// retry is the wait that a refused client is asked for.
func retry(d time.Duration) time.Duration {
	return min(max(d.Truncate(time.Second), time.Second), longestRetry)
}
