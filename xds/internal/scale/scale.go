// Package scale decides how many replicas a model is to have, of which variants of hardware,
// and why. Called by fleet, once a second for each model that is scaled; whoever has another
// actuator asks for the same decision and carries it out with that.
//
//	         demand > what replicas can do                     nothing asked for downAfter,
//	asleep ─── a request waits ──► growing ──► steady ──► shrinking ─── and min is 0 ──► asleep
//	                                 ▲            │ demand has been less for downAfter,
//	                                 └────────────┘ and still is
//
// What is needed is demand ÷ what a replica was measured to do at the goal. Demand is what
// arrives, expected for when a replica that is started now would serve, and what waits, worked
// off in workOff. Of the sets of replicas that meet it the cheapest is taken: exactly as long as
// search considers few enough of them, else the best that was found.
//
//   - Up: those that are there stay, and others join. Demand has to exceed what there is by more
//     than chance explains, as twenty requests that came in ten seconds may have been fifteen, or
//     requests have to wait for twice as long as they may.
//   - Down: by draining, those with the least sessions first, a fourth of them at a time, and
//     only when the greatest demand of the whole time downAfter would be met without them.
//   - Another set would be cheaper by a fifth: it is started first, if max and budget allow
//     both for a while. What was dearer goes by the rule for down.
//   - Budget is over all that is kept, replicas that drain included. It comes before min.
//   - Answers are late though the measurements say that there is enough: they are not believed
//     in full, by a factor of 2 at most, until answers are in time.
//
// Its one rule: Decide is a pure function; what it has to remember is in Memory, which has one
// size and which nobody else reads.
package scale

import (
	"math"
	"time"
)

// Load is what is asked, or what one replica can do, each per second. What a replica can do
// is of each alone: one that is asked for half of one and half of another is busy all the time.
// 0: none, or not known.
type Load struct {
	Requests, Prompt, Output float64
}

// Settings are what is desired of one model.
type Settings struct {
	// Min and Max bound the number of replicas. With a Min of 0 there are none once nothing
	// has been asked for DownAfter.
	Min, Max int
	// Utilization is how busy a replica is to be, more than 0 to 1; else: 0.8.
	Utilization float64
	// FirstToken is how long a request may wait for its first token; 0: not known.
	FirstToken time.Duration
	// Attainment is the share of requests that are to meet the goal, more than 0 to 1; else: 0.95.
	Attainment float64
	// DownAfter is for how long demand has been less before there are fewer replicas.
	DownAfter time.Duration
	// Budget is what all replicas together may cost, per hour; 0: as much as they will.
	Budget float64
}

// Demand is what is asked of a model.
type Demand struct {
	// Load is what arrives, whether it is answered yet or not.
	Load
	// Queued is how many requests wait for a replica, wherever, Running how many are in
	// progress, Oldest for how long the oldest has waited.
	Queued, Running int
	Oldest          time.Duration
	// Attainment is the share of the requests that ended of late that met the goal, 0 to 1;
	// below 0: not known.
	Attainment float64
}

// State is how a replica is.
type State int

// States of a replica.
const (
	// Starting is one that takes no requests yet.
	Starting State = iota
	// Serving is one that does.
	Serving
	// Draining is one that takes no new ones, and is gone when those that it has have ended.
	// It may be taken back.
	Draining
	// Failed is one that is there and can't serve.
	Failed
)

// Replica is one that is there.
type Replica struct {
	Name string
	// Variant is its index among the variants.
	Variant int
	State   State
	// Started is since when it is there.
	Started time.Time
	// Sessions is how much is lost by draining it: conversations, or requests, that it has.
	Sessions int
}

// Variant is a kind of replica: the hardware, and how the model lies on it.
type Variant struct {
	Name string
	// Cost is what one costs per hour, in whatever unit the budget is.
	Cost float64
	// Rate is what one was measured to do at the goal, or is predicted to; zero: not known.
	Rate Load
	// Start is how long one takes from when it is decided until it serves.
	Start time.Duration
	// Free is how many more there is room for.
	Free int
}

// Input is what is decided by.
type Input struct {
	Now      time.Time
	Settings Settings
	Demand   Demand
	Replicas []Replica
	Variants []Variant
	// Memory is that of the decision before; zero: there was none.
	Memory Memory
}

// Phase is how the scaling of a model stands.
type Phase string

// Phases.
const (
	// Steady is that there are as many as are needed.
	Steady Phase = "Steady"
	// Growing and Shrinking are that there are to be more, or fewer.
	Growing   Phase = "Growing"
	Shrinking Phase = "Shrinking"
	// Asleep is that there are none, as nobody asks.
	Asleep Phase = "Asleep"
	// Limited is that there would be more but for Max, Budget, or room.
	Limited Phase = "Limited"
)

// Decision is what is to be.
type Decision struct {
	// Replicas is how many there are to be, by variant. Who is more than there are without
	// those that drain takes these back first.
	Replicas []int
	// Drain has the names of those that are to drain now.
	Drain []string
	Phase Phase
	// Reason is for a person.
	Reason string
	// Memory is for the next decision.
	Memory Memory
}

// Total is how many replicas there are to be.
func (d Decision) Total() int { return sum(d.Replicas) }

const (
	// workOff is in how long what waits is to be worked off.
	workOff = 30 * time.Second
	// patience is how long a request may wait in a queue where no goal says so: what waits
	// for less than that is not too much.
	patience = 2 * time.Second
	// spare is by how much more than is needed what remains must be able to do.
	spare = 1.1
	// worthwhile is what share of the cost another set of replicas may have to be started.
	worthwhile = 0.8
	// mostAtOnce is what share of the replicas drain at the same time: of n at most
	// n/mostAtOnce, or one.
	mostAtOnce = 4
)

// Decide says how many replicas there are to be. Any input gives a decision: figures that are
// no numbers count as 0, replicas of no variant are left out.
func Decide(in Input) Decision {
	d := newDecider(in)
	switch {
	case len(in.Variants) == 0:
		return d.decide(nil, Limited, "no variant of hardware is known")
	case d.asleep():
		return d.sleep()
	}
	if over := d.tooMany(); over != "" {
		return d.down(d.best(d.none, d.now), over)
	}
	if !d.measured() {
		return d.unmeasured()
	}
	if d.able() < 1 || sum(d.now) < d.least() {
		return d.grow()
	}
	if d.stays() {
		return d.decide(d.now, Steady, d.words("are enough"))
	}
	d.loads(d.memory.past().Scaled(d.memory.doubt).max(d.expected.calm).Scaled(spare))
	less, fits := d.choice(d.none, d.now, d.need).cover()
	if fits && sum(less) < sum(d.now) {
		return d.down(less, "demand has been less for "+span(d.in.Settings.DownAfter))
	}
	if other := d.cheaper(); other != nil {
		return d.decide(other, Growing, d.words("are to be others, which are cheaper"))
	}
	return d.decide(d.now, Steady, d.words("are enough"))
}

// decider is the state of one Decide.
type decider struct {
	in     Input
	memory Memory
	// now is how many there are that don't drain, kept with those that do, room how many
	// there may be; by variant. none is zeros.
	now, kept, room, none []int
	// failed is how many of now can't serve, starting how many do not yet, draining how many
	// are on their way out.
	failed, starting, draining int
	// expected is the demand that must be met, what waits included; shares is what share of
	// it one replica meets, by variant.
	expected expected
	shares   []float64
	// need is what share of it the set must meet: 1, and what is counted for those that failed.
	need float64
}

func newDecider(in Input) *decider {
	n := len(in.Variants)
	all := make([]int, 4*n)
	d := &decider{in: in, now: all[:n:n], kept: all[n : 2*n : 2*n], room: all[2*n : 3*n : 3*n], none: all[3*n:], shares: make([]float64, n)}
	s := &d.in.Settings
	s.Min, s.Max = max(0, s.Min), max(0, s.Max, s.Min)
	if !(s.Utilization > 0 && s.Utilization <= 1) {
		s.Utilization = 0.8
	}
	if !(s.Attainment > 0 && s.Attainment <= 1) {
		s.Attainment = 0.95
	}
	if s.Budget = number(s.Budget); s.Budget == 0 {
		s.Budget = math.Inf(1)
	}
	d.in.Demand.Load = in.Demand.Load.clean()
	d.count()
	lead := time.Duration(0)
	for v := range in.Variants {
		if d.room[v] = d.kept[v] + max(0, in.Variants[v].Free); d.room[v] > d.now[v] {
			lead = max(lead, in.Variants[v].Start)
		}
	}
	d.memory = in.Memory.next(&d.in, d.starting > 0, lead)
	d.expected = d.memory.expects(lead)
	d.expected.scale(d.memory.doubt)
	d.loads(d.expected.sure)
	d.waits()
	return d
}

// count counts the replicas.
func (d *decider) count() {
	for _, r := range d.in.Replicas {
		if r.Variant < 0 || r.Variant >= len(d.kept) {
			continue
		}
		d.kept[r.Variant]++
		if r.State == Draining {
			d.draining++
			continue
		}
		d.now[r.Variant]++
		switch r.State {
		case Failed:
			d.failed++
		case Starting:
			d.starting++
		}
	}
}

// loads finds out what share of a demand one replica of each variant meets. One of which
// nothing is known is as the least of the others.
func (d *decider) loads(l Load) {
	least := math.Inf(1)
	for v := range d.in.Variants {
		rate := d.in.Variants[v].Rate.clean()
		if d.shares[v] = -1; rate != (Load{}) {
			d.shares[v] = d.in.Settings.Utilization / max(l.over(rate), tiny)
			least = min(least, d.shares[v])
		}
	}
	if l == (Load{}) {
		least = min(least, d.in.Settings.Utilization/tiny)
	}
	for v := range d.shares {
		if d.shares[v] < 0 {
			d.shares[v] = least
		}
	}
	d.need = 1
	if d.failed > 0 && !math.IsInf(least, 1) {
		for _, r := range d.in.Replicas {
			if r.State == Failed && r.Variant >= 0 && r.Variant < len(d.shares) {
				d.need += d.shares[r.Variant]
			}
		}
	}
}

// waits adds to the demand what waits for longer than it may.
func (d *decider) waits() {
	q := float64(max(0, d.in.Demand.Queued))
	if d.expected.likely.Requests <= 0 || q == 0 {
		return
	}
	may := patience
	if f := d.in.Settings.FirstToken; f > 0 {
		may = min(may, f)
	}
	if d.in.Demand.Oldest > 2*may {
		d.expected.sure = d.expected.likely // that it is too much is seen: chance is no excuse
		d.loads(d.expected.sure)
	}
	// What is served in that time need not count as waiting.
	asked := d.expected.likely.Requests
	served := min(1, d.able()) * asked * may.Seconds()
	if more := (q - served) / workOff.Seconds(); more > 0 {
		d.expected.scale(1 + more/asked)
		d.loads(d.expected.sure)
	}
}

// able is what share of the demand those meet that are there and have not failed.
func (d *decider) able() float64 {
	able := 1 - d.need
	for v, n := range d.now {
		if n > 0 {
			able += float64(n) * d.shares[v]
		}
	}
	return able
}

// least is how many there are to be at least: a model that is asked has one.
func (d *decider) least() int {
	if d.in.Settings.Min == 0 {
		return min(1, d.in.Settings.Max)
	}
	return d.in.Settings.Min
}

// measured reports whether anything is known of what replicas can do.
func (d *decider) measured() bool {
	return d.expected.likely == (Load{}) || len(d.shares) > 0 && !math.IsInf(d.shares[0], 1)
}

// asleep reports whether there are to be none: nobody asks, or has for long.
func (d *decider) asleep() bool {
	s := &d.in.Settings
	if s.Max == 0 {
		return true
	}
	if s.Min > 0 || d.in.Demand.asks() {
		return false
	}
	return sum(d.now) == 0 || d.in.Now.Sub(d.memory.asked) >= s.DownAfter && d.starting == 0
}

func (d *decider) sleep() Decision {
	why := "nothing was asked for " + span(d.in.Settings.DownAfter)
	if d.in.Settings.Max == 0 {
		why = "there may be none"
	}
	if sum(d.now) > 0 {
		return d.down(d.none, why)
	}
	if d.draining == 0 {
		why = "nobody asks"
	}
	return d.decide(d.none, Asleep, why)
}
