package scale

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// tooMany says why there must be fewer, whatever is asked; empty: there need not be.
func (d *decider) tooMany() string {
	if n, most := sum(d.now), d.in.Settings.Max; n > most {
		return fmt.Sprintf("there may be %d", most)
	}
	if cost := d.cost(d.now); cost > d.in.Settings.Budget*(1+1e-9) {
		return fmt.Sprintf("they cost %.4g an hour, and the budget is %.4g", cost, d.in.Settings.Budget)
	}
	return ""
}

func (d *decider) cost(set []int) (all float64) {
	for v, n := range set {
		all += float64(n) * number(d.in.Variants[v].Cost)
	}
	return all
}

// best returns the set within the bounds that can do most; of what drains nothing counts, as it
// was decided on before.
func (d *decider) best(lo, hi []int) []int {
	c := d.choice(lo, hi, d.need)
	c.kept, c.min = d.none, 0
	if math.IsInf(c.share[0], 1) {
		c.share = make([]float64, len(hi))
		for v := range c.share {
			c.share[v] = 1
		}
	}
	if set := c.most(); set != nil {
		return set
	}
	return d.none
}

// unmeasured decides without knowing what a replica can do: one more where a request waits for
// too long and none is on its way; one less where for long none has waited, and fewer ran than
// there are replicas.
func (d *decider) unmeasured() Decision {
	n := max(sum(d.now), d.least())
	q := d.in.Demand
	may := patience
	if f := d.in.Settings.FirstToken; f > 0 {
		may = f
	}
	if q.Queued > 0 && q.Oldest > may && d.starting == 0 {
		n++
	}
	for v := range d.shares {
		d.shares[v] = 1
	}
	d.need = 1
	if n == sum(d.now) && n > d.least() && !d.stays() && d.in.Now.Sub(d.memory.pressed) >= d.in.Settings.DownAfter {
		less := d.choice(d.none, d.now, float64(n-1))
		less.max = n - 1
		if set := less.most(); set != nil {
			return d.down(set, "nothing has waited for "+span(d.in.Settings.DownAfter)+"; what they can do is not measured yet")
		}
	}
	c := d.choice(d.now, d.room, float64(n))
	c.min = n
	set, fits := c.cover()
	switch {
	case n == sum(d.now):
		return d.decide(d.now, Steady, d.words("stay: what they can do is not measured yet"))
	case !fits:
		return d.limited(c)
	}
	return d.decide(set, Growing, d.words("are to be, as requests wait; what they can do is not measured yet"))
}

// grow adds what is missing to what is likely.
func (d *decider) grow() Decision {
	d.loads(d.expected.likely)
	d.memory.met(d.expected.likely)
	c := d.choice(d.now, d.room, d.need)
	if set, fits := c.cover(); fits {
		return d.decide(set, Growing, d.words("are too few"))
	}
	return d.limited(c)
}

// limited adds what may be added.
func (d *decider) limited(c *choice) Decision {
	set := c.most()
	if set == nil || c.of(set) <= c.of(d.now) {
		set = d.now
	}
	var why []string
	if sum(set) >= d.in.Settings.Max {
		why = append(why, fmt.Sprintf("there may be %d", d.in.Settings.Max))
	}
	if !math.IsInf(d.in.Settings.Budget, 1) && slices.ContainsFunc(d.in.Variants, func(v Variant) bool { return d.cost(set)+number(v.Cost) > d.in.Settings.Budget }) {
		why = append(why, fmt.Sprintf("the budget is %.4g an hour", d.in.Settings.Budget))
	}
	if slices.Equal(set, d.room) || len(why) == 0 {
		why = append(why, "there is no more room")
	}
	return d.decide(set, Limited, d.words("are too few, but "+strings.Join(why, ", and ")))
}

// of is what share of the demand a set meets.
func (c *choice) of(set []int) (all float64) {
	for v, n := range set {
		if n > 0 {
			all += float64(n) * c.share[v]
		}
	}
	return all
}

// stays reports whether nothing can be taken away now.
func (d *decider) stays() bool {
	return d.starting > 0 || d.draining > 0 || sum(d.now) == 0 || d.in.Now.Sub(d.memory.since) < d.in.Settings.DownAfter
}

// cheaper returns what there is to be to get to a set that is much cheaper; nil: nothing.
func (d *decider) cheaper() []int {
	set, fits := d.choice(d.none, d.room, 1).cover()
	if !fits || d.cost(set) > worthwhile*d.cost(d.now) || d.failed > 0 {
		d.memory.cheaper = time.Time{}
		return nil
	}
	if d.memory.cheaper.IsZero() {
		d.memory.cheaper = d.in.Now
	}
	both := slices.Clone(d.now)
	for v, n := range set {
		both[v] = max(both[v], n)
	}
	if d.in.Now.Sub(d.memory.cheaper) < d.in.Settings.DownAfter || sum(both) > d.in.Settings.Max || d.cost(both) > d.in.Settings.Budget {
		return nil
	}
	return both
}

// down takes away what is too much, a part of it at a time.
func (d *decider) down(to []int, why string) Decision {
	n := sum(d.now)
	may := max(1, n/mostAtOnce) - d.draining
	if n > d.in.Settings.Max || d.cost(d.now) > d.in.Settings.Budget {
		may = n
	}
	all := slices.Clone(d.in.Replicas)
	all = slices.DeleteFunc(all, func(r Replica) bool { return r.Variant < 0 || r.Variant >= len(d.now) || r.State == Draining })
	slices.SortStableFunc(all, func(a, b Replica) int {
		rank := func(r Replica) int {
			switch r.State {
			case Failed:
				return 0
			case Starting:
				return 1
			}
			return 2
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Sessions, b.Sessions), b.Started.Compare(a.Started), strings.Compare(b.Name, a.Name))
	})
	set := slices.Clone(d.now)
	var drain []string
	for _, r := range all {
		if len(drain) < may && set[r.Variant] > to[r.Variant] {
			set[r.Variant]--
			drain = append(drain, r.Name)
		}
	}
	out := d.decide(set, Shrinking, d.words("are too many: "+why))
	out.Drain = drain
	return out
}

func (d *decider) decide(set []int, p Phase, why string) Decision {
	return Decision{Replicas: slices.Clone(set), Phase: p, Reason: why, Memory: d.memory}
}

// words says what there is, and what is asked of it.
func (d *decider) words(what string) string {
	n := sum(d.now)
	text := fmt.Sprintf("%d replicas %s", n, what)
	if n == 1 {
		text = "1 replica " + strings.NewReplacer("are ", "is ", "stay:", "stays:", "is to be others", "is to be another").Replace(what)
	}
	if l := d.expected.likely; l != (Load{}) {
		text += fmt.Sprintf("; %.3g requests/s are expected, of %.3g prompt and %.3g answer tokens/s", l.Requests, l.Prompt, l.Output)
		if able := d.able(); able > 0 && !math.IsInf(able, 1) && able < 1e6 {
			text += fmt.Sprintf(", which keep them %.0f %% as busy as they may be", 100/able)
		}
	}
	if q := d.in.Demand.Queued; q > 0 {
		text += fmt.Sprintf("; %d requests wait, the oldest for %s", q, span(d.in.Demand.Oldest))
	}
	if d.memory.doubt > 1.05 {
		text += fmt.Sprintf("; answers were late, so that replicas count for %.0f %% of what was measured", 100/d.memory.doubt)
	}
	return text
}

// span is a time for people.
func span(d time.Duration) string { return d.Round(time.Second).String() }
