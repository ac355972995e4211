package token

import (
	"slices"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Templates that print the date do so by the clock of their engine, whose zone is not known here.
// Their prompts are counted for each day that it may be: a count is exact if it is the same on all
// of them, and ids are if the prompt is.

// days are the dates that it may be where an engine is, and the one that it is here. They are
// numbered from 1970-01-01 on, from 1.
type days struct{ first, here, last int64 }

func daysOf(now time.Time) days {
	// The zones that there are, and how far clocks may be off, or a request may wait before it
	// is rendered.
	const west, east, slack = -12 * time.Hour, 14 * time.Hour, 10 * time.Minute
	_, here := now.Zone()
	return days{dayOf(now.Add(west - slack)), dayOf(now.Add(time.Duration(here) * time.Second)), dayOf(now.Add(east + slack))}
}

const day = 24 * time.Hour

// dayOf is the date of a time in UTC.
func dayOf(t time.Time) int64 { return t.Unix()/int64(day/time.Second) + 1 }

// elsewhere returns a time of each of the dates but the one here.
func (d days) elsewhere() (all []time.Time) {
	for n := d.first; n <= d.last; n++ {
		if n != d.here {
			all = append(all, time.Unix((n-1)*int64(day/time.Second), 0).Add(day/2).UTC())
		}
	}
	return all
}

// clocked reports whether the prompt of a conversation, which was rendered by the plan rendered,
// a copy of p, may be another one by the engine's clock, other than same allows. Doubts that there are
// already are enough.
func (m *Model) clocked(c *Chat, p plan, rendered *plan, same func(prompt []byte) bool) bool {
	switch {
	case rendered.doubt != Certain || rendered.reads == jinja.NotRead:
		return false
	case rendered.reads == jinja.TimeRead:
		return true
	}
	for _, at := range daysOf(time.Now()).elsewhere() {
		other := p
		other.at = at
		if prompt, err := m.render(c, &other); err != nil || !same(prompt) {
			return true
		}
	}
	return false
}

// given says whether the engine gives the template the date, without being asked for it.
func (t *template) given() bool {
	return t.llama && (t.mentions("date_string") || t.mentions("datetime"))
}

// datedChats are conversations of the kinds for which templates print the date.
func datedChats() []Chat {
	user := Message{Role: "user", Content: []byte("Hello")}
	return []Chat{
		{Messages: []Message{user}},
		{Messages: []Message{{Role: "system", Content: []byte("Be brief.")}, user}},
		{Messages: []Message{user}, Tools: []byte(`[{"type":"function","function":{"name":"f","description":"f","parameters":{"type":"object","properties":{}}}}]`)},
	}
}

// PrintsTime reports whether the chat template prints the time of the day for some kind of
// conversation, or what it is derived from: those are always estimates, ByClock.
func (m *Model) PrintsTime() bool { return m.reads() == jinja.TimeRead }

// PrintsDate reports whether it prints the date, and no time of the day.
func (m *Model) PrintsDate() bool { return m.reads() == jinja.DateRead }

func (m *Model) reads() (r jinja.Reading) {
	if m.template == nil || m.template.channels {
		return jinja.NotRead
	}
	for _, c := range datedChats() {
		if p, err := m.plan(&c); err == nil {
			if _, err = m.render(&c, &p); err == nil {
				r = max(r, p.reads)
			}
		}
	}
	return r
}

// DatesDiffer reports whether some kind of conversation is an estimate now, as the dates that
// it may be where the engine is are counted differently.
func (m *Model) DatesDiffer() bool {
	return slices.ContainsFunc(datedChats(), func(c Chat) bool {
		_, exact := m.CountChat(&c)
		return !exact && c.Doubt == ByClock
	})
}
