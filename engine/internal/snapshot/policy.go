package snapshot

import (
	"time"

	"millrace.dev/millrace/engine/enginepb"
)

const (
	// leastTokens is how many tokens a state must have to be saved: fewer are computed again
	// about as fast as anything is read.
	leastTokens = 128
	// leastGain is by which factor restoring must be faster than computing again, by what is
	// known of both, for one to be saved or restored.
	leastGain = 2
	// stallShare is the part of its time for which a backend that has requests may be kept
	// from them by saving.
	stallShare = 0.04
	// halfLife is how long after its last use a conversation is half as likely to come back as
	// at once. Of real chats most next turns come within minutes, and few after an hour.
	halfLife = 10 * time.Minute
	// firstTurn is how likely a conversation of one turn is to come back, against a longer one.
	firstTurn = 0.5
)

// value is what a byte of a snapshot is worth: the time that it saves, in seconds, by the chance
// that it is asked for, by its size.
func value(h *enginepb.SnapshotHeader, bytes int64, idle time.Duration) float64 {
	chance := 1 / (1 + max(0, idle.Seconds())/halfLife.Seconds())
	if len(h.GetKeys()) < 2 {
		chance *= firstTurn
	}
	return float64(h.GetRecomputeMs()) / 1000 * chance / float64(max(1, bytes))
}

// pace is how fast states move, in bytes of state per second.
type pace struct{ restore float64 }

// firstPace is taken before any was restored: of a file in the page cache, with one core.
const firstPace = 100e6

// restoring predicts how long a state takes to restore.
func (p pace) restoring(bytes uint64) time.Duration {
	const asking = 5 * time.Millisecond
	return asking + time.Duration(float64(bytes)/p.restore*float64(time.Second))
}

// observed takes in how long one took.
func (p *pace) observed(bytes uint64, took time.Duration) {
	const weight = 0.3
	if took > 0 {
		p.restore += weight * (float64(bytes)/took.Seconds() - p.restore)
	}
}

// computing predicts how long so many tokens are worked on, by the measured speed in tokens per
// second, or where that is not known, by what the header says; nil: 0 then.
func computing(tokens uint32, prefill float64, h *enginepb.SnapshotHeader) time.Duration {
	if prefill > 0 {
		return time.Duration(float64(tokens) / prefill * float64(time.Second))
	}
	if h == nil {
		return 0
	}
	return time.Duration(float64(tokens) / float64(h.GetTokens()) * float64(h.GetRecomputeMs()) * float64(time.Millisecond))
}

// worth is how many tokens of work are spared by restoring h, of which so many tokens would be of
// use, and some of which the cache has anyway; 0: it is not faster than computing them.
func worth(h *enginepb.SnapshotHeader, useful, have uint32, prefill float64, p pace) uint32 {
	if useful <= have {
		return 0
	}
	takes := p.restoring(h.GetStateBytes())
	if computing(useful-have, prefill, h) < leastGain*takes {
		return 0
	}
	if prefill == 0 {
		return useful - have
	}
	return useful - have - min(useful-have, uint32(takes.Seconds()*prefill))
}

// wait is how long the next state is not to be saved after one for which the backend stood still.
func wait(stalled time.Duration) time.Duration {
	return time.Duration(float64(stalled) * (1/stallShare - 1))
}
