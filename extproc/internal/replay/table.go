package replay

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"text/tabwriter"
)

// Fleet is a set of engines with a name.
type Fleet struct {
	// Name is shown.
	Name string
	// Engines are those that there are, and Troubles what happens to them.
	Engines  []Engine
	Troubles []Trouble
	// Age is how old the engines' reports are when they arrive, in milliseconds.
	Age float64
}

// Fleets returns the fleets that there are to choose from: a CPU's rates are those of
// llama.cpp with SmolLM2-135M on one thread, a GPU's those of a model of 8 billion
// parameters on one of 2023; mixed is GPUs of three speeds.
func Fleets(n int) map[string]Fleet {
	cpu := Engine{Slots: 4, Prefill: 9, Decode: 13, Crowd: 0.9, Chunk: 512, Cache: 200_000}
	gpu := Engine{Slots: 64, Prefill: 0.05, Decode: 20, Crowd: 0.02, Chunk: 2048, Cache: 400_000}
	all := map[string]Fleet{"cpu": {Name: "cpu"}, "gpu": {Name: "gpu"}, "mixed": {Name: "mixed"}}
	for i := range n {
		for name, e := range map[string]Engine{"cpu": cpu, "gpu": gpu, "mixed": gpu.faster([]float64{1, 1, 2, 0.5}[i%4])} {
			f := all[name]
			f.Engines = append(f.Engines, e)
			all[name] = f
		}
	}
	return all
}

// Policies names those that there are, ours last.
var Policies = []string{"round robin", "least request", "session hash", "longest prefix", "scores", Ours}

// Ours is the policy of extproc.
const Ours = "millrace"

func newPolicy(name string, t *Trace, f Fleet, pickers Pickers, r *rand.Rand) Policy {
	switch name {
	case "round robin":
		return &roundRobin{counting: newCounting(len(f.Engines))}
	case "least request":
		return &leastRequest{counting: newCounting(len(f.Engines))}
	case "session hash":
		return &sessionHash{newCounting(len(f.Engines))}
	case "longest prefix":
		return &longestPrefix{counting: newCounting(len(f.Engines)), sent: newSent(f.Engines, t.Block)}
	case "scores":
		return &scored{counting: newCounting(len(f.Engines)), sent: newSent(f.Engines, t.Block), r: r}
	case Ours:
		return newMillrace(t, f.Engines, pickers)
	}
	return newRivals(name, t, f.Engines, pickers, r)
}

// Row is what one policy made of a trace at one load, the median of several runs.
type Row struct {
	// Trace, Fleet and Policy name what ran; Load is the share of capacity.
	Trace  string  `json:"trace"`
	Fleet  string  `json:"fleet"`
	Policy string  `json:"policy"`
	Load   float64 `json:"load"`
	// Cached is the share of prompt tokens that were cached, and Oracle the share of
	// what one common cache would have had.
	Cached float64 `json:"cached"`
	Oracle float64 `json:"of_oracle"`
	// P50 and P99 are of the time to the first token, Mean of all of it, E2E is the
	// 99th percentile until the answer is whole; in milliseconds.
	P50  float64 `json:"ttft_p50_ms"`
	P99  float64 `json:"ttft_p99_ms"`
	Mean float64 `json:"ttft_mean_ms"`
	E2E  float64 `json:"e2e_p99_ms"`
	// Spread is the busiest engine's time by the mean, Top its share of requests.
	Spread float64 `json:"spread"`
	Top    float64 `json:"top_share"`
	// Moves is the share of requests that left their cache; Error is the median
	// difference of the predicted and the real time to the first token as a share of the
	// real; ours only.
	Moves float64 `json:"moves,omitempty"`
	Error float64 `json:"prediction_error_p50,omitempty"`
	// Bound is the 99th percentile that nobody can be below: of requests each alone on
	// an engine that has what the oracle finds cached.
	Bound float64 `json:"ttft_p99_bound_ms"`
}

// Measure runs a policy on a trace at a load, once for each seed.
func Measure(t *Trace, f Fleet, policy string, load float64, pickers Pickers, seeds int) Row {
	factor, all, bound := stretch(t, f, load)
	var rows []Row
	for seed := range uint64(max(1, seeds)) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := newPolicy(policy, t, f, pickers, r)
		done, busy := Run(t, &f, p, factor, r)
		row := summary(done, busy, all)
		if m, ok := p.(*millrace); ok {
			row.Moves = float64(m.moves) / float64(len(done))
			row.Error = percentile(m.errors, 0.5)
		}
		rows = append(rows, row)
	}
	row := median(rows)
	row.Trace, row.Fleet, row.Policy, row.Load, row.Bound = t.Name, f.Name, policy, load, bound
	return row
}

// stretch returns by how much the times at which conversations begin are multiplied,
// so that the trace's work is the given share of what the engines can do, with the
// oracle's hits and all slots taken; what the oracle finds cached, and the bound of a
// Row.
func stretch(t *Trace, f Fleet, load float64) (factor float64, cached int, bound float64) {
	fastest := slices.MinFunc(f.Engines, func(a, b Engine) int { return cmp.Compare(a.Prefill, b.Prefill) })
	speed := 0.0 // of all engines, in the first one's
	for _, e := range f.Engines {
		speed += f.Engines[0].Prefill / e.Prefill
	}
	factor = 1
	for range 4 { // what is cached depends on it
		oracle, all := Oracle(t, f.Engines, t.times(factor, nil))
		work, ttft := 0.0, make([]float64, len(t.Requests))
		for i := range t.Requests {
			work += f.Engines[0].work(&t.Requests[i], oracle[i])
			ttft[i] = fastest.alone(&t.Requests[i], oracle[i])
		}
		bound = percentile(ttft, 0.99)
		factor, cached = work/speed/load/t.span(), all
	}
	return factor, cached, bound
}

func summary(done []Done, busy []float64, oracle int) Row {
	var row Row
	var ttft, e2e []float64
	cached, prompt, by := 0, 0, map[int]int{}
	for _, d := range done {
		ttft = append(ttft, d.First-d.Came)
		e2e = append(e2e, d.End-d.Came)
		cached += d.Cached
		prompt += d.Request.Input
		by[d.Engine]++
		row.Mean += (d.First - d.Came) / float64(len(done))
	}
	row.Cached, row.Oracle = float64(cached)/float64(prompt), float64(cached)/float64(max(1, oracle))
	row.P50, row.P99, row.E2E = percentile(ttft, 0.5), percentile(ttft, 0.99), percentile(e2e, 0.99)
	sum := 0.0
	for _, b := range busy {
		sum += b
	}
	row.Spread = slices.Max(busy) * float64(len(busy)) / sum
	for _, n := range by {
		row.Top = max(row.Top, float64(n)/float64(len(done)))
	}
	return row
}

func percentile(x []float64, p float64) float64 {
	if len(x) == 0 {
		return 0
	}
	x = slices.Sorted(slices.Values(x))
	return x[int(p*float64(len(x)-1)+0.5)]
}

// median takes the median of each figure.
func median(rows []Row) Row {
	of := func(f func(*Row) *float64) float64 {
		var x []float64
		for i := range rows {
			x = append(x, *f(&rows[i]))
		}
		return percentile(x, 0.5)
	}
	var m Row
	for _, f := range []func(*Row) *float64{
		func(r *Row) *float64 { return &r.Cached }, func(r *Row) *float64 { return &r.Oracle },
		func(r *Row) *float64 { return &r.P50 }, func(r *Row) *float64 { return &r.P99 },
		func(r *Row) *float64 { return &r.Mean }, func(r *Row) *float64 { return &r.E2E },
		func(r *Row) *float64 { return &r.Spread }, func(r *Row) *float64 { return &r.Top },
		func(r *Row) *float64 { return &r.Moves }, func(r *Row) *float64 { return &r.Error },
	} {
		*f(&m) = of(f)
	}
	return m
}

// Print writes the rows of one trace, fleet and load as a table, with how ours
// compares to the best of the others.
func Print(w io.Writer, rows []Row) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s, %s engines, %.0f %% of capacity\n", rows[0].Trace, rows[0].Fleet, 100*rows[0].Load)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "policy\tcached %\tof oracle %\tTTFT p50 ms\tp99\tmean\te2e p99 ms\tbusiest ÷ mean\ttop share %\tmoves %\tTTFT error p50 %\t")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f\t%.0f\t%.1f\t%.0f\t\n", r.Policy, 100*r.Cached, 100*r.Oracle,
			r.P50, r.P99, r.Mean, r.E2E, r.Spread, 100*r.Top, 100*r.Moves, 100*r.Error)
	}
	tw.Flush()
	if v := verdict(rows); v != "" {
		fmt.Fprintln(w, v)
	}
}

// verdict compares ours with the best of the others.
func verdict(rows []Row) string {
	var ours *Row
	var p99, cached *Row
	for i := range rows {
		r := &rows[i]
		if r.Policy == Ours {
			ours = r
			continue
		}
		if p99 == nil || r.P99 < p99.P99 {
			p99 = r
		}
		if cached == nil || r.Cached > cached.Cached {
			cached = r
		}
	}
	if ours == nil || p99 == nil {
		return ""
	}
	return fmt.Sprintf("ours: p99 %.2f × that of %s (none could be below %.2f ×); cached %+.1f points against %s", ours.P99/p99.P99, p99.Policy, ours.Bound/p99.P99, 100*(ours.Cached-cached.Cached), cached.Policy)
}
