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
	if d.Output > 0 && d.DecodeMs > 0 {
		alone := d.DecodeMs / (1 + speedCrowd*max(0, company-1))
		ms, n := weighed(alone, d.Output)
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
