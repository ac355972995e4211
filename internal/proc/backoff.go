package proc

import "time"

// Backoff says how long to wait before a process that died is started again.
type Backoff struct {
	// Min is the first wait, Max the longest; each is twice the one before.
	Min, Max time.Duration
	// Reset is how long a process must have run to count as healthy: its next
	// death waits Min again.
	Reset time.Duration

	last time.Duration
}

// Next returns the wait after a run that lasted ranFor.
func (b *Backoff) Next(ranFor time.Duration) time.Duration {
	switch {
	case b.last == 0 || ranFor >= b.Reset:
		b.last = b.Min
	default:
		b.last = min(2*b.last, b.Max)
	}
	return b.last
}
