package workload

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"millrace.dev/millrace/extproc/internal/replay"
)

// size of a picture.
const width, height = 8 * vg.Inch, 5 * vg.Inch

// Plot writes a picture for each family into a folder, FAMILY.svg, of the mean goodput of each policy
// against load. Ours is thick.
func Plot(folder string, results []*Result) error {
	families := map[string][]*Result{}
	for _, r := range results {
		families[r.Family] = append(families[r.Family], r)
	}
	for name, rs := range families {
		if err := picture(filepath.Join(folder, name+".svg"), name, rs); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func picture(path, name string, results []*Result) error {
	p := plot.New()
	p.Title.Text = name + ": requests that meet their goals"
	p.X.Label.Text, p.Y.Label.Text = "load, % of capacity", "%"
	p.Legend.Left, p.Legend.Top = true, false
	p.Add(plotter.NewGrid())
	policies, lines := curves(results)
	for i, policy := range policies {
		line, err := plotter.NewLine(lines[policy])
		if err != nil {
			return fmt.Errorf("%s: %w", policy, err)
		}
		line.Color, line.Dashes = plotutil.Color(i), plotutil.Dashes(i/len(plotutil.DefaultColors))
		if policy == replay.Ours {
			line.Width = vg.Points(3)
		}
		p.Add(line)
		p.Legend.Add(policy, line)
	}
	return p.Save(width, height, path)
}

// curves returns the policies in the order of the first result, and their mean goodput by load.
func curves(results []*Result) (policies []string, lines map[string]plotter.XYs) {
	type point struct {
		policy string
		load   float64
	}
	sum, n, loads := map[point]float64{}, map[point]float64{}, map[float64]bool{}
	for _, s := range results[0].Scores {
		policies = append(policies, s.Policy)
	}
	for _, r := range results {
		loads[r.Load] = true
		for _, s := range r.Scores {
			k := point{s.Policy, r.Load}
			sum[k] += s.Goodput
			n[k]++
		}
	}
	lines = map[string]plotter.XYs{}
	for _, load := range slices.Sorted(maps.Keys(loads)) {
		for _, p := range policies {
			if k := (point{p, load}); n[k] > 0 {
				lines[p] = append(lines[p], plotter.XY{X: 100 * load, Y: 100 * sum[k] / n[k]})
			}
		}
	}
	return policies, lines
}
