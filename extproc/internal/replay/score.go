package replay

import (
	"math/rand/v2"
)

// Score is what one policy made of a workload whose requests have goals.
type Score struct {
	// Policy names it.
	Policy string `json:"policy"`
	// Goodput is the share of requests that met their goals.
	Goodput float64 `json:"goodput"`
	// P50, P99 and Mean are of the time to the first token; E2E is the mean and E2EP99 the
	// 99th percentile until the answer is whole; in milliseconds.
	P50    float64 `json:"ttft_p50_ms"`
	P99    float64 `json:"ttft_p99_ms"`
	Mean   float64 `json:"ttft_mean_ms"`
	E2E    float64 `json:"e2e_mean_ms"`
	E2EP99 float64 `json:"e2e_p99_ms"`
	// Cached is the share of prompt tokens that were cached, Top the share of requests that the
	// engine had that had most.
	Cached float64 `json:"cached"`
	Top    float64 `json:"top_share"`
	// Error is the median difference of the predicted and the real time to the first token as a
	// share of the real; ours only.
	Error float64 `json:"prediction_error_p50,omitempty"`
}

// Grade runs a policy, one of Rivals or Ours, on a trace as it is, and scores what came of it.
func Grade(t *Trace, f *Fleet, policy string, pickers Pickers, seed uint64) Score {
	r := rand.New(rand.NewPCG(seed, 2))
	p := newPolicy(policy, t, *f, pickers, r)
	done, busy := Run(t, f, p, 1, nil)
	row := summary(done, busy, 1)
	s := Score{Policy: policy, P50: row.P50, P99: row.P99, Mean: row.Mean, E2EP99: row.E2E, Cached: row.Cached, Top: row.Top}
	for i := range done {
		d := &done[i]
		if d.Request.Goal.met(d.First-d.Came, d.End-d.Came, d.Request.Output) {
			s.Goodput += 1 / float64(len(done))
		}
		s.E2E += (d.End - d.Came) / float64(len(done))
	}
	if m, ok := p.(*millrace); ok {
		s.Error = percentile(m.errors, 0.5)
	}
	return s
}
