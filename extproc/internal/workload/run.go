package workload

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/extproc/internal/replay"
)

// Result is what all policies made of one scenario at one load.
type Result struct {
	Family string  `json:"family"`
	Seed   uint64  `json:"seed"`
	Kind   string  `json:"fleet"`
	Load   float64 `json:"load"`
	// Rate is the load in requests a second.
	Rate float64 `json:"rate"`
	// Scores are those of the policies, in the order in which they were asked for.
	Scores []replay.Score `json:"scores"`
}

// remember is how many prefixes a picker remembers: more than a scenario has.
const remember = 1 << 17

// Run runs policies on scenarios at loads, which are shares of capacity, and reports each result as it
// comes. Scenarios whose goals nobody could meet are left out. It runs as many at a time as there
// are processors.
func Run(ctx context.Context, scenarios []*Scenario, policies []string, loads []float64, report func(*Result)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	results := make(chan *Result)
	go func() {
		for _, s := range scenarios {
			g.Go(func() error { return s.run(ctx, policies, loads, results) })
		}
		g.Wait()
		close(results)
	}()
	for r := range results {
		report(r)
	}
	return g.Wait()
}

// run runs one scenario.
func (s *Scenario) run(ctx context.Context, policies []string, loads []float64, results chan<- *Result) error {
	capacity := s.Capacity()
	if capacity == 0 {
		return nil
	}
	for _, load := range loads {
		r := &Result{Family: s.Family, Seed: s.Seed, Kind: s.Kind, Load: load, Rate: load * capacity}
		for _, p := range policies {
			if err := ctx.Err(); err != nil {
				return err
			}
			t, f := s.At(r.Rate)
			r.Scores = append(r.Scores, replay.Grade(t, f, p, replay.Pickers{N: s.Pickers, Remember: remember}, s.Seed))
		}
		select {
		case results <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
