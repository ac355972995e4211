package scale

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var at = time.Unix(1_000_000, 0)

// serving are n replicas of each variant.
func serving(n ...int) (all []Replica) {
	for v, k := range n {
		for i := range k {
			all = append(all, Replica{Name: fmt.Sprintf("v%d-%d", v, i), Variant: v, State: Serving, Started: at, Sessions: 10 * i})
		}
	}
	return all
}

// big and small are variants of which the small one is cheaper for what it does.
var (
	big   = Variant{Name: "big", Cost: 5, Rate: Load{Requests: 4}, Start: 30 * time.Second, Free: 10}
	small = Variant{Name: "small", Cost: 1, Rate: Load{Requests: 1}, Start: 30 * time.Second, Free: 10}
)

// kept is the decision on a demand that has been the same for so long.
func kept(in Input, lasts time.Duration) Decision {
	var d Decision
	for passed := time.Duration(0); passed <= lasts; passed += time.Second {
		in.Now = at.Add(passed)
		d = Decide(in)
		in.Memory = d.Memory
	}
	return d
}

func requests(n float64) Demand { return Demand{Load: Load{Requests: n}, Running: 1, Attainment: -1} }

func TestDecide(t *testing.T) {
	s := Settings{Min: 1, Max: 20, DownAfter: 5 * time.Minute}
	zero := Settings{Max: 20, DownAfter: 5 * time.Minute}
	waits := Demand{Queued: 1, Attainment: -1}
	with := func(r Replica, state State) Replica { r.State = state; return r }
	tests := []struct {
		name  string
		in    Input
		lasts time.Duration
		want  []int
		phase Phase
		drain string
		words string
	}{
		{name: "nobody knows of hardware", in: Input{Settings: s, Demand: requests(1)}, phase: Limited, words: "no variant"},
		{name: "zero stays zero", in: Input{Settings: zero, Demand: Demand{Attainment: -1}, Variants: []Variant{small}}, want: []int{0}, phase: Asleep},
		{name: "one that waits wakes one", in: Input{Settings: zero, Demand: waits, Variants: []Variant{small}}, want: []int{1}, phase: Growing, words: "1 requests wait"},
		{name: "though nothing was measured", in: Input{Settings: zero, Demand: waits, Variants: []Variant{{Cost: 1, Free: 1}}}, want: []int{1}, phase: Growing},
		{name: "as many as demand needs", in: Input{Settings: s, Demand: requests(8), Replicas: serving(3), Variants: []Variant{small}}, lasts: time.Minute, want: []int{10}, phase: Growing},
		{name: "the cheapest set", in: Input{Settings: s, Demand: requests(8), Replicas: serving(0, 1), Variants: []Variant{big, small}}, want: []int{0, 10}, phase: Growing},
		{name: "as far as there is room", in: Input{Settings: s, Demand: requests(12), Replicas: serving(0, 1), Variants: []Variant{big, small}}, lasts: time.Minute, want: []int{1, 11}, phase: Growing},
		{
			name: "as far as max allows", in: Input{Settings: Settings{Min: 1, Max: 3, DownAfter: time.Minute}, Demand: requests(8), Replicas: serving(1), Variants: []Variant{small}},
			want: []int{3}, phase: Limited, words: "there may be 3",
		},
		{
			name: "as far as the budget allows", in: Input{Settings: Settings{Min: 1, Max: 20, Budget: 4.5, DownAfter: time.Minute}, Demand: requests(8), Replicas: serving(1), Variants: []Variant{small}},
			want: []int{4}, phase: Limited, words: "the budget is 4.5",
		},
		{
			name: "what drains is paid for", in: Input{Settings: Settings{Min: 1, Max: 20, Budget: 4, DownAfter: time.Minute}, Demand: requests(8),
				Replicas: append(serving(1), Replica{Name: "x", Variant: 1, State: Draining}), Variants: []Variant{small, {Name: "other", Cost: 2, Rate: Load{Requests: 0.1}}}},
			want: []int{2, 1}, phase: Limited,
		},
		{
			name: "a lower budget holds at once", in: Input{Settings: Settings{Min: 1, Max: 20, Budget: 2, DownAfter: time.Minute}, Demand: requests(8), Replicas: serving(4), Variants: []Variant{small}},
			want: []int{2}, phase: Shrinking, drain: "v0-0 v0-1", words: "the budget is 2",
		},
		{name: "not fewer at once", in: Input{Settings: s, Demand: requests(1), Replicas: serving(4), Variants: []Variant{small}}, lasts: 4 * time.Minute, want: []int{4}, phase: Steady},
		{
			name: "fewer after a while, those with the least sessions first", in: Input{Settings: s, Demand: requests(1), Replicas: serving(4), Variants: []Variant{small}},
			lasts: 6 * time.Minute, want: []int{3}, phase: Shrinking, drain: "v0-0",
		},
		{
			name: "one after the other", in: Input{Settings: s, Demand: requests(1), Replicas: append(serving(4), Replica{Name: "x", State: Draining}), Variants: []Variant{small}},
			lasts: 6 * time.Minute, want: []int{4}, phase: Steady,
		},
		{name: "idle for long", in: Input{Settings: zero, Demand: Demand{Attainment: -1}, Replicas: serving(1), Variants: []Variant{small}}, lasts: 6 * time.Minute, want: []int{0}, phase: Shrinking, drain: "v0-0"},
		{name: "not idle while one runs", in: Input{Settings: zero, Demand: Demand{Running: 1, Attainment: -1}, Replicas: serving(1), Variants: []Variant{small}}, lasts: 20 * time.Minute, want: []int{1}, phase: Steady},
		{
			name: "who fails is replaced", in: Input{Settings: s, Demand: requests(1.5), Replicas: []Replica{with(serving(1)[0], Failed), serving(2)[1]}, Variants: []Variant{small}},
			want: []int{3}, phase: Growing,
		},
		{
			name: "a dear set gives way to a cheap one, which starts first", in: Input{Settings: s, Demand: requests(0.5), Replicas: serving(1, 0), Variants: []Variant{big, small}},
			lasts: 11 * time.Minute, want: []int{1, 1}, phase: Growing, words: "cheaper",
		},
		{
			name: "and goes then", in: Input{Settings: s, Demand: requests(0.5), Replicas: serving(1, 1), Variants: []Variant{big, small}},
			lasts: 6 * time.Minute, want: []int{0, 1}, phase: Shrinking, drain: "v0-0",
		},
		{
			name: "nothing measured, and requests wait", in: Input{Settings: s, Demand: Demand{Load: Load{Requests: 1}, Queued: 3, Oldest: 5 * time.Second, Attainment: -1}, Replicas: serving(1), Variants: []Variant{{Cost: 1, Free: 3}}},
			want: []int{2}, phase: Growing, words: "not measured",
		},
		{
			name: "nothing measured, and none waits", in: Input{Settings: s, Demand: Demand{Load: Load{Requests: 1}, Running: 1, Attainment: -1}, Replicas: serving(3), Variants: []Variant{{Cost: 1, Free: 3}}},
			lasts: 6 * time.Minute, want: []int{2}, phase: Shrinking, drain: "v0-0", words: "not measured",
		},
		{
			name: "late answers count", in: Input{Settings: s, Demand: Demand{Load: Load{Requests: 0.7}, Attainment: 0.5}, Replicas: serving(1), Variants: []Variant{small}},
			lasts: 2 * time.Minute, want: []int{2}, phase: Growing, words: "late",
		},
		{
			name: "prompt and answer tokens add up", in: Input{Settings: s, Demand: Demand{Load: Load{Requests: 100, Prompt: 1000, Output: 200}, Attainment: -1}, Replicas: serving(1), Variants: []Variant{{Cost: 1, Free: 9, Rate: Load{Prompt: 1000, Output: 100}}}},
			want: []int{4}, phase: Growing,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := kept(tt.in, tt.lasts)
			if !slices.Equal(d.Replicas, tt.want) || d.Phase != tt.phase || strings.Join(d.Drain, " ") != tt.drain || !strings.Contains(d.Reason, tt.words) {
				t.Errorf("Decide() = %v, drain %v, %s: %s; want %v, drain %q, %s, with %q", d.Replicas, d.Drain, d.Phase, d.Reason, tt.want, tt.drain, tt.phase, tt.words)
			}
		})
	}
}

// TestCheapestSet is the one that trying all finds.
func TestCheapestSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		n := 1 + r.IntN(3)
		c := &choice{min: r.IntN(3), max: 3 + r.IntN(8), need: 0.2 + 2*r.Float64(), budget: math.Inf(1)}
		if r.IntN(2) == 0 {
			c.budget = 10 * r.Float64()
		}
		for range n {
			c.share, c.cost = append(c.share, 0.1+r.Float64()), append(c.cost, 0.1+3*r.Float64())
			lo := r.IntN(2)
			c.lo, c.hi, c.kept = append(c.lo, lo), append(c.hi, lo+r.IntN(4)), append(c.kept, lo+r.IntN(2))
		}
		got, fits := c.cover()
		best, cost := []int(nil), math.Inf(1)
		most, able := []int(nil), -1.0
		c.each(make([]int, n), 0, func(set []int) {
			if k := c.costs(set); c.of(set) >= c.need && k < cost {
				best, cost = slices.Clone(set), k
			}
			if c.of(set) > able {
				most, able = slices.Clone(set), c.of(set)
			}
		})
		if best == nil && c.min > 0 {
			continue
		}
		if fits != (best != nil) || fits && c.costs(got) > cost*(1+1e-9) {
			t.Fatalf("cover() of %+v = %v, %v; %v is the cheapest", c, got, fits, best)
		}
		if set := c.most(); (set != nil) != (most != nil) && c.min == 0 || set != nil && c.min == 0 && c.of(set) < able*(1-1e-9) {
			t.Fatalf("most() of %+v = %v; %v does most", c, set, most)
		}
	}
}

func (c *choice) costs(set []int) (all float64) {
	for v, n := range set {
		all += float64(n) * c.cost[v]
	}
	return all
}

// each calls f with each set that is allowed.
func (c *choice) each(set []int, v int, f func([]int)) {
	if v == len(set) {
		kept := 0.0
		for v, n := range set {
			kept += float64(max(n, c.kept[v])) * c.cost[v]
		}
		if n := sum(set); n >= c.min && n <= c.max && kept <= c.budget {
			f(set)
		}
		return
	}
	for k := c.lo[v]; k <= c.hi[v]; k++ {
		set[v] = k
		c.each(set, v+1, f)
	}
}

// TestMoreDemandNeverGetsLess of what replicas can do, at any moment.
func TestMoreDemandNeverGetsLess(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		in := randomInput(r)
		w := newWorld(in, r)
		for range 30 {
			w.step(5 * r.Float64())
		}
		in = w.input(r.Float64())
		able := -1.0
		for range 20 {
			d := Decide(in)
			got := 0.0
			for v, n := range d.Replicas {
				got += float64(n) * in.Variants[v].Rate.Requests
			}
			if got < able*(1-1e-9) {
				t.Fatalf("%.3g requests/s get %v, which do %.3g: less than fewer requests got\n%s", in.Demand.Requests, d.Replicas, got, d.Reason)
			}
			able = got
			in.Demand.Requests *= 1.3
		}
	}
}

// TestBoundsHold over random demand: never more than budget and max are kept, never less than min
// is to be, and what is decided is well-formed.
func TestBoundsHold(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		w := newWorld(randomInput(r), r)
		s := w.in.Settings
		rate := 3 * r.Float64()
		for range 400 {
			if r.IntN(40) == 0 {
				rate = 6 * r.Float64() * float64(r.IntN(2))
			}
			d := w.step(rate)
			room, cheapest := 0, math.Inf(1)
			for _, v := range w.in.Variants {
				room += v.Free
				cheapest = min(cheapest, v.Cost)
			}
			if n := d.Total(); n > s.Max {
				t.Fatalf("%d replicas, and max is %d: %s", n, s.Max, d.Reason)
			} else if n < s.Min && d.Phase != Limited {
				t.Fatalf("%d replicas, and min is %d: %s: %s", n, s.Min, d.Phase, d.Reason)
			}
			if cost := w.cost(); s.Budget > 0 && cost > s.Budget*(1+1e-6) {
				t.Fatalf("%.3g an hour is kept, and the budget is %.3g: %s", cost, s.Budget, d.Reason)
			}
		}
	}
}

// TestSteadyLoadChangesNothing where requests come by themselves, but for what chance brings
// once in an hour; and who was needed stays for a while.
func TestSteadyLoadChangesNothing(t *testing.T) {
	for _, rate := range []float64{0.3, 1, 2.1, 3.9, 8, 15.7} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, uint64(10*rate)))
			w := newWorld(Input{
				Settings: Settings{Min: 1, Max: 100, DownAfter: 5 * time.Minute}, Replicas: serving(1),
				Variants: []Variant{{Name: "v", Cost: 1, Rate: Load{Requests: 1}, Start: 30 * time.Second, Free: 99}},
			}, r)
			changes, was, grown := 0, 0, -1000
			for i := range 4 * 3600 {
				d := w.step(rate)
				if n := d.Total(); i > 1800 && n != was {
					changes++
					if n < was && i-grown < 300 {
						t.Errorf("at %d s %d replicas where there were %d, and at %d s there had to be more: %s", i, n, was, grown, d.Reason)
					}
				}
				if n := d.Total(); n > was {
					grown = i
				}
				was = d.Total()
			}
			if changes > 6 {
				t.Errorf("%d changes in 3.5 hours of %.3g requests/s, at the end %d replicas", changes, rate, was)
			}
			if need := rate / 0.8; float64(was) < math.Floor(need) || float64(was) > need*1.5+1 {
				t.Errorf("%d replicas for %.3g requests/s, each of which does 1", was, rate)
			}
		})
	}
}

// TestAnythingIsDecidedOn says that no input breaks it.
func TestAnythingIsDecidedOn(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	odd := []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), 1e300, 1e-300, 3}
	any := func() float64 { return odd[r.IntN(len(odd))] }
	var m Memory
	now := at
	for range 20_000 {
		in := Input{
			Now: now, Memory: m, Settings: Settings{r.IntN(6) - 1, r.IntN(6) - 1, any(), time.Duration(r.IntN(9)) * time.Second, any(), time.Duration(r.IntN(3)-1) * time.Minute, any()},
			Demand: Demand{Load{any(), any(), any()}, r.IntN(9) - 2, r.IntN(3) - 1, time.Duration(r.IntN(9)) * time.Second, any()},
		}
		for range r.IntN(4) {
			in.Variants = append(in.Variants, Variant{Cost: any(), Rate: Load{any(), any(), any()}, Start: time.Duration(r.IntN(9)-1) * time.Second, Free: r.IntN(5) - 1})
		}
		for i := range r.IntN(6) {
			in.Replicas = append(in.Replicas, Replica{Name: fmt.Sprint(i), Variant: r.IntN(5) - 1, State: State(r.IntN(4)), Sessions: r.IntN(4)})
		}
		d := Decide(in)
		for _, n := range d.Replicas {
			if n < 0 || n > 20 {
				t.Fatalf("%+v gives %v", in, d.Replicas)
			}
		}
		m, now = d.Memory, now.Add(time.Duration(r.IntN(100)-10)*time.Second)
	}
}
