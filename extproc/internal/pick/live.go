package pick

import (
	"sync/atomic"
	"time"
)

// trust is how long a load report that came with an answer outweighs those
// that come through xds, which are up to a second late.
const trust = time.Second

// Live is what changes about an endpoint between two tables. All of it is
// atomic.
type Live struct {
	// Own requests in flight, and the tokens they were expected to need.
	requests, tokens atomic.Int64
	// Last reports: with an answer, and through xds. nil: none yet.
	seen, told atomic.Pointer[Report]
	// What was learned from answers; nil: nothing yet.
	rates atomic.Pointer[Rates]
	// The ejection in force, packed; 0: none.
	ejected atomic.Uint64
	// Until when what we have sent is worked on, prompts only: Unix nanoseconds.
	until atomic.Int64
	// Turn in which the endpoint was last chosen.
	chosen atomic.Uint64
	// Where to tell that any of the above but chosen has changed; nil: nowhere.
	mark atomic.Pointer[mark]
}

// Report is an engine's load.
type Report struct {
	// Requests is running and waiting ones together.
	Requests int64
	// Tokens is what these may still need, prompt and output together.
	Tokens int64
	// KV is the share of the cache that is in use, 0 to 1.
	KV float64

	// Own share when the report came.
	requests, tokens int64
	at               int64 // Unix nanoseconds
}

// Seen takes a report that came with an answer.
func (l *Live) Seen(r Report, now time.Time) {
	l.seen.Store(l.stamp(&r, now))
	l.changed()
}

// Told takes a report that came through xds.
func (l *Live) Told(r Report, now time.Time) {
	l.told.Store(l.stamp(&r, now))
	l.changed()
}

// Restarted forgets what was true of the engine before its last start.
func (l *Live) Restarted() {
	l.Clear()
	l.seen.Store(nil)
	l.told.Store(nil)
	l.rates.Store(nil)
	l.until.Store(0)
	l.changed()
}

func (l *Live) stamp(r *Report, now time.Time) *Report {
	r.requests, r.tokens, r.at = l.requests.Load(), l.tokens.Load(), now.UnixNano()
	return r
}

// InFlight returns how many own requests are in flight, and the tokens they
// were expected to need.
func (l *Live) InFlight() (requests, tokens int64) {
	return l.requests.Load(), l.tokens.Load()
}

// load is what the endpoint has to do now, by the better of both reports and by
// what we have sent and seen end since.
func (l *Live) load(now int64) (requests, tokens, kv float64) {
	own, ownTokens := l.requests.Load(), l.tokens.Load()
	r, fresh := l.seen.Load(), true
	if told := l.told.Load(); r == nil || told != nil && told.at > r.at && now-r.at > int64(trust) {
		r, fresh = told, false
	}
	if r == nil {
		return float64(own), float64(ownTokens), 0
	}
	// Each request of ours is in flight until we see it end, so only those of
	// others come from the report.
	n := max(0, r.Requests-r.requests) + own
	if r.Requests > 0 && r.Tokens == 0 { // the engine doesn't say
		return float64(n), float64(ownTokens), r.KV
	}
	return float64(n), estimate(r.Tokens, r.tokens, ownTokens, fresh), r.KV
}

// estimate returns the tokens still needed, of which `reported` were when our
// own share was `then`; our own share is `now` now. What the report has over our
// share is of others. What it has less has been done meanwhile, which a report
// that is late cannot say: it may not know our last requests yet.
func estimate(reported, then, now int64, fresh bool) float64 {
	others, mine := float64(max(0, reported-then)), float64(then)
	if fresh {
		mine = float64(min(reported, then))
	}
	if now >= then {
		return others + mine + float64(now-then)
	}
	return others + mine*float64(now)/float64(then)
}

// prefilling is how long the prompts that we have sent are still worked on, in
// milliseconds: one that begins now waits for them.
func (l *Live) prefilling(now int64) float64 {
	return float64(max(0, l.until.Load()-now)) / 1e6
}

// prefill adds a prompt of so many milliseconds.
func (l *Live) prefill(ms float64, now int64) {
	for {
		old := l.until.Load()
		if l.until.CompareAndSwap(old, max(old, now)+int64(ms*1e6)) {
			return
		}
	}
}

// Reservation is the place that one request takes at an endpoint. The zero
// Reservation takes none.
type Reservation struct {
	live   *Live
	tokens int64
}

// Reserve takes the place of a request that is expected to need tokens.
func (l *Live) Reserve(tokens int) Reservation {
	l.requests.Add(1)
	l.tokens.Add(int64(tokens))
	l.changed()
	return Reservation{l, int64(tokens)}
}

// Move takes the same place at another endpoint instead.
func (r *Reservation) Move(to *Live) {
	if r.live == nil || r.live == to {
		return
	}
	tokens := r.tokens
	r.Release()
	*r = to.Reserve(int(tokens))
}

// Release gives the place back. Doing it again does nothing.
func (r *Reservation) Release() {
	if r.live == nil {
		return
	}
	r.live.requests.Add(-1)
	r.live.tokens.Add(-r.tokens)
	r.live.changed()
	*r = Reservation{}
}
