package flow

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// room is endpoints with so many places, of which load are taken.
type room struct {
	places, load atomic.Int64
	unbounded    bool
	awaits       bool
	alone        bool // and nobody sees to it that there are some
}

func (r *room) Room(int, time.Time) (int, bool) {
	return int(max(0, r.places.Load()-r.load.Load())), !r.unbounded
}

func (r *room) Awaits(time.Time) bool { return r.awaits }
func (r *room) Comes(time.Time) bool  { return r.awaits && !r.alone }

func rules() *Policy {
	return &Policy{
		Queue: 6, MaxWait: [priorities]time.Duration{8 * time.Second, 4 * time.Second, 2 * time.Second},
		Gateway: time.Minute, DegradeAt: 0.5, Tenants: 3,
	}
}

// member is a request as the twin sees it.
type member struct {
	p      Priority
	tenant uint64
	ticket *Ticket
	pass   Pass
	until  time.Time
	tokens int
}

// twin is the naive twin of a Queue: it walks over all that it knows.
type twin struct {
	t       *testing.T
	q       *Queue
	policy  *Policy
	room    *room
	now     time.Time
	waiting []*member // in the order of arrival
	inside  []*member
	settled int
}

func newTwin(t *testing.T) *twin {
	w := &twin{t: t, q: New(prometheus.NewRegistry()).Queue("m"), policy: rules(), room: new(room), now: epoch}
	w.room.places.Store(2)
	return w
}

func (w *twin) enter(p Priority, tenant uint64, tokens int) {
	before := slices.Clone(w.waiting)
	a := w.q.Enter(&Ask{Policy: w.policy, Priority: p, Tenant: tenant, Tokens: tokens, Now: w.now}, w.room)
	m := &member{p: p, tenant: tenant, tokens: tokens, until: w.now.Add(w.policy.MaxWait[p])}
	switch {
	case a.Ticket != nil:
		m.ticket = a.Ticket
		w.waiting = append(w.waiting, m)
	case a.Refusal.Reason == None:
		if slices.ContainsFunc(before, func(o *member) bool { return o.p < p }) {
			w.t.Fatalf("a %s request went before one that is worth more", p)
		}
		m.pass = a.Pass
		w.hold(m)
	case a.Refusal.Reason == Full:
		if len(before) < w.policy.Queue || slices.ContainsFunc(before, func(o *member) bool { return o.p > p }) {
			w.t.Fatalf("a %s request was turned away, %d wait", p, len(before))
		}
	case p == Critical:
		w.t.Fatalf("a critical request was turned away: %s", a.Refusal.Reason)
	}
	w.collect(before)
}

// hold puts a request inside.
func (w *twin) hold(m *member) {
	m.ticket = nil
	w.inside = append(w.inside, m)
	w.room.load.Add(1)
	m.pass.Reserved()
}

// collect takes in what was settled and checks that it was right.
func (w *twin) collect(before []*member) {
	var still, in []*member
	for _, m := range w.waiting {
		select {
		case o := <-m.ticket.C:
			w.settled++
			if o.Refusal.Reason == None {
				m.pass = o.Pass
				in = append(in, m)
				continue
			}
			w.refused(m, before, o.Refusal.Reason)
		default:
			still = append(still, m)
		}
	}
	w.waiting = still
	for _, m := range in {
		for _, o := range still {
			if o.p < m.p || o.p == m.p && o.tenant == m.tenant && slices.Index(before, o) >= 0 && slices.Index(before, o) < slices.Index(before, m) {
				w.t.Fatalf("a %s request of tenant %d was let in before a %s one of tenant %d", m.p, m.tenant, o.p, o.tenant)
			}
		}
		w.hold(m)
	}
	if n := w.q.waiting.Load(); n != int64(len(still)) || len(still) > w.policy.Queue {
		w.t.Fatalf("%d wait, the twin knows of %d", n, len(still))
	}
	if len(still) > 0 && w.q.inside.Load() < w.q.most[1].Load() {
		w.t.Fatalf("%d wait though there are places: %d of %d", len(still), w.q.inside.Load(), w.q.most[1].Load())
	}
}

// refused checks that nobody else should have been turned away instead.
func (w *twin) refused(m *member, before []*member, why Reason) {
	switch why {
	case Full:
		for i, o := range before {
			if o.p > m.p || o.p == m.p && i > slices.Index(before, m) {
				w.t.Fatalf("a %s request was turned away for another, though a %s one is newer or worth less", m.p, o.p)
			}
		}
	case Late:
		if w.now.Before(m.until) {
			w.t.Fatalf("turned away %v before its time", m.until.Sub(w.now))
		}
	default:
		w.t.Fatalf("one that waited was turned away: %s", why)
	}
}

// step does what a byte or three say.
func (w *twin) step(op, a, b byte) {
	before := slices.Clone(w.waiting)
	switch op % 6 {
	case 0, 1:
		w.enter(Priority(a%3), uint64(b%4), int(a)+1)
		w.bounded()
		return
	case 2:
		if len(w.inside) > 0 {
			w.leave(int(a) % len(w.inside))
		}
	case 3:
		if len(w.waiting) > 0 {
			i := int(a) % len(w.waiting)
			w.waiting[i].ticket.Drop(w.now)
			w.waiting = slices.Delete(w.waiting, i, i+1)
		}
	case 4:
		w.now = w.now.Add(time.Duration(a) * 20 * time.Millisecond)
		for _, m := range before {
			m.ticket.Tick(w.policy, w.room, w.now)
		}
	case 5:
		w.room.places.Store(int64(a % 5))
		w.q.Refresh(w.policy, w.room, w.now)
	}
	w.collect(before)
	w.bounded()
}

func (w *twin) leave(i int) {
	m := w.inside[i]
	w.inside = slices.Delete(w.inside, i, i+1)
	m.pass.Release(w.now)
	w.room.load.Add(-1)
	m.pass.Release(w.now) // does nothing
}

// bounded checks that no place is taken twice, and that the queue counts right.
func (w *twin) bounded() {
	if got := w.q.inside.Load(); got != int64(len(w.inside)) || w.q.entering.Load() != 0 {
		w.t.Fatalf("%d inside, %d of them entering; the twin knows of %d", got, w.q.entering.Load(), len(w.inside))
	}
}

// drain lets all that is inside leave until nobody waits.
func (w *twin) drain() {
	w.step(5, 4, 0)
	for len(w.inside)+len(w.waiting) > 0 {
		if len(w.inside) == 0 {
			w.t.Fatalf("%d wait for nobody", len(w.waiting))
		}
		w.step(2, 0, 0)
	}
}

func (w *twin) run(script []byte) {
	for len(script) >= 3 {
		most := int64(len(w.inside))
		w.step(script[0], script[1], script[2])
		if n := int64(len(w.inside)); n > max(most, w.room.places.Load(), w.q.most[0].Load()) {
			w.t.Fatalf("%d inside of %d places", n, w.room.places.Load())
		}
		script = script[3:]
	}
	w.drain()
}

func TestQueueAgainstItsTwin(t *testing.T) {
	settled := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		script := make([]byte, 600)
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		w := newTwin(t)
		w.run(script)
		settled += w.settled
	}
	if settled < 4000 {
		t.Errorf("only %d tickets were settled: the scripts test nothing", settled)
	}
}

func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 1, 0, 2, 2, 0, 5, 1, 4, 255, 0, 2, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 3000 {
			return
		}
		newTwin(t).run(script)
	})
}

// fill takes all places of a queue with that many, and returns who is inside.
func (w *twin) fill(places int) {
	w.room.places.Store(int64(places))
	w.q.Refresh(w.policy, w.room, w.now)
	for range places {
		w.enter(Critical, 0, 1)
	}
	if len(w.inside) != places {
		w.t.Fatalf("%d inside, want %d", len(w.inside), places)
	}
}

func TestTenantsShareByTokens(t *testing.T) {
	w := newTwin(t)
	w.policy.Queue = 1000
	w.fill(1)
	r := rand.New(rand.NewPCG(1, 2))
	const largest = 300
	ask := func(tenant uint64, tokens int) { w.enter(Standard, tenant, tokens) }
	for range 200 { // one sends many large ones, another few small ones each time
		ask(1, largest-r.IntN(10))
		ask(2, 1+r.IntN(60))
		ask(2, 1+r.IntN(60))
		ask(3, 1+r.IntN(largest))
	}
	served := map[uint64]int{}
	for range 300 {
		waiting := slices.Clone(w.waiting)
		w.step(2, 0, 0)
		for _, m := range waiting {
			if !slices.Contains(w.waiting, m) {
				served[m.tenant] += m.tokens
			}
		}
		low, high := served[1], served[1]
		for _, n := range served {
			low, high = min(low, n), max(high, n)
		}
		if len(served) == 3 && high-low > 3*largest {
			t.Fatalf("served %v tokens: they differ by more than three of the largest requests", served)
		}
	}
	if len(served) != 3 {
		t.Errorf("served %v: somebody starved", served)
	}
}

func TestReserveIsForCriticalRequests(t *testing.T) {
	w := newTwin(t)
	w.policy.Reserve = 0.25
	w.room.places.Store(8)
	w.q.Refresh(w.policy, w.room, w.now)
	for range 8 {
		w.enter(Standard, 0, 1)
	}
	if len(w.inside) != 6 || len(w.waiting) != 2 {
		t.Fatalf("%d standard requests inside, %d wait; want 6 and 2", len(w.inside), len(w.waiting))
	}
	w.enter(Critical, 0, 1)
	w.enter(Critical, 0, 1)
	if len(w.inside) != 8 {
		t.Errorf("%d inside with two critical ones, want 8", len(w.inside))
	}
}

func TestGatewayBoundsTheWait(t *testing.T) {
	w := newTwin(t)
	w.policy.Gateway = 100 * time.Millisecond
	w.fill(1)
	w.enter(Standard, 0, 1)
	w.enter(Sheddable, 0, 1)
	standard, sheddable := w.waiting[0].ticket, w.waiting[1].ticket
	now := w.now.Add(100 * time.Millisecond)
	standard.Tick(w.policy, w.room, now)
	sheddable.Tick(w.policy, w.room, now)
	if o := <-standard.C; o.Refusal.Reason != None || o.Pass.queue == nil {
		t.Errorf("a standard request got %+v, want a place", o)
	}
	if o := <-sheddable.C; o.Refusal.Reason != Late || o.Refusal.Retry < time.Second {
		t.Errorf("a sheddable request got %+v, want a late refusal", o)
	}
}

func TestHopelessIsRefusedAtOnce(t *testing.T) {
	w := newTwin(t)
	w.fill(1)
	for range 5 {
		w.enter(Standard, 0, 1)
	}
	for range 3 { // each takes two seconds
		w.now = w.now.Add(2 * time.Second)
		w.step(2, 0, 0)
	}
	a := w.q.Enter(&Ask{Policy: w.policy, Priority: Sheddable, Now: w.now, Patience: time.Second}, w.room)
	if a.Refusal.Reason != Hopeless || a.Refusal.Retry < 4*time.Second {
		t.Errorf("got %+v, want a refusal with the time that it takes", a)
	}
}

func TestTicketGivenUpAfterItWasSettled(t *testing.T) {
	w := newTwin(t)
	w.fill(1)
	w.enter(Standard, 0, 1)
	ticket := w.waiting[0].ticket
	w.waiting = nil
	w.inside[0].pass.Release(w.now)
	ticket.Drop(w.now)
	ticket.Drop(w.now)
	if n := w.q.inside.Load(); n != 0 {
		t.Errorf("%d inside after all have left", n)
	}
}

func TestUnboundedNeverWaits(t *testing.T) {
	for name, w := range map[string]*twin{"slots are not known": newTwin(t), "switched off": newTwin(t)} {
		w.room.unbounded = name == "slots are not known"
		if !w.room.unbounded {
			w.policy.Queue = 0
		}
		for range 100 {
			if a := w.q.Enter(&Ask{Policy: w.policy, Priority: Sheddable, Now: w.now}, w.room); a.Ticket != nil || a.Refusal.Reason != None {
				t.Fatalf("%s: got %+v, want a place", name, a)
			}
		}
	}
}

// TestQueueUnderRace lets many enter and leave at once: the load that the endpoints
// see is never more than there are places, and all come through.
func TestQueueUnderRace(t *testing.T) {
	q, policy := New(prometheus.NewRegistry()).Queue("m"), rules()
	policy.Queue = 1000
	var places room
	places.places.Store(4)
	var inside, over, through atomic.Int64
	var g sync.WaitGroup
	now := epoch
	for i := range 64 {
		g.Go(func() {
			for k := range 50 {
				at := now.Add(time.Duration(k) * 20 * time.Millisecond)
				a := q.Enter(&Ask{Policy: policy, Priority: Priority(i % 2), Tenant: uint64(i % 3), Tokens: i + 1, Now: at}, &places)
				pass := a.Pass
				if a.Ticket != nil {
					o := <-a.Ticket.C
					pass = o.Pass
				} else if a.Refusal.Reason != None {
					through.Add(1)
					continue
				}
				places.load.Add(1)
				pass.Reserved()
				if inside.Add(1) > 4 {
					over.Add(1)
				}
				inside.Add(-1)
				pass.Release(at)
				places.load.Add(-1)
				through.Add(1)
			}
		})
	}
	g.Wait()
	if over.Load() > 0 || through.Load() != 64*50 || q.waiting.Load() != 0 {
		t.Errorf("%d times too many inside, %d of %d came through, %d still wait", over.Load(), through.Load(), 64*50, q.waiting.Load())
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	reg := prometheus.NewRegistry()
	New(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// TestQueuesOfManyNamesAreBounded asks for the queues of more models than there ever are at a
// time: those that nobody is in are forgotten, one that somebody is in stays.
func TestQueuesOfManyNamesAreBounded(t *testing.T) {
	c := New(prometheus.NewRegistry())
	ask := Ask{Policy: &Policy{}, Now: time.Now()}
	used := c.Queue("used")
	pass, ok := used.Try(&ask, &room{})
	for i := range 3 * mostQueues {
		c.Queue(fmt.Sprintf("model-%d", i))
	}
	if n := len(*c.queues.Load()); n > mostQueues+1 {
		t.Errorf("%d queues are kept", n)
	}
	if !ok || c.Queue("used") != used {
		t.Errorf("a queue with a request (%t) was forgotten", ok)
	}
	pass.Release(ask.Now)
}

// TestFirstEndpointIsAwaitedWithoutAQueue where none waits for a pass, as there is nobody to
// send to; and it is said who waits.
func TestFirstEndpointIsAwaitedWithoutAQueue(t *testing.T) {
	c, r, p := New(prometheus.NewRegistry()), &room{awaits: true}, rules()
	p.Queue = 0
	q := c.Queue("m")
	var last *Ticket
	for i := range leastQueue {
		a := q.Enter(&Ask{Policy: p, Priority: Standard, Now: epoch.Add(time.Duration(i))}, r)
		if last = a.Ticket; last == nil {
			t.Fatalf("request %d does not wait: %+v", i, a)
		}
	}
	if a := q.Enter(&Ask{Policy: p, Priority: Standard, Now: epoch}, r); a.Refusal.Reason != Full {
		t.Errorf("one more than %d: %+v", leastQueue, a)
	}
	c.Waiting(func(model string, n int, since time.Time) {
		if model != "m" || n != leastQueue || !since.Equal(epoch) {
			t.Errorf("%s: %d wait since %v", model, n, since)
		}
	})
	r.awaits = false
	r.places.Store(1)
	last.Tick(p, r, epoch.Add(time.Second))
	if q.waiting.Load() > 0 {
		t.Errorf("%d wait, though the endpoint is there", q.waiting.Load())
	}
}

// TestModelThatIsBeingLoadedIsAwaited as long as the gateway allows, not for MaxWait alone, and
// when it has come for MaxWait more: who waited with many others is not turned away then.
func TestModelThatIsBeingLoadedIsAwaited(t *testing.T) {
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	for _, tt := range []struct {
		name     string
		alone    bool
		patience time.Duration // of the client
		comes    time.Duration // 0: never
		end      time.Duration // when it is refused; 0: it gets a pass
	}{
		{name: "it comes late", comes: 20 * time.Second},
		{name: "it never comes", end: 30 * time.Second},
		{name: "nobody sees to it", alone: true, end: 4 * time.Second},
		{name: "the client has less patience", patience: 9 * time.Second, end: 9 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, r, p := New(prometheus.NewRegistry()), &room{awaits: true, alone: tt.alone}, rules()
			p.Gateway = 30 * time.Second
			q := c.Queue("m")
			ticket := q.Enter(&Ask{Policy: p, Priority: Standard, Patience: tt.patience, Now: epoch}, r).Ticket
			if ticket == nil {
				t.Fatal("it does not wait")
			}
			for now := time.Duration(0); now <= 40*time.Second; now += 100 * time.Millisecond {
				switch {
				case tt.comes > 0 && now == tt.comes: // with a place that somebody else has
					r.awaits = false
				case tt.comes > 0 && now == tt.comes+3*time.Second:
					r.places.Store(1)
				}
				ticket.Tick(p, r, at(now))
				select {
				case o := <-ticket.C:
					if refused := o.Refusal.Reason != None; refused != (tt.end > 0) || refused && now != tt.end {
						t.Errorf("after %v: %+v", now, o)
					}
					return
				default:
				}
			}
			t.Error("it waits for ever")
		})
	}
}
