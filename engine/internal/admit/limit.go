package admit

import (
	"fmt"
	"math"
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

// What the limit follows from. It grows by one a window and shrinks by a factor, as
// congestion avoidance does (Chiu and Jain 1989), and doubles until it has shrunk once.
const (
	// A window has at least so many tokens, and lasts at least so long.
	windowTokens = 16
	windowLasts  = 250 * time.Millisecond
	// idleShare of a goal must be free before one more is let in.
	idleShare = 0.1
	// sharpest is the most that one window takes away.
	sharpest = 0.5
	// start is how many run before anything is measured.
	start = 4
)

// limiter decides how many requests run at a time: as many as keep the goal. Its gate's
// lock guards it.
type limiter struct {
	goal  Goal
	most  int // the backend's slots
	limit float64
	why   string // it is not another; empty: there is no goal
	// steep is whether the limit has never been too high.
	steep bool

	// The present window.
	began         time.Time
	tokens        int64
	spent         time.Duration // of all tokens together
	firsts, lates int           // first tokens, and those of them that took longer than the goal
	pressed       bool          // whether somebody waited while as many ran as may; its gate sets it
}

// set takes the backend's slots and the goal, and begins anew where one of them is another.
func (l *limiter) set(most int, goal Goal) {
	if l.most == most && l.goal == goal {
		return
	}
	*l = limiter{most: most, goal: goal, limit: float64(most), steep: true}
	if goal != (Goal{}) {
		l.limit, l.why = min(start, float64(most)), "nothing is measured yet"
	}
}

// now is how many may run.
func (l *limiter) now() int { return int(l.limit) }

// first takes the time from a request's entrance into the backend to its first token.
func (l *limiter) first(took time.Duration) {
	l.firsts++
	if l.goal.First > 0 && took > l.goal.First {
		l.lates++
	}
}

// token takes n tokens of one answer that took so long, while so many requests ran, and
// reports whether the limit is another now.
func (l *limiter) token(n int64, took time.Duration, running int, now time.Time) bool {
	if l.began.IsZero() {
		l.began = now
	}
	l.tokens += n
	l.spent += took
	if l.tokens < windowTokens || now.Sub(l.began) < windowLasts {
		return false
	}
	before := l.now()
	l.decide(running)
	l.began, l.tokens, l.spent, l.firsts, l.lates, l.pressed = now, 0, 0, 0, 0, false
	return l.now() != before
}

// decide ends a window.
func (l *limiter) decide(running int) {
	each := l.spent / time.Duration(l.tokens)
	slow := 0.0 // how much of the goal was needed; more than 1 is too much
	why := ""
	if l.goal.Token > 0 {
		slow = float64(each) / float64(l.goal.Token)
		why = fmt.Sprintf("a token takes %s, its goal is %s", rounded(each), l.goal.Token)
	}
	if 2*l.lates > l.firsts {
		slow = max(slow, 1/sharpest)
		why = fmt.Sprintf("%d of %d first tokens took the backend longer than their goal, %s", l.lates, l.firsts, l.goal.First)
	}
	switch {
	case slow > 1 && running > l.now():
		// Those who run too many have still to end: nothing is known of the limit yet.
	case slow > 1:
		l.limit = max(1, math.Floor(l.limit*max(sharpest, 1/slow)))
		l.steep, l.why = false, why
	case slow <= 1-idleShare && l.pressed && l.steep:
		l.limit, l.why = min(2*l.limit, float64(l.most)), why
	case slow <= 1-idleShare && l.pressed:
		l.limit, l.why = min(l.limit+1, float64(l.most)), why
	}
}

func rounded(d time.Duration) time.Duration {
	if d > 100*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
