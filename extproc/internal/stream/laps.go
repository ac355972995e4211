package stream

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// lap is a part of a decision.
type lap uint8

const (
	lapRead   lap = iota // unpack and parse the body
	lapCount             // its tokens, and the answer's
	lapLocate            // where its prefixes are cached
	lapChoose            // price the endpoints, reserve
	lapRecord            // what will be cached there
	lapSend              // write the answer
	lapsKinds
)

// lapNames are label values.
var lapNames = [lapsKinds]string{"read", "count", "locate", "choose", "record", "send"}

// sampled is of how many decisions one is measured in its parts: to read the clock
// costs a few per cent of a small one.
const sampled = 16

// laps measures the parts of one decision. The zero laps measures nothing.
type laps struct {
	to   *[lapsKinds]prometheus.Observer
	last time.Time
}

// begin measures this decision if it is its turn.
func (l *laps) begin(m *metrics, turn *uint32) {
	*l = laps{}
	if *turn++; *turn%sampled == 0 {
		*l = laps{to: &m.laps, last: time.Now()}
	}
}

// end ends a part; the next one begins.
func (l *laps) end(of lap) {
	if l.to == nil {
		return
	}
	now := time.Now()
	l.to[of].Observe(now.Sub(l.last).Seconds())
	l.last = now
}

// stop measures nothing more of this decision.
func (l *laps) stop() { l.to = nil }
