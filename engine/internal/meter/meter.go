// Package meter counts what an engine has done and measures how fast its backend is.
//
// Called by api after each request, read by status and supervise. Its one rule:
// its figures were measured, or reported by the backend, never estimated.
package meter

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/trust"
)

// Totals count since the engine started.
type Totals struct{ Requests, Prompt, Cached, Generated uint64 }

// Meter is safe for concurrent use.
type Meter struct {
	// Atomic.
	served atomic.Int64  // when a token last came, ns since the epoch; 0: never
	kv     atomic.Uint64 // tokens in the backend's KV cache
	room   atomic.Uint64 // tokens that fit in there; 0: not known
	// backend holds what the backend says of its requests: running, then waiting.
	backend atomic.Uint64

	// mu guards the fields below.
	mu       sync.Mutex
	totals   Totals
	speed    backend.Speed
	length   float64 // tokens of a usual completion
	recent   rate
	accounts []Account // the newest last
}

// Account is what was generated of a request that has ended.
type Account struct {
	// Request is the number that extproc gave to it.
	Request uint64
	// Generated is the tokens that were generated of it.
	Generated uint64

	at time.Time
}

// How many accounts are kept, and how long. Whoever is to know gets a status several times a
// second.
const (
	mostAccounts = 256
	accountsFor  = 3 * time.Second
)

// Weights of a new measurement in the moving averages.
const (
	speedWeight  = 0.2
	lengthWeight = 0.05
	firstLength  = 64 // tokens of a completion, until one was seen
)

// Least and Most bound a speed that is believed, in tokens per second, as the contract has
// it, and mostTokens what one request is believed to have had. A backend's word beyond
// them is a fault of its own, and must not keep the engine from reporting.
const (
	Least, Most = 1e-3, 1e9
	mostTokens  = 1 << 32
)

// Serve says that the backend has just given a token.
func (m *Meter) Serve(now time.Time) { m.served.Store(now.UnixNano()) }

// Served returns when the backend last gave a token.
func (m *Meter) Served() time.Time { return time.Unix(0, m.served.Load()) }

// SetKV sets the number of tokens in the backend's KV cache, and of those that fit in
// there; 0: not known.
func (m *Meter) SetKV(used, room uint64) {
	m.kv.Store(used)
	m.room.Store(room)
}

// KV returns what SetKV has set.
func (m *Meter) KV() (used, room uint64) { return m.kv.Load(), m.room.Load() }

// KVUse returns the used part of the KV cache, from 0 to 1; 0: not known.
func (m *Meter) KVUse() float64 {
	used, room := m.KV()
	if room == 0 {
		return 0
	}
	return min(1, float64(used)/float64(room))
}

// SetBackend sets the requests in the backend, and those that it lets wait, by its
// own account.
func (m *Meter) SetBackend(running, waiting uint32) {
	m.backend.Store(uint64(running)<<32 | uint64(waiting))
}

// Backend returns what SetBackend has set.
func (m *Meter) Backend() (running, waiting uint32) {
	v := m.backend.Load()
	return uint32(v >> 32), uint32(v)
}

// Add counts a finished request.
func (m *Meter) Add(u backend.Usage, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.totals.Requests++
	m.totals.Prompt += min(u.Prompt, mostTokens)
	m.totals.Cached += min(u.Cached, mostTokens)
	m.totals.Generated += min(u.Completion, mostTokens)
	m.recent.add(now)
	m.measureLocked(u.Speed())
	if u.Completion > 0 {
		m.length = blend(m.length, float64(min(u.Completion, mostTokens)), lengthWeight)
	}
}

// Cut counts the tokens that were generated of a request that did not come to its end.
func (m *Meter) Cut(generated uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.totals.Generated += generated
}

// Account keeps the account of a request that has ended.
func (m *Meter) Account(request, generated uint64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(now)
	if len(m.accounts) == mostAccounts {
		m.accounts = slices.Delete(m.accounts, 0, 1)
	}
	m.accounts = append(m.accounts, Account{request, min(generated, mostTokens), now})
}

// Accounts returns those of the last seconds, the newest last.
func (m *Meter) Accounts(now time.Time) []Account {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(now)
	return slices.Clone(m.accounts)
}

// forgetLocked drops accounts that are too old.
func (m *Meter) forgetLocked(now time.Time) {
	m.accounts = slices.DeleteFunc(m.accounts, func(a Account) bool { return now.Sub(a.at) > accountsFor })
}

// Measure takes a speed that the backend has measured itself.
func (m *Meter) Measure(s backend.Speed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.measureLocked(s)
}

func (m *Meter) measureLocked(s backend.Speed) {
	m.speed.Prefill = blend(m.speed.Prefill, believed(s.Prefill), speedWeight)
	m.speed.Decode = blend(m.speed.Decode, believed(s.Decode), speedWeight)
}

// believed returns a speed, or 0 where nothing can be as fast or as slow.
func believed(speed float64) float64 {
	if !trust.Within(speed, Least, Most) {
		return 0
	}
	return speed
}

// Calibrate takes the speed of a probe, where requests have not shown one yet.
func (m *Meter) Calibrate(s backend.Speed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.speed.Prefill == 0 {
		m.speed.Prefill = believed(s.Prefill)
	}
	if m.speed.Decode == 0 {
		m.speed.Decode = believed(s.Decode)
	}
}

// Forget drops the speeds: another replica is served from now on.
func (m *Meter) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.speed = backend.Speed{}
}

// Totals returns the counts.
func (m *Meter) Totals() Totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.totals
}

// Speed returns what one sequence gets; 0 until measured.
func (m *Meter) Speed() backend.Speed {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.speed
}

// Length returns the tokens of a usual completion.
func (m *Meter) Length() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.length == 0 {
		return firstLength
	}
	return int64(m.length) + 1
}

// Rate returns finished requests per second, over the last few seconds.
func (m *Meter) Rate(now time.Time) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.recent.perSecond(now)
}

func blend(old, value, weight float64) float64 {
	switch {
	case value <= 0:
		return old
	case old == 0:
		return value
	}
	return old + weight*(value-old)
}

// window is how far back rate looks, in seconds.
const window = 8

// rate counts events in a ring of seconds.
type rate struct {
	counts [window]uint32
	second int64 // of the newest count, since the epoch
}

func (r *rate) add(now time.Time) {
	r.roll(now)
	r.counts[r.second%window]++
}

func (r *rate) perSecond(now time.Time) float64 {
	r.roll(now)
	var sum uint32
	for _, n := range r.counts {
		sum += n
	}
	return float64(sum) / window
}

// roll empties the seconds that passed since the last call.
func (r *rate) roll(now time.Time) {
	second := now.Unix()
	for n := 0; r.second < second && n < window; n++ {
		r.counts[(second-int64(n))%window] = 0
		if second-int64(n)-1 == r.second {
			break
		}
	}
	r.second = max(r.second, second)
}
