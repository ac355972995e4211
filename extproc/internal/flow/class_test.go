package flow

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// waiter is a ticket as the twin of a class sees it.
type waiter struct {
	ticket *Ticket
	tenant uint64
	tokens int64
}

// round is the naive twin of a class: who waits in the order of arrival, and whose turn
// it is in the order of turns. It looks everything up each time.
type round struct {
	waiting []waiter
	turns   []uint64
	credit  map[uint64]int64
	begun   bool // whether the first one in turns has got what its turn gives
	quantum int64
}

func (d *round) push(w waiter) {
	if len(d.waiting) == 0 {
		d.quantum = 0
	}
	d.quantum = max(d.quantum, w.tokens)
	d.waiting = append(d.waiting, w)
	if !slices.Contains(d.turns, w.tenant) {
		d.turns = append(d.turns, w.tenant)
		d.credit[w.tenant] = 0
	}
}

// first is the oldest of a tenant.
func (d *round) first(tenant uint64) waiter {
	return d.waiting[slices.IndexFunc(d.waiting, func(w waiter) bool { return w.tenant == tenant })]
}

// next is who is admitted next: turns pass until somebody can pay.
func (d *round) next() waiter {
	for {
		who := d.turns[0]
		if !d.begun {
			d.credit[who] += d.quantum
			d.begun = true
		}
		if w := d.first(who); w.tokens <= d.credit[who] {
			return w
		}
		d.turns = append(d.turns[1:], who)
		d.begun = false
	}
}

// leave takes one out, who pays or not.
func (d *round) leave(w waiter, pays bool) {
	if pays {
		d.credit[w.tenant] -= w.tokens
	}
	d.waiting = slices.DeleteFunc(d.waiting, func(o waiter) bool { return o.ticket == w.ticket })
	if slices.ContainsFunc(d.waiting, func(o waiter) bool { return o.tenant == w.tenant }) {
		return
	}
	if d.turns[0] == w.tenant {
		d.begun = false // the turn is the next one's
	}
	d.turns = slices.DeleteFunc(d.turns, func(t uint64) bool { return t == w.tenant })
}

// takeTurns does what a script says to a class and to its twin.
func takeTurns(t *testing.T, script []byte) {
	var c class
	d := &round{credit: map[uint64]int64{}}
	for len(script) >= 3 {
		op, a, b := script[0], script[1], script[2]
		script = script[3:]
		switch {
		case op%8 < 4 || len(d.waiting) == 0:
			w := waiter{tenant: uint64(b % 5), tokens: 1 + int64(a)*int64(b)/7}
			w.ticket = &Ticket{tokens: w.tokens}
			c.push(w.ticket, w.tenant)
			d.push(w)
		case op%8 < 7:
			got, want := c.next(), d.next()
			if got != want.ticket {
				t.Fatalf("next() is one of %d tokens of tenant %d, the twin has one of %d of tenant %d", got.tokens, got.tenant.key, want.tokens, want.tenant)
			}
			if a%3 == 0 {
				break // there is no place
			}
			c.remove(got)
			c.charge(got)
			d.leave(want, true)
		default:
			w := d.waiting[int(a)%len(d.waiting)]
			c.remove(w.ticket)
			d.leave(w, false)
		}
		d.check(t, &c)
	}
}

func (d *round) check(t *testing.T, c *class) {
	t.Helper()
	if c.n != len(d.waiting) || len(c.tenants) != len(d.turns) || c.turns.Len() != len(d.turns) || c.age.Len() != len(d.waiting) {
		t.Fatalf("%d tickets of %d tenants, the twin has %d of %d", c.n, len(c.tenants), len(d.waiting), len(d.turns))
	}
	if len(d.waiting) == 0 {
		if c.next() != nil || c.newest() != nil {
			t.Fatal("somebody is next though nobody waits")
		}
		return
	}
	if got := c.newest(); got != d.waiting[len(d.waiting)-1].ticket {
		t.Fatalf("the newest is one of %d tokens", got.tokens)
	}
	for i, who := range d.turns {
		if credit := c.tenants[who].credit; credit != d.credit[who] || credit < 0 || credit > 2*d.quantum {
			t.Fatalf("the tenant whose turn is %d from now has %d tokens, the twin has %d", i, credit, d.credit[who])
		}
	}
}

func TestTurnsAgainstTheirTwin(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 4))
		script := make([]byte, 900)
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		takeTurns(t, script)
	}
}

func FuzzTurns(f *testing.F) {
	f.Add([]byte{0, 9, 1, 0, 200, 2, 4, 0, 0, 7, 0, 0, 0, 3, 1, 5, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) < 3000 {
			takeTurns(t, script)
		}
	})
}
