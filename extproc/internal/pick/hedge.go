package pick

import (
	"math"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/trust"
)

// How long an attempt is waited for before the next endpoint is asked, too.
const (
	// hedgeShare is by what factor it may take longer than was predicted.
	hedgeShare = 4
	// openEnded is by what factor an answer may be longer than expected, beside that, where
	// nothing bounds it and all of it comes at once.
	openEnded = 4
	// unknownStream and unknownWhole are for engines of which no speed is known.
	unknownStream, unknownWhole = 30 * time.Second, 2 * time.Minute
	// mostPatience bounds by how much more hedges that were for nothing delay those to come,
	// and spare is what they leave to the time that was needed.
	mostPatience, spare = 8, 1.25
	// patienceStep is by what share an answer without a hedge makes that less again.
	patienceStep = 0.01
	// longestHedge is a time after which there need be none.
	longestHedge = 10 * time.Minute
)

// Hedge is how long Envoy waits for the first endpoint of a choice before it asks the next
// one, too. The zero Hedge: as long as it takes.
type Hedge struct {
	// After is that time, Due what it is by the prediction alone.
	After, Due time.Duration
}

// Hedge returns how long to wait for the first endpoint of a choice. whole is whether the
// answer comes only when all of it is there, most how many tokens it may have.
//
// That is never less than the policy says, nor than a few times what was predicted: an
// endpoint that takes that long hangs, or is so busy that another one is worth trying. It
// gets longer when the first endpoint answers after all.
func (m *Model) Hedge(p *Policy, list []Candidate, whole bool, most int) Hedge {
	if len(list) < 2 {
		return Hedge{}
	}
	least := p.HedgeAfter
	if least <= 0 && !list[0].Ours() {
		least = p.HedgeOthers
	}
	if least <= 0 {
		return Hedge{}
	}
	due := max(least, m.due(&list[0], whole, most))
	after := time.Duration(float64(due) * m.patience.value())
	return Hedge{min(after, max(longestHedge, least)), due}
}

// due is how long an endpoint may take for the first of an answer.
func (m *Model) due(c *Candidate, whole bool, most int) time.Duration {
	switch known := c.Prior.Decode > 0 || m.speed.Load() != nil; {
	case !known && whole:
		return unknownWhole
	case !known:
		return unknownStream
	}
	ms := c.Wait + c.Load + c.Prefill
	if whole {
		longest := openEnded * c.Decode
		if c.Output > 0 && most > 0 {
			longest = min(longest, max(c.Decode, c.Decode*float64(most)/float64(c.Output)))
		}
		ms += longest
	}
	return min(longestHedge, time.Duration(min(hedgeShare*ms, 1e9)*float64(time.Millisecond)))
}

// patience is by what factor endpoints that are well take longer than predictions allow,
// as hedges have shown. The zero value is 1.
type patience struct {
	more atomic.Uint64 // bits of the factor less 1
}

func (p *patience) value() float64 { return 1 + math.Float64frombits(p.more.Load()) }

// answered takes in an answer that came by the first endpoint. needed is by what factor it
// took longer than was due, if the next endpoint was asked for nothing; else 0.
func (p *patience) answered(needed float64) {
	for {
		old := p.more.Load()
		more := math.Float64frombits(old)
		if needed > 0 {
			more = max(more, trust.Clamp(spare*needed, 1, mostPatience)-1)
		} else {
			more *= 1 - patienceStep
		}
		if more < 1e-3 {
			more = 0
		}
		if p.more.CompareAndSwap(old, math.Float64bits(more)) {
			return
		}
	}
}
