package scale

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// world carries decisions out, second by second.
type world struct {
	in Input
	r  *rand.Rand
	n  int
	// window has how many requests came in each of the last seconds.
	window [5]int
	queued float64
	ends   map[string]time.Time // of those that drain
}

func newWorld(in Input, r *rand.Rand) *world {
	in.Now = at
	return &world{in: in, r: r, ends: map[string]time.Time{}}
}

func randomInput(r *rand.Rand) Input {
	in := Input{Settings: Settings{Min: r.IntN(3), DownAfter: time.Duration(10+r.IntN(60)) * time.Second}}
	in.Settings.Max = in.Settings.Min + 1 + r.IntN(8)
	dearest := 0.0
	for i := range 1 + r.IntN(3) {
		v := Variant{Name: fmt.Sprint(i), Cost: 0.5 + 3*r.Float64(), Rate: Load{Requests: 0.2 + 2*r.Float64()}, Start: time.Duration(1+r.IntN(20)) * time.Second, Free: 3 + r.IntN(6)}
		dearest = max(dearest, v.Cost)
		in.Variants = append(in.Variants, v)
	}
	if r.IntN(2) == 0 {
		in.Settings.Budget = dearest * (float64(in.Settings.Min) + 3*r.Float64())
	}
	for i := range in.Settings.Min {
		in.Replicas = append(in.Replicas, Replica{Name: fmt.Sprint("r", i), State: Serving, Started: at})
		in.Variants[0].Free--
	}
	if s := &in.Settings; s.Budget > 0 && s.Budget < dearest*float64(max(1, s.Min)) {
		s.Budget = dearest * float64(max(1, s.Min))
	}
	return in
}

// input is what there is to decide on while so many requests come per second.
func (w *world) input(rate float64) Input {
	in := w.in
	came := w.poisson(rate)
	copy(w.window[1:], w.window[:])
	w.window[0] = came
	all := 0
	for _, k := range w.window {
		all += k
	}
	does := 0.0
	for _, r := range in.Replicas {
		if r.State == Serving {
			does += in.Variants[r.Variant].Rate.Requests
		}
	}
	w.queued = max(0, w.queued+float64(came)-does)
	in.Demand = Demand{Load: Load{Requests: float64(all) / float64(len(w.window))}, Queued: int(w.queued), Running: min(1, came), Attainment: -1}
	if w.queued >= 1 && does > 0 {
		in.Demand.Oldest = time.Duration(w.queued / does * float64(time.Second))
	}
	return in
}

// step is a second: it is decided, and carried out.
func (w *world) step(rate float64) Decision {
	in := w.input(rate)
	d := Decide(in)
	w.in.Memory, w.in.Now = d.Memory, w.in.Now.Add(time.Second)
	now := w.in.Now
	left := w.in.Replicas[:0:0]
	for _, r := range w.in.Replicas {
		for _, name := range d.Drain {
			if r.Name == name {
				r.State, w.ends[name] = Draining, now.Add(time.Duration(w.r.IntN(10))*time.Second)
			}
		}
		switch {
		case r.State == Starting && now.Sub(r.Started) >= w.in.Variants[r.Variant].Start:
			r.State = Serving
		case r.State == Draining && now.After(w.ends[r.Name]):
			w.in.Variants[r.Variant].Free++
			continue
		}
		left = append(left, r)
	}
	w.in.Replicas = left
	for v, n := range d.Replicas {
		for i := range w.in.Replicas {
			if r := &w.in.Replicas[i]; r.Variant == v && r.State != Draining {
				n--
			}
		}
		for i := range w.in.Replicas {
			if r := &w.in.Replicas[i]; n > 0 && r.Variant == v && r.State == Draining {
				r.State = Serving
				n--
			}
		}
		for ; n > 0; n-- {
			w.n++
			w.in.Variants[v].Free--
			w.in.Replicas = append(w.in.Replicas, Replica{Name: fmt.Sprint("n", w.n), Variant: v, Started: now})
		}
	}
	return d
}

func (w *world) cost() (all float64) {
	for _, r := range w.in.Replicas {
		all += w.in.Variants[r.Variant].Cost
	}
	return all
}

func (w *world) poisson(rate float64) (n int) {
	for left := math.Exp(-rate); ; n++ {
		if left /= max(w.r.Float64(), 1e-300); left >= 1 {
			return n
		}
	}
}
