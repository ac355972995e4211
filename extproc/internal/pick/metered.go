package pick

import (
	"time"

	"millrace.dev/millrace/extproc/internal/meter"
	"millrace.dev/millrace/internal/scrape"
)

// Payer charges for requests whose engine says in sum alone what it has generated.
type Payer interface {
	// Metered says how many tokens were generated for a request with a number; so far, if it is not
	// final.
	Metered(request uint64, generated int, final bool, now time.Time)
}

// Metered is a request whose tokens are to be found out by its engine's counters.
type Metered struct {
	Payer   Payer
	Request uint64
	Model   *Model
	Shape   Shape
}

// Metering is the place of a request in its endpoint's meter. The zero Metering is none.
type Metering struct {
	live   *Live
	ticket meter.Ticket
	run    meter.Run[Metered]
}

// Meter meters a request from now on, if the engine's counters are known.
func (l *Live) Meter(r meter.Run[Metered], now time.Time) Metering {
	t := l.meter.Begin(r, now)
	if t == 0 {
		return Metering{}
	}
	return Metering{l, t, r}
}

// Metered reports whether the engine's counters are known, so that requests there can be metered.
func (l *Live) Metered(now time.Time) bool { return l.meter.Counts(now) }

// On reports whether the request is metered.
func (m *Metering) On() bool { return m.ticket != 0 }

// Move meters the request at another endpoint, which has answered it.
func (m *Metering) Move(to *Live, now time.Time) {
	if m.ticket != 0 && m.live != to {
		m.live.meter.Known(m.ticket, -1, now)
		*m = to.Meter(m.run, now)
	}
}

// Known says that the request has ended, and how many tokens were generated; below 0: it is
// not charged for any. Doing it again does nothing.
func (m *Metering) Known(generated int, now time.Time) {
	if m.ticket != 0 {
		m.live.meter.Known(m.ticket, generated, now)
		*m = Metering{}
	}
}

// Leave says that the request has ended: its payer gets to know what it had. Doing it
// again does nothing.
func (m *Metering) Leave(now time.Time) {
	if m.ticket != 0 {
		m.live.meter.Leave(m.ticket, now)
		*m = Metering{}
	}
}

// Metering reports whether pages are waited for, since requests are in flight or it is to be found
// out what they have had.
func (l *Live) Metering() bool { return l.meter.Pending() > 0 }

// Priced takes in whether it is known what was generated for an answer that a tenant pays for.
func (l *Live) Priced(known bool) {
	if l.unpriced.Load() == known {
		l.unpriced.Store(!known)
	}
}

// Unpriced reports whether the last such answer was charged the most that it could have cost.
func (l *Live) Unpriced() bool { return l.unpriced.Load() }

// Page is what a page of an engine says, that was asked for at a time.
type Page struct {
	Asked time.Time
	scrape.Count
	// Answers is how many whole answers it has given, Requests how many are there.
	Answers, Requests float64
}

// Page takes in a page. Lengths of answers are learned from it, too, of those that were alone.
func (l *Live) Page(s *Page) {
	page := meter.Page{Asked: s.Asked, How: s.How, Tokens: s.Tokens, Answers: s.Answers, Requests: s.Requests}
	for _, r := range l.meter.Page(page, nil) {
		n := r.Tokens
		if s.Prefilled && n > 0 {
			n += max(1, r.Who.Shape.Choices)
		}
		if r.Final && r.Alone {
			r.Who.Model.LearnLength(Usage{Completion: n, Shape: r.Who.Shape})
		}
		if r.Who.Payer != nil {
			r.Who.Payer.Metered(r.Who.Request, n, r.Final, s.Asked)
		}
	}
}
