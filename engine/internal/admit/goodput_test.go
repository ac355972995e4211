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
type simulated struct{ running atomic.Int64 }

// step is how long one token of each takes.
func (s *simulated) step() time.Duration {
	return 20*time.Millisecond + time.Duration(s.running.Load())*5*time.Millisecond
}

// outcome of one request.
type outcome struct {
	priority Priority
	// first and token are 0 where the request was not answered.
	first, token time.Duration
}

func (o outcome) good(g Goal) bool { return o.first > 0 && o.first <= g.First && o.token <= g.Token }

// rising is a load that rises to twice what the backend can do within the goal, and falls.
// At the goal of 60 ms a token it runs 8 at a time: 2.2 requests of 60 tokens a second.
func rising(g *Gate, goal Goal, shed float64) []outcome {
	r := rand.New(rand.NewPCG(1, 2))
	var backend simulated
	began := time.Now()
	results := make(chan outcome, 10000)
	n := 0
	for at := 0.0; at < 120; n++ {
		rate := 0.4 + 4*math.Pow(math.Sin(math.Pi*at/120), 2)
		at += r.ExpFloat64() / rate
		tokens := 1 + int(60*math.Exp(r.NormFloat64()*0.8-0.32))
		p := Standard
		if r.Float64() < shed {
			p = Sheddable
		}
		time.Sleep(time.Until(began.Add(time.Duration(at * float64(time.Second)))))
		go func() { results <- ask(g, &backend, p, tokens) }()
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
	time.Sleep(4 * backend.step()) // the prompt
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
	goal := Goal{First: 2 * time.Second, Token: 60 * time.Millisecond}
	run := func(l Limits) (good int) {
		synctest.Test(t, func(*testing.T) {
			g := &Gate{}
			g.Set(l)
			all := rising(g, goal, 0.3)
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
