package pace

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// backend takes base and each, for each request that runs, for a token of all of them.
type backend struct{ base, each time.Duration }

func (b backend) token(running int) time.Duration { return b.base + time.Duration(running)*b.each }

// best is how many keep the goal.
func (b backend) best(goal Goal, most int) int {
	return min(most, max(1, int((goal.Token-b.base)/b.each)))
}

// window is what is observed while always as many run as may, and others wait; noise is how
// much a stream's tokens may take more or less.
func (b backend) window(s State, r *rand.Rand, noise float64) Window {
	n := s.Now()
	each := b.token(n)
	tokens := int64(max(1, (WindowTokens+n-1)/n, int(WindowLasts/each)))
	w := Window{Lasted: min(WindowLongest, time.Duration(tokens)*each), Running: float64(n), Waited: true}
	for range n {
		took := float64(each) * float64(tokens) * (1 + noise*(2*r.Float64()-1))
		w.Streams = append(w.Streams, Sample{tokens, time.Duration(took)})
	}
	return w
}

// anyState is any State, of which most can't come about.
func anyState(r *rand.Rand) State {
	odd := []float64{0, -3, 1, 2, 1e18, math.NaN(), math.Inf(1), math.Inf(-1), 17.5}
	return State{
		Limit: odd[r.IntN(len(odd))], missed: odd[r.IntN(len(odd))], ago: time.Duration(r.Uint64()), // or before zero
		firsts: r.IntN(20) - 5, late: r.IntN(20) - 5,
	}
}

// TestRecoversWithinAMinute has any State come to where the goal is just kept.
func TestRecoversWithinAMinute(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := backend{time.Duration(1+r.IntN(40)) * time.Millisecond, time.Duration(50+r.IntN(10000)) * time.Microsecond}
		most := 1 + r.IntN(256)
		goal := Goal{Token: b.token(1) + time.Duration(r.IntN(300))*time.Millisecond}
		s := anyState(r)
		at, over, lasted := time.Duration(0), time.Duration(0), time.Duration(0)
		for at < 2*time.Minute {
			w := b.window(s.sane(most), r, 0.02)
			s = Step(s, w, goal, most)
			if s.Limit < 1 || s.Limit > float64(most) || math.IsNaN(s.Limit) {
				t.Fatalf("seed %d: limit %v of %d", seed, s.Limit, most)
			}
			if at += w.Lasted; at < time.Minute {
				continue
			}
			best := b.best(goal, most)
			if lasted += w.Lasted; s.Now() > best {
				over += w.Lasted
			}
			if s.Now() > best+best/10+1 || s.Now() < best*7/10 {
				t.Fatalf("seed %d: %d run after %s, %d keep the goal %s of %+v (%d slots): %s", seed, s.Now(), at, best, goal.Token, b, most, s.Why)
			}
		}
		if over > lasted/4 {
			t.Errorf("seed %d: for %s of %s more than %d run", seed, over, lasted, b.best(goal, most))
		}
	}
}

// TestFollows has the backend become slow and quick again.
func TestFollows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	goal, s := Goal{Token: 100 * time.Millisecond}, State{}
	for _, b := range []backend{{20 * time.Millisecond, 4 * time.Millisecond}, {40 * time.Millisecond, 30 * time.Millisecond}, {20 * time.Millisecond, time.Millisecond}, {150 * time.Millisecond, 10 * time.Millisecond}, {time.Millisecond, 10 * time.Millisecond}} {
		for at := time.Duration(0); at < time.Minute; {
			w := b.window(s.sane(64), r, 0)
			s, at = Step(s, w, goal, 64), at+w.Lasted
		}
		if best := b.best(goal, 64); s.Now() > best+1 || s.Now() < best-2 {
			t.Errorf("%d run, %d keep the goal of %+v: %s", s.Now(), best, b, s.Why)
		}
	}
}

// TestLiesHaveNoEffect adds one stream to a window that says what can't be, or what others don't.
func TestLiesHaveNoEffect(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 2))
		b := backend{20 * time.Millisecond, 2 * time.Millisecond}
		goal := Goal{First: time.Second, Token: 80 * time.Millisecond}
		s := State{Limit: float64(2 + r.IntN(40))}
		w := b.window(s, r, 0)
		honest := Step(s, w, goal, 64)
		lie := w
		odd := []int64{0, -1, 1, math.MinInt64, math.MaxInt64}
		switch sample := (Sample{odd[r.IntN(5)], time.Duration(odd[r.IntN(5)])}); {
		case sample.Tokens <= 0 || sample.Took <= 0:
			lie.Streams = append(slices.Clone(w.Streams), sample)
		default:
			lie.Streams = append(slices.Clone(w.Streams), Sample{1, math.MaxInt64})
		}
		lie.Firsts, lie.Late = int(odd[r.IntN(4)]), 1+r.IntN(3)
		if got := Step(s, lie, goal, 64); got.Limit < honest.Limit {
			t.Fatalf("seed %d: limit %v, without the lie %v", seed, got.Limit, honest.Limit)
		}
		lie.Running = []float64{math.NaN(), -1, math.Inf(1), math.Inf(-1)}[r.IntN(4)]
		if got := Step(s, lie, goal, 64); !(got.Limit >= 1 && got.Limit <= 64) {
			t.Fatalf("seed %d: limit %v", seed, got.Limit)
		}
	}
}

func TestStep(t *testing.T) {
	goal := Goal{First: time.Second, Token: 50 * time.Millisecond}
	streams := func(each ...time.Duration) (all []Sample) {
		for _, d := range each {
			all = append(all, Sample{10, 10 * d})
		}
		return all
	}
	ms := time.Millisecond
	tests := []struct {
		name   string
		state  State
		window Window
		goal   Goal
		want   int
		why    string
	}{
		{"no goal", State{Limit: 3}, Window{Streams: streams(ms), Waited: true}, Goal{}, 16, ""},
		{"nothing measured", State{Limit: 3, Why: "x"}, Window{Waited: true}, goal, 3, "x"},
		{"much is free", State{Limit: 4}, Window{Streams: streams(10 * ms), Running: 4, Waited: true}, goal, 8, "a token takes 10ms, its goal is 50ms"},
		{"some is free", State{Limit: 4}, Window{Streams: streams(40 * ms), Running: 4, Waited: true}, goal, 5, "a token takes 40ms, its goal is 50ms"},
		{"nobody waits", State{Limit: 4}, Window{Streams: streams(10 * ms), Running: 4}, goal, 4, "a token takes 10ms, its goal is 50ms"},
		{"kept by a little", State{Limit: 4}, Window{Streams: streams(48 * ms), Running: 4, Waited: true}, goal, 4, "a token takes 48ms, its goal is 50ms"},
		{"missed", State{Limit: 8}, Window{Streams: streams(60*ms, 60*ms), Running: 8}, goal, 6, "a token takes 60ms, its goal is 50ms"},
		{"missed by far", State{Limit: 8}, Window{Streams: streams(500*ms, 500*ms), Running: 8}, goal, 4, "a token takes 500ms, its goal is 50ms"},
		{"others have still to end", State{Limit: 4}, Window{Streams: streams(90 * ms), Running: 8, Over: true}, goal, 4, ""},
		{"where it was missed just now", State{Limit: 4, missed: 5}, Window{Streams: streams(30 * ms), Running: 4, Waited: true}, goal, 4, "a token takes 30ms, its goal is 50ms"},
		{"where it was missed once", State{Limit: 4, missed: 5, ago: forget}, Window{Streams: streams(30 * ms), Running: 4, Waited: true}, goal, 6, "a token takes 30ms, its goal is 50ms"},
		{"first tokens are late", State{Limit: 8}, Window{Streams: streams(10 * ms), Firsts: 4, Late: 3, Waited: true}, goal, 4, "3 of 4 first tokens took the backend longer than their goal, 1s"},
		{"first tokens alone", State{Limit: 8}, Window{Firsts: 4, Late: 2, Waited: true}, goal, 16, "first tokens keep their goal, 1s"},
		{"one can't keep it", State{Limit: 1}, Window{Streams: streams(70 * ms), Running: 1}, goal, 1, "not even one at a time keeps the goal: a token takes 70ms, its goal is 50ms"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if s := Step(tt.state, tt.window, tt.goal, 16); s.Now() != tt.want || s.Why != tt.why {
				t.Errorf("%d, %q; want %d, %q", s.Now(), s.Why, tt.want, tt.why)
			}
		})
	}
}
