package pick

import (
	"math"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestGoalsDecide(t *testing.T) {
	// The first one is free and makes a token in 40 ms; the second makes one in 10 ms, but has
	// so much to do that the first token is late.
	calm := endpoint(1, func(e *Endpoint) { e.Prior = Speed{Prefill: 1, Decode: 40} })
	busy := endpoint(2, func(e *Endpoint) { e.Prior = Speed{Prefill: 1, Decode: 10} })
	busy.prefill(2500e6, epoch.UnixNano())
	m := model(calm, busy)
	tests := []struct {
		name string
		goal Goal
		want *Endpoint
	}{
		{"none: the answer is whole sooner", Goal{}, busy},
		{"the first token", Goal{TTFT: 1000}, calm},
		{"each token", Goal{TPOT: 20}, busy},
		{"the whole answer", Goal{E2E: 6000}, busy},
		{"all of it", Goal{TTFT: 1000, E2E: 60_000}, calm},
		{"what nobody can do", Goal{TTFT: 0.001}, busy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c Choice
			q := Query{Model: m, Prompt: 2, Output: 150, Most: 2, Now: epoch, Goal: tt.goal}
			if err := New(prometheus.NewRegistry()).Pick(&q, &c); err != nil {
				t.Fatal(err)
			}
			if c.List[0].Endpoint != tt.want {
				t.Errorf("named %s first: %+v, then %+v", c.List[0].Address, c.List[0].Terms, c.List[1].Terms)
			}
		})
	}
}

func TestRiskIsAProbability(t *testing.T) {
	for _, v := range []float64{0, 1e-300, 1, 50, 1e300, math.Inf(1)} {
		for _, g := range []Goal{{}, {TTFT: 1}, {TPOT: 1e-300}, {E2E: 1e300}, {1, 1, 1}} {
			if r := g.risk(v, v, v); !(r >= 0 && r <= 1) {
				t.Errorf("risk of %g with %v is %g", v, g, r)
			}
		}
	}
	if got := miss(100, 200); math.Abs(got-1.0/17) > 1e-12 {
		t.Errorf("miss() = %g of what takes half of the goal", got)
	}
}
