package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/replay"
	"millrace.dev/millrace/extproc/internal/workload"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/trust"
)

// workloads is what the flags say of generated workloads.
type workloads struct {
	folder, family, half, loads string
	each                        int
}

// halves are the values of -half.
var halves = map[string][]workload.Half{
	"training": {workload.Training}, "held-out": {workload.Evaluation}, "both": {workload.Training, workload.Evaluation},
}

// run runs the workloads that were asked for. It writes each result as a JSON line and a picture for
// each family into the folder, and tables to w.
func (o *workloads) run(ctx context.Context, policy string, w, progress io.Writer) error {
	scenarios, loads, err := o.chosen()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.folder, 0o755); err != nil {
		return err
	}
	f, err := regular.Create(filepath.Join(o.folder, "results.jsonl"))
	if err != nil {
		return err
	}
	defer f.Close()
	enc := json.NewEncoder(f)
	var policies []string
	for _, p := range append(slices.Clone(replay.Rivals), replay.Ours) {
		if strings.Contains(p, policy) {
			policies = append(policies, p)
		}
	}
	var results []*workload.Result
	var failed error
	err = workload.Run(ctx, scenarios, policies, loads, func(r *workload.Result) {
		results = append(results, r)
		fmt.Fprintf(progress, "\r%d of %d ", len(results), len(scenarios)*len(loads))
		if err := enc.Encode(r); err != nil && failed == nil {
			failed = err
		}
	})
	fmt.Fprintln(progress)
	if err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	return o.report(w, results, f)
}

// report writes tables and pictures, and closes the file of results.
func (o *workloads) report(w io.Writer, results []*workload.Result, f *os.File) error {
	verdicts := workload.Verdicts(results)
	workload.PrintRivals(w, results)
	fmt.Fprintln(w)
	workload.Print(w, verdicts)
	if err := workload.Plot(o.folder, results); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s, and a picture for each family beside it\n", f.Name())
	return f.Close()
}

// chosen returns the scenarios and loads that the flags name.
func (o *workloads) chosen() (scenarios []*workload.Scenario, loads []float64, err error) {
	half, ok := halves[o.half]
	if !ok {
		return nil, nil, fmt.Errorf("-half: %q; must be training, held-out or both", o.half)
	}
	if o.each < 1 {
		return nil, nil, fmt.Errorf("-each: %d; must be 1 or more", o.each)
	}
	for _, h := range half {
		for _, s := range workload.Of(h, o.each) {
			if o.family == "" || slices.Contains(strings.Split(o.family, ","), s.Family) {
				scenarios = append(scenarios, s)
			}
		}
	}
	if len(scenarios) == 0 {
		return nil, nil, fmt.Errorf("-family: %q; must be of %s", o.family, strings.Join(workload.Families(), ", "))
	}
	for l := range strings.SplitSeq(o.loads, ",") {
		load, err := trust.Number(l, 1e-3, 1e3)
		if err != nil {
			return nil, nil, fmt.Errorf("-loads: %w", err)
		}
		loads = append(loads, load)
	}
	return scenarios, loads, nil
}
