package admit

import (
	"time"

	"millrace.dev/millrace/engine/internal/pace"
)

// Goal is what answers are to keep. A zero one is none: then as many requests run as the
// backend has slots.
type Goal = pace.Goal

const (
	// mostSamples bounds the streams that count in a window.
	mostSamples = 4096
	// servedFew is how many requests must have ended before the wait of others is predicted,
	// servedWeight the weight of the newest of them.
	servedFew, servedWeight = 8, 0.1
	// prefillKept is what is left, a second later, of the greatest speed that prompts were seen to have.
	prefillKept = 1 - 1./600
)

// limiter measures a backend by windows, and has pace decide after each how many requests
// run at a time. Its gate's lock guards it.
type limiter struct {
	goal  Goal
	most  int // the backend's slots
	state pace.State

	// prefill is the speed of prompts that have the backend for themselves, in tokens per
	// second; 0: not known. served is how long requests are in the backend, ends how many have
	// shown it.
	prefill float64
	served  time.Duration
	ends    int

	// The present window.
	number  uint64
	began   time.Time     // without the time in which nothing ran; zero: it has not
	lasted  time.Duration // until nothing ran any more
	tokens  int64
	running float64 // the sum, over what was measured, of how many ran
	weight  float64
	window  pace.Window
	pressed bool // whether somebody waited while as many ran as may; its gate sets it
}

// set takes the limits, and begins anew where the slots or the goal are others.
func (l *limiter) set(limits Limits) {
	if l.prefill *= prefillKept; limits.Prefill > l.prefill {
		l.prefill = limits.Prefill
	}
	if l.most == limits.Slots && l.goal == limits.Goal {
		return
	}
	*l = limiter{goal: limits.Goal, most: limits.Slots, number: l.number + 1, prefill: limits.Prefill, state: pace.Begin(limits.Goal, limits.Slots)}
}

// now is how many may run.
func (l *limiter) now() int { return l.state.Now() }

// first takes the time from a request's entrance into the backend to its first token. One that
// is late counts only where a prompt of so many tokens could have been in time.
func (l *limiter) first(took time.Duration, prompt int64) {
	late := took > l.goal.First
	if late && l.prefill > 0 && float64(prompt)/l.prefill > l.goal.First.Seconds() {
		return
	}
	l.window.Firsts++
	if late {
		l.window.Late++
	}
}

// sample takes n tokens of a ticket's answer that took so long.
func (l *limiter) sample(t *Ticket, n int64, took time.Duration) {
	if t.window != l.number || t.sample >= len(l.window.Streams) {
		if len(l.window.Streams) == mostSamples {
			return
		}
		t.window, t.sample = l.number, len(l.window.Streams)
		l.window.Streams = append(l.window.Streams, pace.Sample{})
	}
	s := &l.window.Streams[t.sample]
	s.Tokens, s.Took = s.Tokens+n, s.Took+took
	l.tokens += n
}

// end ends the window, if it is due while so many run, and reports whether the limit is another now.
func (l *limiter) end(running int, waiting bool, now time.Time) bool {
	l.running, l.weight = l.running+float64(running), l.weight+1
	if l.began.IsZero() {
		l.began = now
	}
	lasted := now.Sub(l.began)
	if lasted < pace.WindowLasts || l.tokens < pace.WindowTokens && lasted < pace.WindowLongest {
		return false
	}
	before := l.now()
	w := l.window
	w.Lasted, w.Running = lasted, l.running/l.weight
	w.Over, w.Waited = running > before, l.pressed || waiting
	l.state = pace.Step(l.state, w, l.goal, l.most)
	l.number++
	l.window = pace.Window{Streams: l.window.Streams[:0]}
	l.began, l.tokens, l.running, l.weight, l.pressed = now, 0, 0, 0, false
	return l.now() != before
}

// idle says that nothing runs any more, busy that something does again: the time between does not count.
func (l *limiter) idle(now time.Time) {
	if !l.began.IsZero() {
		l.lasted = now.Sub(l.began)
	}
}

func (l *limiter) busy(now time.Time) {
	l.began, l.lasted = now.Add(-l.lasted), 0
}

// serve takes how long a request was in the backend.
func (l *limiter) serve(took time.Duration) {
	l.ends++
	l.served += time.Duration(max(servedWeight, 1/float64(l.ends)) * float64(took-l.served))
}

// wait is how long a request is expected to wait that has so many before it; 0: not known.
func (l *limiter) wait(ahead int) time.Duration {
	if l.ends < servedFew || l.now() < 1 {
		return 0
	}
	return time.Duration(float64(l.served) * float64(ahead+1) / float64(l.now()))
}
