package flow

import "container/list"

// class is the tickets of one priority. Tenants take turns: in its turn each may have
// as many tokens admitted as the largest request that waited since the class was last
// empty, and what it did not use it has in its next turn. So each step is O(1), and
// two tenants that both wait differ by no more than three such requests.
type class struct {
	n       int
	tenants map[uint64]*tenant
	turns   list.List // of *tenant; the first one has the turn
	age     list.List // of *Ticket, the oldest first
	quantum int64     // tokens of a turn
}

// tenant is who waits in a class.
type tenant struct {
	key     uint64
	tickets list.List // of *Ticket, the oldest first
	credit  int64     // tokens
	given   bool      // whether credit has what this turn gives
	turn    *list.Element
}

// position is where a ticket stands.
type position struct{ ofTenant, ofAge *list.Element }

func (c *class) push(t *Ticket, key uint64) {
	if c.n == 0 {
		c.quantum = 0
	}
	c.quantum = max(c.quantum, t.tokens)
	who := c.tenants[key]
	if who == nil {
		who = &tenant{key: key}
		who.turn = c.turns.PushBack(who)
		if c.tenants == nil {
			c.tenants = map[uint64]*tenant{}
		}
		c.tenants[key] = who
	}
	c.n++
	t.tenant = who
	t.at = position{who.tickets.PushBack(t), c.age.PushBack(t)}
}

// next is who is admitted next; nil: nobody waits.
func (c *class) next() *Ticket {
	for c.n > 0 {
		who := c.turns.Front().Value.(*tenant)
		if !who.given {
			who.credit += c.quantum
			who.given = true
		}
		t := who.tickets.Front().Value.(*Ticket)
		if t.tokens <= who.credit {
			return t
		}
		who.given = false
		c.turns.MoveToBack(who.turn)
	}
	return nil
}

// charge takes what an admitted ticket costs its tenant.
func (c *class) charge(t *Ticket) { t.tenant.credit -= t.tokens }

// newest is who came last; nil: nobody waits.
func (c *class) newest() *Ticket {
	if e := c.age.Back(); e != nil {
		return e.Value.(*Ticket)
	}
	return nil
}

// remove takes a ticket out. A tenant without any is forgotten, with its credit.
func (c *class) remove(t *Ticket) {
	who := t.tenant
	who.tickets.Remove(t.at.ofTenant)
	c.age.Remove(t.at.ofAge)
	c.n--
	if who.tickets.Len() == 0 {
		c.turns.Remove(who.turn)
		delete(c.tenants, who.key)
	}
}
