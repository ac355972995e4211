package fleet

import (
	"fmt"
	"slices"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
)

// Picker takes what is found out of the fleet.
type Picker interface {
	// Publish replaces the table.
	Publish(t *pick.Table)
	// Measured takes in what an engine has done.
	Measured(m *pick.Model, e *pick.Endpoint, u pick.Usage, requests, company float64, now time.Time)
}

// work is what an endpoint's engine has done, so many requests at a time.
type work struct {
	address string
	done    scrape.Since
	company float64
}

// setWork finds out what an engine has done since it last reported.
func (s *state) setWork(e *endpoint) {
	now, ok := endpoints.Sample(e.resource)
	if !ok {
		return
	}
	if e.work != nil {
		if d, restarted := now.Since(e.work); !restarted && d != (scrape.Since{}) {
			s.done = append(s.done, work{e.resource.GetAddress(), d, (now.Running + e.work.Running) / 2})
		}
	}
	e.work = &now
}

// setPage has an endpoint's requests paid for by what the counters of its engine show, as xds
// has read them.
func (s *state) setPage(e *endpoint, now time.Time) {
	w, l := e.resource.GetWork(), e.resource.GetLoad()
	last, asked := e.asked, time.Time{}
	if w.GetAsked() != nil {
		asked = w.GetAsked().AsTime()
	}
	if s.resumes {
		e.asked = asked
	}
	switch {
	case asked.IsZero():
		return // it counts nothing, or this is what it showed before
	case s.resumes && e.paged:
		return // how old it is is not known
	case s.resumes:
		asked = now // the first of all: better than none
	case last.Sub(asked) >= 0 && last.Sub(asked) < span:
		return // it came before; else the clock was set
	default:
		e.asked, asked = asked, s.clock.here(asked, now)
	}
	e.paged = true
	e.live.Page(&pick.Page{
		Asked: asked, Count: endpoints.Counted(e.resource),
		Answers: w.GetRequests(), Requests: float64(l.GetRunning()) + float64(l.GetWaiting()),
	})
}

// unpriced is the condition of endpoints that don't say what they have generated, while
// tenants have budgets of tokens; none: there are no such endpoints.
func unpriced(endpoints []string) []obs.Condition {
	if len(endpoints) == 0 {
		return nil
	}
	slices.Sort(endpoints)
	return []obs.Condition{{
		Code: wire.NoUsage,
		Text: fmt.Sprintf("%d endpoints did not say what their last answers had: %s; tenants are charged the most that these could have cost, max_tokens or flow.tenants.assumedMaxTokens", len(endpoints), list(endpoints)),
		Next: "set type to that of the engine, whose metrics count tokens, or have the gateway show usage (extproc/README.md, What a budget of tokens is charged)",
	}}
}

// clock is another machine's, by the times that it has sent: none of them can have come
// sooner than it was, so that the least difference there was is that of the clocks and the
// shortest way. The zero clock knows nothing of it.
type clock struct {
	// least is the least of this span of time and of the one before; since is when this
	// one began, zero for none.
	least, before time.Duration
	since         time.Time
}

// span is after how long a difference is forgotten: clocks are set, and drift.
const span = time.Minute

// here is what a time of the other clock, that has come now, is by ours: never later than
// now, and late by the shortest way.
func (c *clock) here(sent, now time.Time) time.Time {
	d := now.Sub(sent)
	switch age := now.Sub(c.since); {
	case c.since.IsZero() || age > 2*span:
		*c = clock{d, d, now}
	case age > span:
		*c = clock{d, c.least, now}
	default:
		c.least = min(c.least, d)
	}
	return sent.Add(min(c.least, c.before))
}

// measured gives to p what an endpoint's engine has done. A table that has the endpoint
// was published before.
func (s *state) measured(p Picker, t *pick.Table, w work, now time.Time) {
	e := s.endpoints[w.address]
	if e == nil {
		return
	}
	m := t.Models[e.resource.GetModel()]
	if m == nil {
		return
	}
	view := m.Endpoint(w.address)
	if view == nil {
		return
	}
	if len(e.models()) > 1 {
		m = nil // its metrics add them up
	}
	p.Measured(m, view, pick.Usage{
		Prompt: int(w.done.Prompt), Cached: int(w.done.Cached), Completion: int(w.done.Output),
		PrefillMs: w.done.PrefillMs, DecodeMs: w.done.DecodeMs,
	}, w.done.Requests, w.company, now)
}
