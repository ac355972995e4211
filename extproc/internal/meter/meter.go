// Package meter finds out what single requests have generated at an engine that says so in
// sum alone: on its metrics page, where a counter of generated tokens grows.
//
// pick has a Meter for each endpoint: stream reports to it when requests are sent there and
// when they end, and fleet what each page shows. What the counter has grown by between two
// pages is shared out among the requests that can have made it: how engines count differs,
// see scrape.Counting. One request alone gets all of it, which is exact. Several get shares
// by the time that they had for it, none more than it can have at most. What nobody here can have made
// is of others who use the engine, too: while more requests run there than
// we know of, the others get their share. What an engine said of a single answer comes first,
// and is taken out of what is shared.
//
// A request that has ended is charged when the engine has let go of it: once fewer run there
// than are in flight, or after a while; clients that leave are noticed late.
//
// Its one rule: the shares of all requests are never more than what the counter shows, and,
// while no one else uses the engine, not less either, but for what would be beyond a request's
// maximum.
package meter

import (
	"math"
	"sync"
	"time"

	"millrace.dev/millrace/internal/scrape"
)

const (
	// mostRuns bounds the requests of an endpoint that are metered at a time.
	mostRuns = 4096
	// fresh is how old the last page may be for a request to be metered at all: idle engines
	// are asked every 10 s or so.
	fresh = 30 * time.Second
	// lag is how long before a page is asked for a request must have ended for the page to
	// show all of it, if the engine has let go of it; letGo is how long it takes until it
	// has in any case.
	lag   = 200 * time.Millisecond
	letGo = 5 * time.Second
	// keep is for how long tokens are kept that nobody is found for, or that are expected.
	keep = 2 * time.Second
	// rounds bounds how often what some can't take is shared out among the rest.
	rounds = 8
)

// Meter meters an endpoint's requests. The zero Meter has seen no page, and meters none.
type Meter[T any] struct {
	// mu guards the fields below.
	mu        sync.Mutex
	runs      []run[T]
	free      []int32 // indices of runs that are not in use
	open, out int     // those in flight, and those that have ended and are not settled
	last      Page    // the last page; the zero Page: none since the engine began
	// pot is what the counter has shown and nobody was found for, since the time in potAt; below
	// 0: what is known to have been made and the counter did not show. answers is how many
	// answers it was, where only whole ones are counted.
	pot, answers float64
	potAt        time.Time
}

// Run is a request as it is sent.
type Run[T any] struct {
	// Who is for whoever settles it.
	Who T
	// From is when it is expected to have its first token.
	From time.Time
	// Most is how many tokens it can have at most, Reserved from how many on it is to be
	// reported while it runs.
	Most, Reserved int
}

// run is a request that is metered.
type run[T any] struct {
	Run[T]
	used     bool
	left     time.Time // zero: it is in flight
	got      float64   // tokens
	weight   float64   // in the present sharing
	shared   bool      // whether any of got was shared with others
	reported int       // tokens that were
}

// Ticket names a run; 0: none.
type Ticket int32

// Page is what a page says.
type Page struct {
	// Asked is when it was asked for.
	Asked time.Time
	// How tokens are counted. Tokens are those generated since the engine's start, Answers whole
	// answers.
	How             scrape.Counting
	Tokens, Answers float64
	// Requests is how many are there, running and waiting.
	Requests float64
}

// Share is what came of a run.
type Share[T any] struct {
	Who T
	// Tokens is how many it has had; so far, if it is not Final.
	Tokens int
	Final  bool
	// Alone is whether none of them was shared with others, so that their number is exact.
	Alone bool
}

// Begin meters a request from now on; 0: it can't be.
func (m *Meter[T]) Begin(r Run[T], now time.Time) Ticket {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.shownLocked(now) || len(m.runs) == mostRuns && len(m.free) == 0 {
		return 0
	}
	n := len(m.free)
	if n == 0 {
		m.runs = append(m.runs, run[T]{})
		m.free = append(m.free, int32(len(m.runs)-1))
		n = 1
	}
	i := m.free[n-1]
	m.free = m.free[:n-1]
	m.runs[i] = run[T]{Run: r, used: true}
	m.open++
	return Ticket(i + 1)
}

// Counts reports whether requests can be metered: a page has shown counters shortly.
func (m *Meter[T]) Counts(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shownLocked(now)
}

func (m *Meter[T]) shownLocked(now time.Time) bool {
	return m.last.How != scrape.Uncounted && now.Sub(m.last.Asked) <= fresh
}

// Leave says that a request has ended, which may still run in the engine.
func (m *Meter[T]) Leave(t Ticket, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.atLocked(t); r != nil {
		r.left = now
		m.open--
		m.out++
	}
}

// Known says that a request has ended, and how many tokens it has had: it is settled
// elsewhere. Below 0: it is at another engine.
func (m *Meter[T]) Known(t Ticket, tokens int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.atLocked(t)
	if r == nil {
		return
	}
	m.potLocked(m.pot+r.got-float64(max(0, tokens)), now)
	m.open--
	m.dropLocked(int(t) - 1)
}

func (m *Meter[T]) atLocked(t Ticket) *run[T] {
	if t == 0 || !m.runs[t-1].used || !m.runs[t-1].left.IsZero() {
		return nil
	}
	return &m.runs[t-1]
}

func (m *Meter[T]) dropLocked(i int) {
	m.runs[i] = run[T]{}
	m.free = append(m.free, int32(i))
}

func (m *Meter[T]) potLocked(tokens float64, now time.Time) {
	m.pot, m.potAt = tokens, now
}

// Pending is how many requests pages are waited for.
func (m *Meter[T]) Pending() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open + m.out
}

// Page takes in a page, and appends to out what came of requests. Pages are
// taken in the order in which they were asked for.
func (m *Meter[T]) Page(p Page, out []Share[T]) []Share[T] {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.last
	m.last = p
	if p.How != last.How || p.Tokens < last.Tokens {
		return m.restartLocked(out) // nothing is known of what was before
	}
	if m.open+m.out == 0 {
		m.pot, m.answers = 0, 0
		return out
	}
	if p.Asked.Sub(m.potAt) > keep && m.pot != 0 {
		m.pot, m.answers = 0, 0
	}
	if made := (p.Tokens - last.Tokens) * m.ownLocked(p, last); made > 0 {
		if m.pot == 0 {
			m.potAt = p.Asked
		}
		m.pot += made
		m.answers += p.Answers - last.Answers
	}
	if m.pot > 0 {
		m.shareLocked(p, last)
	}
	return m.settleLocked(p, out)
}

// restartLocked settles all that have ended with what was seen of them; those in flight
// continue from there.
func (m *Meter[T]) restartLocked(out []Share[T]) []Share[T] {
	m.pot, m.answers = 0, 0
	for i := range m.runs {
		r := &m.runs[i]
		r.shared = true // some of it was not seen
		if r.used && !r.left.IsZero() {
			out = append(out, r.share(true))
			m.out--
			m.dropLocked(i)
		}
	}
	return out
}

func (r *run[T]) share(final bool) Share[T] {
	r.reported = int(math.Round(r.got))
	return Share[T]{Who: r.Who, Tokens: r.reported, Final: final, Alone: !r.shared}
}

// ownLocked is the share of what was made between two pages that is not of requests of
// others: those that were there at both, beyond all of ours.
func (m *Meter[T]) ownLocked(p, last Page) float64 {
	ours := float64(m.open + m.out)
	others := max(0, min(p.Requests, last.Requests)-ours)
	if others > 0 {
		for i := range m.runs {
			m.runs[i].shared = true
		}
	}
	return ours / (ours + others)
}

// least is what a request counts at least, in seconds: it may have begun sooner than was
// expected, and been let go of later.
const least = 0.01

// weigh returns for how many seconds of those between two pages a request can have made
// tokens that its engine has counted; of engines that count at the end, for how
// many in all. 0: it can't have made any.
func (r *run[T]) weigh(p, last Page) float64 {
	if !r.used || p.How != scrape.AsMade && r.left.IsZero() {
		return 0
	}
	from, to := r.From, p.Asked
	if p.How == scrape.AsMade && from.Before(last.Asked) {
		from = last.Asked
	}
	if !r.left.IsZero() && r.left.Before(to) {
		to = r.left
	}
	return max(least, to.Sub(from).Seconds())
}

// shareLocked shares the pot out.
func (m *Meter[T]) shareLocked(p, last Page) {
	n, whole := 0, 0.0
	for i := range m.runs {
		r := &m.runs[i]
		if r.weight = r.weigh(p, last); r.weight > 0 {
			n++
			whole += r.weight
		}
	}
	if n == 0 {
		return // whose answer it was will end here, too
	}
	pot := m.pot
	if p.How == scrape.IfWhole && m.answers > 0 && m.answers < float64(n) {
		pot *= float64(n) / m.answers // the others were cut: they are not in it
	}
	for range rounds {
		rest := 0.0
		for i := range m.runs {
			r := &m.runs[i]
			if r.weight == 0 {
				continue
			}
			part, room := pot*r.weight/whole, float64(r.Most)-r.got
			if n > 1 {
				r.shared = true
			}
			if part >= room {
				rest += part - room
				part, r.weight = room, 0
			}
			r.got += part
		}
		whole = 0
		for i := range m.runs {
			whole += m.runs[i].weight
		}
		if pot = rest; rest < 1e-9 || whole == 0 {
			break
		}
	}
	m.pot, m.answers = 0, 0
}

// settleLocked settles those that the engine has let go of, and reports those in flight that
// have more than was reserved.
func (m *Meter[T]) settleLocked(p Page, out []Share[T]) []Share[T] {
	gone := p.Requests <= float64(m.open)
	for i := range m.runs {
		r := &m.runs[i]
		since := p.Asked.Sub(r.left)
		switch {
		case !r.used:
		case r.left.IsZero() || since < lag || !gone && since < letGo:
			if int(r.got) > max(r.Reserved, r.reported) {
				out = append(out, r.share(false))
			}
		case p.How == scrape.IfWhole && r.got == 0:
			m.out-- // it was cut, and nothing says what it had
			m.dropLocked(i)
		default:
			out = append(out, r.share(true))
			m.out--
			m.dropLocked(i)
		}
	}
	return out
}
