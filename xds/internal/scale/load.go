package scale

import (
	"math"
	"time"
)

const (
	// tiny stands for nothing where something is divided by it.
	tiny = 1e-12
	// least is what counts as something, per second.
	least = 1e-3
)

// number returns f if it is one that can be counted with, else 0.
func number(f float64) float64 {
	if !(f > 0) || math.IsInf(f, 1) {
		return 0
	}
	return f
}

func (l Load) clean() Load { return Load{number(l.Requests), number(l.Prompt), number(l.Output)} }

// Scaled is so many times l.
func (l Load) Scaled(by float64) Load { return Load{l.Requests * by, l.Prompt * by, l.Output * by} }

// Plus is both together.
func (l Load) Plus(o Load) Load {
	return Load{l.Requests + o.Requests, l.Prompt + o.Prompt, l.Output + o.Output}
}

func (l Load) max(o Load) Load {
	return Load{max(l.Requests, o.Requests), max(l.Prompt, o.Prompt), max(l.Output, o.Output)}
}

// over is how many replicas would be busy all the time. What a replica can do of something
// that is not known does not count.
func (l Load) over(rate Load) float64 {
	busy := 0.0
	for _, p := range [...][2]float64{{l.Requests, rate.Requests}, {l.Prompt, rate.Prompt}, {l.Output, rate.Output}} {
		if p[1] > 0 {
			busy += p[0] / p[1]
		}
	}
	return busy
}

// asks reports whether anything is asked now.
func (d Demand) asks() bool { return d.Queued > 0 || d.Running > 0 || d.Load != Load{} }

const (
	// fast and slow are in how long what was asked counts for half as much, nearly: of the
	// mean that is followed, and of the one whose distance from it shows where demand goes.
	fast, slow = 10 * time.Second, time.Minute
	// buckets is in how many pieces the time before is remembered.
	buckets = 8
	// mostGrowth bounds what is expected: so many times what is there.
	mostGrowth = 2
	// chance is by how many standard deviations what was asked may differ from what is asked on
	// average: demand must exceed what there is by more, and what remains must bear it. uneven
	// is by how much that is more as requests are not alike.
	chance, uneven = 2, 1.4
	// gap is from which time on between two decisions the one before says little.
	gap = time.Minute
	// doubtUp and doubtDown are in how long doubt doubles, and goes away; mostDoubt bounds it.
	doubtUp, doubtDown, mostDoubt = 2 * time.Minute, 20 * time.Minute, 2
)

// Memory is what one decision leaves to the next.
type Memory struct {
	// at is when it was left; zero: never. since is from when on nothing is missing in it.
	at, since time.Time
	// fast and slow are means of what was asked, as it comes in.
	fast, slow Load
	// peaks has the greatest demand of each piece of the time before; piece is the number of
	// the newest.
	peaks [buckets]Load
	piece int64
	// asked is when something was last asked, pressed when as many requests ran as there were
	// replicas, or some waited.
	asked, pressed time.Time
	// doubt is by how much less than measured replicas are taken to do, 1 to mostDoubt.
	doubt float64
	// cheaper is since when another set of replicas would be cheaper; zero: it would not be.
	cheaper time.Time
}

// next takes in what is asked now.
func (m Memory) next(in *Input, starting bool, lead time.Duration) Memory {
	d, now := in.Demand, in.Now
	passed := now.Sub(m.at)
	if m.at.IsZero() || passed < 0 || passed > gap {
		m = Memory{at: now, since: now, fast: d.Load, slow: d.Load, asked: now, pressed: now, doubt: 1, piece: pieceOf(now, in.Settings.DownAfter)}
		m.remember(in, lead)
		return m
	}
	m.at = now
	m.fast = mean(m.fast, d.Load, passed, fast)
	m.slow = mean(m.slow, d.Load, passed, slow)
	if d.asks() {
		m.asked = now
	}
	if n := in.serving(); d.Queued > 0 || d.Running >= n {
		m.pressed = now
	}
	late := d.Attainment >= 0 && d.Attainment < in.Settings.Attainment && d.Load != Load{}
	late = late || in.Settings.FirstToken > 0 && d.Oldest > in.Settings.FirstToken && d.Queued > 0
	switch {
	case late && !starting:
		m.doubt *= math.Exp2(passed.Seconds() / doubtUp.Seconds())
	case !late:
		m.doubt -= passed.Seconds() / doubtDown.Seconds()
	}
	m.doubt = min(max(m.doubt, 1), mostDoubt)
	m.remember(in, lead)
	return m
}

func mean(was, is Load, passed, over time.Duration) Load {
	a := math.Exp(-passed.Seconds() / over.Seconds())
	l := was.Scaled(a).Plus(is.Scaled(1 - a))
	if l.Requests+l.Prompt+l.Output < least {
		return Load{}
	}
	return l
}

// serving is how many replicas there are that don't drain.
func (in *Input) serving() (n int) {
	for _, r := range in.Replicas {
		if r.State != Draining {
			n++
		}
	}
	return n
}

// pieceOf numbers the pieces of time.
func pieceOf(now time.Time, of time.Duration) int64 {
	return now.UnixNano() / int64(max(of/(buckets-1), time.Second))
}

// remember notes the greatest demand of this piece of time.
func (m *Memory) remember(in *Input, lead time.Duration) {
	p := pieceOf(in.Now, in.Settings.DownAfter)
	if p < m.piece || p-m.piece >= buckets {
		m.peaks = [buckets]Load{}
	} else {
		for i := m.piece + 1; i <= p; i++ {
			m.peaks[i%buckets] = Load{}
		}
	}
	m.piece = p
	m.peaks[p%buckets] = m.peaks[p%buckets].max(m.expects(lead).sure)
}

// met notes that there are more replicas for a demand: they stay as if it had been there.
func (m *Memory) met(l Load) { m.peaks[m.piece%buckets] = m.peaks[m.piece%buckets].max(l) }

// past is the greatest demand of the time before.
func (m *Memory) past() (most Load) {
	for _, p := range m.peaks {
		most = most.max(p)
	}
	return most
}

// expected is the demand that is expected when a replica serves that is started now.
type expected struct {
	// sure is what it is at least, likely what it is on average, calm what is not exceeded most
	// of the time as long as nothing changes. Requests come by chance, so that of few nothing
	// follows.
	sure, likely, calm Load
}

func (e *expected) scale(by float64) {
	e.sure, e.likely, e.calm = e.sure.Scaled(by), e.likely.Scaled(by), e.calm.Scaled(by)
}

func (m *Memory) expects(lead time.Duration) expected {
	// A mean of requests that come by themselves is off as if it was of all in twice its time.
	off := func(of time.Duration, requests float64) float64 {
		return chance * uneven / math.Sqrt(2*of.Seconds()*max(requests, tiny))
	}
	quickOff := off(fast, m.fast.Requests)
	each := func(quick, steady, by float64) float64 {
		// On a ramp each mean is behind by its own time.
		slope := max(0, (quick*(1-min(1, quickOff))-steady)/(slow-fast).Seconds())
		return min(quick*by+slope*(fast+lead).Seconds(), mostGrowth*quick)
	}
	all := func(by float64) Load {
		return Load{each(m.fast.Requests, m.slow.Requests, by), each(m.fast.Prompt, m.slow.Prompt, by), each(m.fast.Output, m.slow.Output, by)}
	}
	return expected{all(1 / (1 + quickOff)), all(1), m.slow.Scaled(1 + min(1, off(slow, m.slow.Requests)))}
}
