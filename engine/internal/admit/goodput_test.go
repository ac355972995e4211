package admit

import (
	"context"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// simulated is a backend whose steps take longer the more requests it runs.
type simulated struct {
	name string
	// base and each, for each request that runs, is how long one token of all takes.
	base, each time.Duration
	// prompt is how long a prompt takes; stalls is whether nobody gets tokens meanwhile.
	prompt time.Duration
	stalls bool
	// requests that it can answer in a second within the goal of 60 ms a token.
	rate float64

	running atomic.Int64
	until   atomic.Int64 // when the last prompt is done, in ns since the epoch
}

// backends are a GPU, on which prompts of others hold nobody up or everybody, and a CPU, which
// computes as long for each token of each.
func backends() []*simulated {
	ms := time.Millisecond
	return []*simulated{
		{name: "GPU", base: 20 * ms, each: 5 * ms, prompt: 200 * ms, rate: 2.2},
		{name: "GPU that prompts hold up", base: 20 * ms, each: 4 * ms, prompt: 60 * ms, stalls: true, rate: 2.2},
		{name: "CPU", base: ms, each: 20 * ms, prompt: 300 * ms, stalls: true, rate: 0.55},
	}
}

// step is how long the next token of each takes.
func (s *simulated) step() time.Duration {
	d := s.base + time.Duration(s.running.Load())*s.each
	if s.stalls {
		d += max(0, time.Until(time.Unix(0, s.until.Load())))
	}
	return d
}

// prefill is how long a prompt takes that comes now.
func (s *simulated) prefill() time.Duration {
	if !s.stalls {
		return s.prompt
	}
	now := time.Now().UnixNano()
	until := max(now, s.until.Load()) + s.prompt.Nanoseconds()
	s.until.Store(until)
	return time.Duration(until - now)
}

// outcome of one request.
type outcome struct {
	priority Priority
	// first and token are 0 where the request was not answered.
	first, token time.Duration
}

func (o outcome) good(g Goal) bool { return o.first > 0 && o.first <= g.First && o.token <= g.Token }

// rising is a load that rises to twice what the backend can do within the goal, and falls.
func rising(g *Gate, backend *simulated, shed float64) []outcome {
	r := rand.New(rand.NewPCG(1, 2))
	began := time.Now()
	results := make(chan outcome, 10000)
	n := 0
	for at := 0.0; at < 120; n++ {
		rate := backend.rate * (0.2 + 1.8*math.Pow(math.Sin(math.Pi*at/120), 2))
		at += r.ExpFloat64() / rate
		tokens := 1 + int(60*math.Exp(r.NormFloat64()*0.8-0.32))
		p := Standard
		if r.Float64() < shed {
			p = Sheddable
		}
		time.Sleep(time.Until(began.Add(time.Duration(at * float64(time.Second)))))
		go func() { results <- ask(g, backend, p, tokens) }()
	}
	var all []outcome
	for range n {
		all = append(all, <-results)
	}
	return all
}

func ask(g *Gate, backend *simulated, p Priority, tokens int) outcome {
	asked := time.Now()
	t, err := g.Acquire(context.Background(), p, int64(tokens))
	if err != nil {
		return outcome{priority: p}
	}
	defer t.Release()
	backend.running.Add(1)
	defer backend.running.Add(-1)
	time.Sleep(backend.prefill())
	first := time.Since(asked)
	t.Begun(0)
	t.Generated(0)
	began := time.Now()
	for range tokens {
		time.Sleep(backend.step())
		t.Generated(1)
	}
	return outcome{p, first, time.Since(began) / time.Duration(tokens)}
}

// TestGoodput holds the limit that follows the goal to fixed ones, as the load rises and
// falls: it must be 1.2 times as good as the best of them.
func TestGoodput(t *testing.T) {
	for i, b := range backends() {
		t.Run(b.name, func(t *testing.T) { holds(t, func() *simulated { return backends()[i] }) })
	}
}

func holds(t *testing.T, backend func() *simulated) {
	goal := Goal{First: 2 * time.Second, Token: 60 * time.Millisecond}
	run := func(l Limits) (good int) {
		synctest.Test(t, func(*testing.T) {
			g := &Gate{}
			g.Set(l)
			all := rising(g, backend(), 0.3)
			for _, o := range all {
				if o.good(goal) {
					good++
				}
			}
			if load := g.Load(); load.Running != 0 || load.Waiting != 0 || load.Tokens != 0 {
				t.Errorf("%+v after all", load)
			}
			t.Logf("limits %+v: %d of %d good, %+v", l, good, len(all), g.Load())
		})
		return good
	}
	best := 0
	for _, fixed := range []int{1, 4, 8, 16, 1000} {
		best = max(best, run(Limits{Slots: fixed, Queue: 1000}))
	}
	if ours := run(Limits{Slots: 64, Queue: 1000, Goal: goal}); float64(ours) < 1.2*float64(best) {
		t.Errorf("%d good, the best fixed limit has %d", ours, best)
	}
}
