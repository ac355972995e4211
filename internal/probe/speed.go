package probe

import (
	"math"

	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/trust"
)

const (
	// speedKeep is what each sample leaves of those before it.
	speedKeep = 0.9
	// speedDrift is by what share a speed must differ from what was published to be
	// published anew.
	speedDrift = 0.2
	// A sample shows another speed by the logarithm of how far it is off, up to speedOdd; when
	// those that were off one way without a break come to speedTurn, the engine has changed, and
	// they alone count: two that are off by half or more, three by a third. An average of many
	// samples takes as many to follow, and an engine that gets few requests, as it was slow,
	// has few.
	speedTurn, speedOdd = 0.78, 0.69
	// turnTokens is how many tokens these must have generated.
	turnTokens = 16
	// speedCrowd is by how much each further request at a time is taken to slow a
	// token down.
	speedCrowd = 0.5
)

// speeds estimates how fast an engine is, or all engines of a model together. The latter
// stands in for an engine that has yet to show its own: else one that is not known would
// seem faster than one that has been seen to work, and draw conversations from where
// they are cached.
type speeds struct {
	// Decaying sums, in milliseconds and tokens.
	prefillMs, prefill, decodeMs, decode float64
	// published is what Observations have.
	published Speed
	// turn is what it has decoded since its speed seems to be another: not of all engines
	// together, which differ, nor of prefill, whose speed goes by the length of prompts.
	turn turn
}

// turn is the samples of late that were all off the estimate one way.
type turn struct {
	ms, tokens float64 // of the one that was off least
	least      float64 // how far that was
	off        float64 // how far all were: logarithms, bounded, added up; below 0: slower
	all        float64 // tokens of all of them
	n          int
}

// add takes in a sample of an engine that was estimated so (ms, tokens), and returns whether it
// has changed.
func (t *turn) add(ms, tokens, oldMs, oldTokens float64) bool {
	if oldMs <= 0 || oldTokens <= 0 {
		return false
	}
	off := math.Log(tokens / ms * oldMs / oldTokens)
	if t.off*off < 0 || math.Abs(off) < speedDrift {
		*t = turn{}
	}
	if math.Abs(off) < speedDrift {
		return false
	}
	if t.n == 0 || math.Abs(off) < t.least {
		t.ms, t.tokens, t.least = ms, tokens, math.Abs(off)
	}
	t.n, t.all = t.n+1, t.all+tokens
	t.off += trust.Clamp(off, -speedOdd, speedOdd)
	return t.n > 1 && t.all >= turnTokens && math.Abs(t.off) >= speedTurn
}

// follow is add for one engine: if what it has done of late is another speed, that alone counts,
// by the sample that was off least: one that is far off by chance must not decide.
func (s *speeds) follow(d *scrape.Since, company float64) {
	ms, n, ok := decoded(d, company)
	turned := ok && s.turn.add(ms, n, s.decodeMs, s.decode)
	s.add(d, company)
	if turned {
		weight := float64(s.turn.n)
		s.decodeMs, s.decode = weight*s.turn.ms, weight*s.turn.tokens
		s.turn = turn{}
	}
}

// decoded is the time and the tokens of a sample's decode, as they count, as if each request had
// run alone.
func decoded(d *scrape.Since, company float64) (ms, tokens float64, ok bool) {
	if d.Output <= 0 || d.DecodeMs <= 0 {
		return 0, 0, false
	}
	ms, tokens = weighed(d.DecodeMs/(1+speedCrowd*max(0, company-1)), d.Output)
	return ms, tokens, true
}

// Bounds of what one sample may weigh, in milliseconds and tokens, so that those after it
// outweigh it soon, whatever it was; and of speeds that are believed, in tokens per second.
const (
	mostSampleMs, mostSample = 1e5, 1e5
	leastSpeed, mostSpeed    = 1e-3, 1e9
)

// weighed returns the time and the tokens of a sample as they count: in the same proportion.
func weighed(ms, tokens float64) (float64, float64) {
	share := min(1, mostSampleMs/ms, mostSample/tokens)
	return share * ms, share * tokens
}

// add takes in what one engine has done, company requests at a time.
func (s *speeds) add(d *scrape.Since, company float64) {
	if n := d.Prompt - d.Cached; n > 0 && d.PrefillMs > 0 {
		ms, n := weighed(d.PrefillMs, n)
		s.prefillMs, s.prefill = speedKeep*s.prefillMs+ms, speedKeep*s.prefill+n
	}
	if ms, n, ok := decoded(d, company); ok {
		s.decodeMs, s.decode = speedKeep*s.decodeMs+ms, speedKeep*s.decode+n
	}
}

// drifted reports whether the speed is far from what was published, and publishes it.
func (s *speeds) drifted() bool {
	now := Speed{Prefill: rate(s.prefill, s.prefillMs), Decode: rate(s.decode, s.decodeMs)}
	far := func(now, published float64) bool { return math.Abs(now-published) > speedDrift*published }
	if !far(now.Prefill, s.published.Prefill) && !far(now.Decode, s.published.Decode) {
		return false
	}
	s.published = now
	return true
}

// rate is in tokens per second; 0: not known.
func rate(tokens, ms float64) float64 {
	if ms <= 0 {
		return 0
	}
	return trust.Clamp(1000*tokens/ms, leastSpeed, mostSpeed)
}
