package fleet

import (
	"math"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/scrape"
)

const (
	// speedKeep is what each finding leaves of those before it.
	speedKeep = 0.9
	// speedDrift is by what share a speed must differ from what tables say to be
	// said anew.
	speedDrift = 0.2
	// speedCrowd is by how much each further request at a time is taken to slow a
	// token down.
	speedCrowd = 0.5
)

// speed is how fast the engines of a model are, all together. It stands in for an
// engine that has yet to show its own speed: else one that is not known would seem
// faster than one that has been seen to work, and draw conversations from where
// they are cached.
type speed struct {
	// Decaying sums, in milliseconds and tokens.
	prefillMs, prefill, decodeMs, decode float64
	// said is what tables say; nil: nothing.
	said *enginepb.Speed
}

// add takes in what one engine has done, company requests at a time.
func (s *speed) add(d *scrape.Since, company float64) {
	if n := d.Prompt - d.Cached; n > 0 && d.PrefillMs > 0 {
		s.prefillMs, s.prefill = speedKeep*s.prefillMs+d.PrefillMs, speedKeep*s.prefill+n
	}
	if d.Output > 0 && d.DecodeMs > 0 {
		alone := d.DecodeMs / (1 + speedCrowd*max(0, company-1))
		s.decodeMs, s.decode = speedKeep*s.decodeMs+alone, speedKeep*s.decode+d.Output
	}
}

// drifted returns the speed if tables are to say another one than they do, else nil.
func (s *speed) drifted() *enginepb.Speed {
	now := &enginepb.Speed{Prefill: rate(s.prefill, s.prefillMs), Decode: rate(s.decode, s.decodeMs)}
	far := func(now, said float64) bool { return math.Abs(now-said) > speedDrift*said }
	if !far(now.GetPrefill(), s.said.GetPrefill()) && !far(now.GetDecode(), s.said.GetDecode()) {
		return nil
	}
	s.said = now
	return now
}

// rate is in tokens per second; 0: not known.
func rate(tokens, ms float64) float64 {
	if ms <= 0 {
		return 0
	}
	return 1000 * tokens / ms
}
