package workload

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"

	"millrace.dev/millrace/extproc/internal/replay"
)

// Ratios is how ours compares on one scenario with the best rival by each figure, which may be
// another one by each. The oracle is no rival: it knows what nobody can.
type Ratios struct {
	// Goodput above 1 is better than the best; the others below 1 are.
	Goodput, P99, E2E float64
	// Rival is the one with the lowest 99th percentile of the time to the first token.
	Rival string
}

// Compare returns the ratios of a result; false: ours or all rivals are missing.
func (r *Result) Compare() (Ratios, bool) {
	var ours, best *replay.Score
	goodput, p99, e2e := 0.0, math.Inf(1), math.Inf(1)
	for i := range r.Scores {
		switch s := &r.Scores[i]; s.Policy {
		case replay.Ours:
			ours = s
		case replay.Oracular:
		default:
			if s.P99 < p99 {
				best = s
			}
			goodput, p99, e2e = max(goodput, s.Goodput), min(p99, s.P99), min(e2e, s.E2E)
		}
	}
	if ours == nil || best == nil {
		return Ratios{}, false
	}
	return Ratios{max(ours.Goodput, 1e-3) / max(goodput, 1e-3), ours.P99 / max(1, p99), ours.E2E / max(1, e2e), best.Policy}, true
}

// worse is from which ratio on ours counts as worse than the best rival, and far as much worse.
const worse, far = 1.05, 1.25

// Verdict is how ours compares over several results: geometric means, and shares.
type Verdict struct {
	Family string  `json:"family"`
	Load   float64 `json:"load"` // 0: all of them up to 100 %
	N      int     `json:"n"`
	// Goodput, P99 and E2E are geometric means of Ratios.
	Goodput float64 `json:"goodput_ratio"`
	P99     float64 `json:"ttft_p99_ratio"`
	E2E     float64 `json:"e2e_mean_ratio"`
	// LowGoodput is the share of results whose goodput is worse than the best rival's, Worse
	// and Far those whose 99th percentile is, or much.
	LowGoodput float64 `json:"goodput_worse"`
	Worse      float64 `json:"ttft_p99_worse"`
	Far        float64 `json:"ttft_p99_much_worse"`
	// Mine and Oracle are the mean goodput of ours and of the oracle.
	Mine   float64 `json:"goodput"`
	Oracle float64 `json:"goodput_oracle"`
}

// Verdicts compares by family and load, then by load, and up to 100 % in all.
func Verdicts(results []*Result) (all []Verdict) {
	type key struct {
		family string
		load   float64
	}
	groups := map[key][]*Result{}
	var order []key
	for _, r := range results {
		keys := []key{{r.Family, r.Load}, {"all", r.Load}}
		if r.Load <= 1 {
			keys = append(keys, key{"all", 0})
		}
		for _, k := range keys {
			if groups[k] == nil {
				order = append(order, k)
			}
			groups[k] = append(groups[k], r)
		}
	}
	rank := func(f string) int {
		if i := slices.Index(Families(), f); i >= 0 {
			return i
		}
		return len(families)
	}
	slices.SortFunc(order, func(a, b key) int {
		return cmp.Or(cmp.Compare(rank(a.family), rank(b.family)), cmp.Compare(a.load, b.load))
	})
	for _, k := range order {
		if v, ok := verdict(groups[k]); ok {
			v.Family, v.Load = k.family, k.load
			all = append(all, v)
		}
	}
	return all
}

func verdict(results []*Result) (v Verdict, ok bool) {
	for _, r := range results {
		x, ok := r.Compare()
		if !ok {
			continue
		}
		v.N++
		v.Goodput += math.Log(x.Goodput)
		v.P99 += math.Log(x.P99)
		v.E2E += math.Log(x.E2E)
		v.LowGoodput += one(x.Goodput < 1/worse)
		v.Worse += one(x.P99 > worse)
		v.Far += one(x.P99 > far)
		for _, s := range r.Scores {
			v.Mine += s.Goodput * one(s.Policy == replay.Ours)
			v.Oracle += s.Goodput * one(s.Policy == replay.Oracular)
		}
	}
	if v.N == 0 {
		return v, false
	}
	n := float64(v.N)
	v.Goodput, v.P99, v.E2E = math.Exp(v.Goodput/n), math.Exp(v.P99/n), math.Exp(v.E2E/n)
	for _, f := range []*float64{&v.LowGoodput, &v.Worse, &v.Far, &v.Mine, &v.Oracle} {
		*f /= n
	}
	return v, true
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Print writes verdicts as a table for people.
func Print(w io.Writer, verdicts []Verdict) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "family\tload %\tn\tgoodput %\toracle %\tgoodput ÷ best\tTTFT p99 ÷ best\te2e mean ÷ best\tgoodput worse %\tp99 worse %\tp99 much worse %\t")
	for _, v := range verdicts {
		load := fmt.Sprintf("%.0f", 100*v.Load)
		if v.Load == 0 {
			load = "≤ 100"
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%.1f\t%.1f\t%.3f\t%.2f\t%.2f\t%.0f\t%.0f\t%.0f\t\n", v.Family, load, v.N, 100*v.Mine, 100*v.Oracle,
			v.Goodput, v.P99, v.E2E, 100*v.LowGoodput, 100*v.Worse, 100*v.Far)
	}
	tw.Flush()
	fmt.Fprintf(w, "best: the best rival on each workload by that figure; worse: by more than %.0f %%, much worse: by more than %.0f %%\n", 100*(worse-1), 100*(far-1))
}

// PrintRivals writes what each policy made of the results: means, and how often it was the best.
func PrintRivals(w io.Writer, results []*Result) {
	type sums struct {
		n, goodput, p99, e2e float64
		best                 int
	}
	by := map[string]*sums{}
	var order []string
	for _, r := range results {
		x, _ := r.Compare()
		for _, s := range r.Scores {
			t := by[s.Policy]
			if t == nil {
				t = new(sums)
				by[s.Policy], order = t, append(order, s.Policy)
			}
			t.n++
			t.goodput += s.Goodput
			t.p99 += math.Log(max(1, s.P99))
			t.e2e += math.Log(max(1, s.E2E))
			if s.Policy == x.Rival {
				t.best++
			}
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "policy\tgoodput %\tTTFT p99 ms, geometric mean\te2e mean ms\tbest rival by p99\t")
	for _, p := range order {
		t := by[p]
		fmt.Fprintf(tw, "%s\t%.1f\t%.0f\t%.0f\t%d\t\n", p, 100*t.goodput/t.n, math.Exp(t.p99/t.n), math.Exp(t.e2e/t.n), t.best)
	}
	tw.Flush()
}
