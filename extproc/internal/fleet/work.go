package fleet

import (
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/scrape"
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
