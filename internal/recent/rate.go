package recent

import (
	"sync/atomic"
	"time"
)

// Rate bounds how often something is done, and how often at once. It is safe for concurrent
// use, takes no lock and allocates nothing.
type Rate struct {
	// Constant after NewRate.
	every, burst int64 // nanoseconds between two, and how many of these may be ahead

	// Atomic.
	at atomic.Int64 // until when what was done would have taken at the rate, in Unix nanoseconds
}

// NewRate returns a rate of so many a second, and so many at once after a pause.
func NewRate(perSecond, atOnce int) *Rate {
	every := int64(time.Second) / int64(perSecond)
	return &Rate{every: every, burst: every * int64(atOnce)}
}

// Take reports whether it may be done once more now; then it counts as done.
func (r *Rate) Take(now time.Time) bool {
	n := now.UnixNano()
	for {
		at := r.at.Load()
		next := max(at, n-r.burst) + r.every
		if next > n {
			return false
		}
		if r.at.CompareAndSwap(at, next) {
			return true
		}
	}
}
