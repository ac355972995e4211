package stream

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
)

// world is the naive model of all streams at once: who has a place, who waits, and
// what each may be sent. It knows nothing of phases.
type world struct {
	t    *testing.T
	f    *fleet
	r    *rand.Rand
	now  time.Time
	open []*client
}

// client is one stream as Envoy sees it.
type client struct {
	x    *Exchange
	w    watcher
	todo []Event
	// holds is whether it was sent a host, and did not end since.
	holds bool
	last  Event // that it waits in, if it does
}

// step does one thing to one stream, chosen at random.
func (m *world) step() {
	m.now = m.now.Add(time.Duration(m.r.IntN(200)) * time.Millisecond)
	switch n := m.r.IntN(10); {
	case n < 2 && len(m.open) < 12:
		b := make([]byte, 1+m.r.IntN(120))
		for i := range b {
			b[i] = byte(m.r.IntN(256))
		}
		m.open = append(m.open, &client{x: m.f.core.Begin(), w: watcher{t: m.t}, todo: events(b, m.f)})
	case len(m.open) == 0:
	case n < 8:
		m.feed(m.open[m.r.IntN(len(m.open))])
	case n < 9: // the stream breaks off, wherever it is
		m.end(m.r.IntN(len(m.open)))
	default:
		for _, c := range m.open {
			m.wake(c)
		}
	}
}

// feed gives a stream its next event. One that waits may get one, too: then it is sent
// at once.
func (m *world) feed(c *client) {
	if len(c.todo) == 0 {
		return
	}
	ev := c.todo[0]
	c.todo = c.todo[1:]
	ev.At = m.now
	c.see(&ev, c.x.Step(&ev, nil))
	c.last = ev
}

// wake lets a stream that waits be sent, if there is room for it or its time is over.
func (m *world) wake(c *client) {
	if c.x.Waits() == nil {
		return
	}
	c.x.Tick(m.now)
	select {
	case o := <-c.x.Waits().C:
		for i, reply := range c.x.Resume(o, m.now, nil) {
			c.w.suspended = false
			c.w.reply(&reply)
			c.holds = c.holds || reply.Decision != nil
			if i == 0 && reply.Kind == RequestHeaders && c.last.Kind != RequestHeaders {
				c.w.due = false
			}
		}
	default:
	}
}

func (c *client) see(ev *Event, replies []Reply) {
	c.w.suspended = c.x.Waits() != nil
	c.w.see(ev, replies)
	for i := range replies {
		c.holds = c.holds || replies[i].Decision != nil
	}
}

func (m *world) end(i int) {
	m.f.core.Finish(m.open[i].x)
	m.open = append(m.open[:i], m.open[i+1:]...)
}

// check compares what is reserved with what the model says.
func (m *world) check() error {
	want := 0
	for _, c := range m.open {
		if c.holds {
			want++
		}
	}
	requests, seen := int64(0), map[*pick.Live]bool{}
	for _, model := range m.f.table.Models {
		for _, e := range model.Endpoints {
			n, tokens := e.InFlight()
			if n < 0 || tokens < 0 || n == 0 && tokens != 0 {
				return fmt.Errorf("%s has %d requests and %d tokens", e.Address, n, tokens)
			}
			if !seen[e.Live] {
				seen[e.Live] = true
				requests += n
			}
		}
	}
	if requests != int64(want) {
		return fmt.Errorf("%d places are taken, %d streams were told a host", requests, want)
	}
	return nil
}

// TestModelOfManyStreams has a dozen streams at a time, each with events in an order of
// its own, among them such as no Envoy sends, and breaks them off anywhere.
func TestModelOfManyStreams(t *testing.T) {
	for name, f := range map[string]func() *fleet{
		"busy": busy, "canary": func() *fleet { return newFleet(3, canary) }, "plain": func() *fleet { return newFleet(2) },
		"queue": func() *fleet { return newFleet(2, oneSlot) }, "smaller model": func() *fleet { return newFleet(1, oneSlot, withSmall) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(6) {
				m := &world{t: t, f: f(), r: rand.New(rand.NewPCG(seed, 9)), now: epoch}
				for i := range 6000 {
					m.step()
					if err := m.check(); err != nil {
						t.Fatalf("seed %d, step %d: %v", seed, i, err)
					}
				}
				for len(m.open) > 0 {
					m.end(0)
				}
				if err := m.check(); err != nil {
					t.Fatalf("seed %d, at the end: %v", seed, err)
				}
				if name == "busy" {
					continue // with others' requests
				}
				for range m.f.table.Models["m"].Endpoints { // nothing of those that are gone is in the way
					head, body := post(of(wire.Critical)), bodyOf(hello)
					head.At, body.At = m.now.Add(time.Minute), m.now.Add(time.Minute)
					if out := run(m.f.core.Begin(), head, body); out[len(out)-1].Decision == nil {
						t.Fatalf("seed %d: all have ended, and a new request gets %+v", seed, out)
					}
				}
			}
		})
	}
}
