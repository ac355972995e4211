package pick

import (
	"sync/atomic"
	"time"

	"millrace.dev/millrace/extproc/internal/meter"
	"millrace.dev/millrace/internal/trust"
)

// trustFor is how long a load report that came with an answer outweighs the fleet's reports:
// those are as old as their way was long, of which they say nothing. On the training half of generated
// workloads (extproc/replay), where they are 0.1 to 10 s old, five seconds would be better; on the
// public traces, where they are new, five make the 99th percentile on slow engines a fifth worse.
const trustFor = 2 * time.Second

// Live is what changes about an endpoint between two tables. All of it but the meter is
// atomic.
type Live struct {
	// Own requests in flight, and the tokens that they were expected to need: of
	// prompts what is not cached, of answers all.
	requests, prompt, output atomic.Int64
	// The last load report with an answer, and the last one of the fleet (through xds, or
	// from the prober). nil: none yet.
	fromAnswer, fromFleet atomic.Pointer[Report]
	// What was learned from answers; nil: nothing yet.
	rates atomic.Pointer[Rates]
	// The ejection in force, packed; 0: none.
	ejected atomic.Uint64
	// Different requests that it could not answer, nor others, since its last answer; 0:
	// none.
	unanswered [2]atomic.Uint64
	// Until when the prompts that we have sent are worked on, one after the other, in
	// Unix nanoseconds; and how long those take that have no answer yet, in
	// nanoseconds.
	until, pending atomic.Int64
	// Turn in which the endpoint was last chosen, and how often it was.
	chosen, picks atomic.Uint64
	// What it has done, for metrics.
	served served
	// What single requests have had of it.
	meter meter.Meter[Metered]
	// Whether the last answer that a tenant pays for was charged its maximum, as nothing said
	// what was generated.
	unpriced atomic.Bool
	// The index's bit for this endpoint, set when a field above changes, but chosen and
	// picks; nil: no index has this endpoint.
	mark atomic.Pointer[mark]
}

// Report is an engine's load.
type Report struct {
	// Requests is running and waiting ones together.
	Requests int64
	// Waiting is those of them that wait for a slot, or for room in the cache.
	Waiting int64
	// KV is the share of the cache that is in use, 0 to 1.
	KV float64
	// Wake is how long a request waits there until the model is loaded, in milliseconds; 0: it
	// is. Of a report of the fleet.
	Wake float64

	own int64 // our share of the requests when the report came
	at  int64 // Unix nanoseconds
}

// ReportFromAnswer takes a report that came with an answer.
func (l *Live) ReportFromAnswer(r Report, now time.Time) {
	l.fromAnswer.Store(l.stamp(&r, now))
	l.changed()
}

// ReportFromFleet takes a report of the fleet.
func (l *Live) ReportFromFleet(r Report, now time.Time) {
	l.fromFleet.Store(l.stamp(&r, now))
	l.changed()
}

// Restarted forgets what was true of the engine before its last start.
func (l *Live) Restarted() {
	l.Reinstate()
	l.fromAnswer.Store(nil)
	l.fromFleet.Store(nil)
	l.rates.Store(nil)
	l.changed()
}

func (l *Live) stamp(r *Report, now time.Time) *Report {
	r.own, r.at = l.requests.Load(), now.UnixNano()
	return r
}

// InFlight returns how many own requests are in flight, and the tokens they
// were expected to need.
func (l *Live) InFlight() (requests, tokens int64) {
	return l.requests.Load(), l.prompt.Load() + l.output.Load()
}

// work is what an endpoint has to do.
type work struct {
	// requests are all that are there.
	requests float64
	// slots is how many of them it works on at a time, known
	// while others wait; 0: none do.
	slots float64
	// prompt and output are what our requests there need on average, in tokens; of
	// prompts what is not cached.
	prompt, output float64
	// kv is the share of the cache that is in use.
	kv float64
	// own is how many of the requests are ours, and others how many are not, by the report;
	// grown is by what factor ours have become more since the report.
	own, others, grown float64
}

// wake is how long a request waits there until the model is loaded, in milliseconds.
func (l *Live) wake() float64 {
	r := l.fromFleet.Load()
	if r == nil {
		return 0
	}
	return r.Wake
}

// Asleep reports whether the model is not loaded there, until somebody asks for it.
func (l *Live) Asleep() bool { return l.wake() > 0 }

// load is what the endpoint has to do now, by the better of both reports and by
// our own requests that began and ended since. What no report has is as usual.
func (l *Live) load(now int64, usual *usual) work {
	own := l.requests.Load()
	w := work{requests: float64(own), prompt: usual.prompt, output: usual.output}
	if own > 0 {
		w.prompt, w.output = float64(l.prompt.Load())/w.requests, float64(l.output.Load())/w.requests
	}
	r := l.fromAnswer.Load()
	if fleet := l.fromFleet.Load(); r == nil || fleet != nil && fleet.at > r.at && now-r.at > int64(trustFor) {
		r = fleet
	}
	if r == nil {
		return w
	}
	w.kv = r.KV
	if r.Waiting > 0 {
		w.slots = max(1, float64(r.Requests-r.Waiting))
	}
	// Each request of ours is in flight until we see it end, so only those of
	// others come from the report.
	w.own, w.others, w.grown = float64(own), float64(max(0, r.Requests-r.own)), float64(own+1)/float64(r.own+1)
	w.requests += w.others
	return w
}

// What others, who are other extprocs, have sent since the report is not known. They choose by the
// same rules and reports, so that their requests have become more or fewer as ours have, by a factor of mostGrown at most;
// and for each of ours whose prompt is worked on, they have unseen of one for each request of theirs by one of
// ours there, as if there were mostPickers of us at most. Found on the training half of generated
// workloads (extproc/replay), which have up to 8 extprocs.
const (
	mostGrown   = 2
	unseen      = 0.5
	mostPickers = 8
)

// mirror adds what others are likely to have sent since the report, and returns the prompts that are worked
// on there, of which ours take so many milliseconds.
func (w *work) mirror(prompts float64) float64 {
	more := w.others * (trust.Clamp(w.grown, 1.0/mostGrown, mostGrown) - 1)
	w.requests += more
	return prompts * (1 + unseen*min(mostPickers, (w.others+more)/max(1, w.own)))
}

// prefilling is how long the prompts that we have sent are still worked on, in
// milliseconds: one that begins now waits for them.
//
// Two things are known of them: when they would be done if each took as long as was
// predicted, and those that have no answer yet. The first runs away if predictions
// are a little too long on a busy engine, the second knows nothing of answers that
// come whole at their end; the lower one is right.
func (l *Live) prefilling(now int64) float64 {
	return float64(max(0, min(l.until.Load()-now, l.pending.Load()))) / 1e6
}

// prefill adds a prompt of so many nanoseconds.
func (l *Live) prefill(ns, now int64) {
	for {
		old, from := l.until.Load(), now+max(0, l.pending.Load())
		if l.until.CompareAndSwap(old, min(max(old, now), from)+ns) {
			l.pending.Add(ns)
			return
		}
	}
}

// Reservation is one request in flight at an endpoint, as it counts in its load. The
// zero Reservation is none.
type Reservation struct {
	live           *Live
	prompt, output int64
	prefill        int64 // of its prompt, until it has an answer: nanoseconds
}

// Reserve adds a request to the endpoint's load, which is expected to need so many
// tokens: of the prompt what is not cached, and the answer.
func (l *Live) Reserve(prompt, output int) Reservation {
	r := Reservation{live: l, prompt: int64(prompt), output: int64(output)}
	r.count(1)
	return r
}

// count adds the request n times.
func (r *Reservation) count(n int64) {
	r.live.requests.Add(n)
	r.live.prompt.Add(n * r.prompt)
	r.live.output.Add(n * r.output)
	r.live.changed()
}

// Move moves the request to another endpoint's load.
func (r *Reservation) Move(to *Live) {
	if r.live == nil || r.live == to {
		return
	}
	r.Begun()
	r.count(-1)
	r.live = to
	r.count(1)
}

// Begun says that the answer has begun: the prompt is done.
func (r *Reservation) Begun() {
	if r.prefill != 0 {
		r.live.pending.Add(-r.prefill)
		r.prefill = 0
		r.live.changed()
	}
}

// Release ends the reservation. Doing it again does nothing.
func (r *Reservation) Release() {
	if r.live != nil {
		r.Begun()
		r.count(-1)
		r.live = nil
	}
}
