// Package pace decides how many requests run in a backend at a time, so that their answers
// keep a goal for the time to the first token and for each token after it.
//
// Called by admit, which measures a window at a time: Step is a pure function of what was
// decided before and of one Window. Its one rule: whatever it is given, the limit is between
// 1 and most.
//
// The rule is additive increase and multiplicative decrease (Chiu and Jain, 1989), with two
// gradients of Netflix's concurrency-limits (Gradient2Limit: the limit times wanted ÷ measured
// latency, at least halved): a step shrinks by what the goal was missed by, and grows by what
// is free of it. That is safe since n requests take a backend at most n times as long as one:
// c times as many have tokens take at most c times as long. As of CUBIC (RFC 9438), the limit at
// which the goal was missed is remembered, and not tried again for a while.
//
// Neither library fits as it is, nor failsafe-go's adaptive limiter: they compare how long calls
// take with how long they took before, and here a call lasts as long as its answer is long.
//
// What holds of it, for any State and Window:
//   - without a goal the limit is most, and nothing is measured;
//   - what can't be true (tokens in no time, more first tokens late than came) has no effect, and
//     of two or more streams one alone can't shrink the limit, nor one of the first tokens;
//   - it grows only where somebody waits, and shrinks only where the goal is missed;
//   - under load it comes from any State to where the goal is just kept within a minute.
package pace

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Goal is what answers are to keep. A zero one is none: then as many requests run as the
// backend has slots.
type Goal struct {
	// First is the longest time to the first token, the wait in the queue included.
	First time.Duration
	// Token is the longest time for each token after it.
	Token time.Duration
}

// Bounds of a window, which its caller keeps: it ends when it has so many tokens and has
// lasted so long, or when it has lasted the longest and anything was measured.
const (
	WindowTokens  = 32
	WindowLasts   = 500 * time.Millisecond
	WindowLongest = 5 * time.Second
)

// Sample is what one stream got in a window.
type Sample struct {
	// Tokens after the first one.
	Tokens int64
	// Took is how long they took the backend together.
	Took time.Duration
}

// Window is what was observed since the last step.
type Window struct {
	// Lasted is how long the window was.
	Lasted time.Duration
	// Streams has a sample of each stream that got tokens.
	Streams []Sample
	// Firsts are the first tokens that came, and Late those that took the backend longer than
	// the goal although the backend could have been in time: of prompts that are too long for that, none.
	Firsts, Late int
	// Running is how many requests ran, on average of the tokens; 0: not known.
	Running float64
	// Over is whether more run now than may: those who were let in before the limit shrank.
	Over bool
	// Waited is whether somebody waited while as many ran as may.
	Waited bool
}

// State is what a step leaves for the next one.
type State struct {
	// Limit is how many requests may run; a fraction does not count yet.
	Limit float64
	// Why the limit is not another, for a person; empty: there is no goal.
	Why string
	// missed is the limit at which the goal was missed last, and ago how long ago; 0: none.
	missed float64
	ago    time.Duration
	// firsts have come at this limit, late of them, and count when they are a few.
	firsts, late int
}

const (
	// start is how many run before anything is measured.
	start = 4
	// spare is the part of the goal that a step which grows leaves free.
	spare = 0.1
	// fastest bounds what one step changes: by this factor.
	fastest = 2
	// forget is after how long a limit at which the goal was missed is tried again.
	forget = 10 * time.Second
	// few first tokens are judged together.
	few = 4
	// quantile of the streams must keep the goal. Of two streams or three, the slowest does not count.
	quantile = 0.75
)

// Begin is the State of which nothing is measured.
func Begin(goal Goal, most int) State {
	if goal == (Goal{}) {
		return State{Limit: float64(max(most, 0))}
	}
	return State{Limit: min(start, float64(max(most, 1))), Why: "nothing is measured yet"}
}

// Now is how many requests may run.
func (s State) Now() int { return int(s.Limit) }

// Step returns the State after a window, of a backend that runs at most so many requests.
func Step(s State, w Window, goal Goal, most int) State {
	if goal == (Goal{}) || most < 1 {
		return Begin(goal, most)
	}
	s = s.sane(most)
	if s.ago += min(max(w.Lasted, 0), WindowLongest); s.ago >= forget {
		s.missed = 0
	}
	used, why := w.used(goal.Token)
	used, why = s.first(w, goal.First, used, why)
	if why == "" || used > 1 && w.Over { // nothing is known of this limit
		return s
	}
	switch running := w.running(s); {
	case used > 1 && s.Limit < 2:
		s.Why = "not even one at a time keeps the goal: " + why
	case used > 1:
		s.missed, s.ago, s.firsts, s.late = s.Limit, 0, 0, 0
		s.Limit = math.Floor(max(s.Limit/fastest, min(s.Limit-1, running/used)))
		s.Why = why
	case w.Waited && used <= 1-spare && s.Limit < float64(most):
		s.grow(running*(1-spare)/max(used, 1e-9), most)
		s.Why = why
	default:
		s.Why = why
	}
	return s.sane(most)
}

// grow lets more in: up to what surely keeps the goal, and one more to find out.
func (s *State) grow(sure float64, most int) {
	to := max(s.Limit+1, min(fastest*s.Limit, math.Floor(sure)))
	if s.missed > 0 {
		to = min(to, max(s.Limit, s.missed-1))
	}
	s.Limit = min(to, float64(most))
}

// sane has the limit within its bounds, whatever it was.
func (s State) sane(most int) State {
	if !(s.Limit >= 1) {
		s.Limit = 1
	}
	s.Limit = min(s.Limit, float64(most))
	if !(s.missed >= 1) || s.ago < 0 {
		s.missed, s.ago = 0, 0
	}
	if s.firsts < 0 || s.late < 0 || s.late > s.firsts {
		s.firsts, s.late = 0, 0
	}
	return s
}

// running is how many ran, as far as that can be believed: at least one, at most as many as may.
func (w Window) running(s State) float64 {
	if !(w.Running >= 1) {
		return s.Limit
	}
	return min(w.Running, s.Limit)
}

// used is how much of the goal for a token was needed, more than 1 is too much; why is empty
// where nothing was measured.
func (w Window) used(goal time.Duration) (used float64, why string) {
	each := w.token()
	if each == 0 {
		return 0, ""
	}
	why = fmt.Sprintf("a token takes %s", rounded(each))
	if goal > 0 {
		used = float64(each) / float64(goal)
		why += fmt.Sprintf(", its goal is %s", goal)
	}
	return used, why
}

// first judges first tokens, too, once a few have come.
func (s *State) first(w Window, goal time.Duration, used float64, why string) (float64, string) {
	if goal <= 0 || w.Firsts <= 0 || w.Late < 0 || w.Late > w.Firsts {
		return used, why
	}
	s.firsts, s.late = s.firsts+w.Firsts, s.late+w.Late
	if s.firsts < few {
		return used, why
	}
	firsts, late := s.firsts, s.late
	s.firsts, s.late = 0, 0
	switch {
	case 2*late > firsts:
		return max(used, fastest), fmt.Sprintf("%d of %d first tokens took the backend longer than their goal, %s", late, firsts, goal)
	case why == "":
		why = fmt.Sprintf("first tokens keep their goal, %s", goal)
	}
	return used, why
}

// token is how long a token takes the streams that are slower than most of them; 0: not known.
func (w Window) token() time.Duration {
	each := make([]time.Duration, 0, len(w.Streams))
	for _, s := range w.Streams {
		if s.Tokens > 0 && s.Took > 0 {
			each = append(each, s.Took/time.Duration(s.Tokens))
		}
	}
	if len(each) == 0 {
		return 0
	}
	slices.Sort(each)
	return each[int(quantile*float64(len(each)-1))]
}

func rounded(d time.Duration) time.Duration {
	if d > 100*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
