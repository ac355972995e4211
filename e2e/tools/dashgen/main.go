// Command dashgen makes the dashboards of manifests/dashboards out of the tables in
// panels.go, by Grafana's own builders, so that a panel is a line of Go and no JSON is
// edited by hand.
//
//	dashgen -rules manifests/dashboards/rules.yaml -to manifests/dashboards,manifests/charts/millrace/files/dashboards
//
// The rules, which are written by hand, are copied beside them: a chart can read only
// what lies in it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"

	"millrace.dev/millrace/e2e/tools/output"
)

func main() {
	to := flag.String("to", "", "folders for the dashboards, with commas in between")
	rules := flag.String("rules", "", "file of rules for Prometheus, to be copied beside them")
	flag.Parse()
	if err := run(*rules, strings.Split(*to, ",")); err != nil {
		fmt.Fprintf(os.Stderr, "dashgen: %v\n", err)
		os.Exit(1)
	}
}

func run(rules string, to []string) error {
	text, err := os.ReadFile(rules)
	if err != nil {
		return err
	}
	made := map[string][]byte{filepath.Base(rules): text}
	for _, b := range boards {
		d, err := b.build()
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if text, err = json.MarshalIndent(d, "", "  "); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		made[b.name+".json"] = append(text, '\n')
	}
	for _, dir := range to {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for name, text := range made {
			if err := output.Write(filepath.Join(dir, name), text); err != nil {
				return err
			}
		}
	}
	return nil
}

// board is a dashboard: millrace-NAME is its UID, by which others link to it.
type board struct {
	name, title, about string
	rows               []row
}

// row is a question, and the panels that answer it.
type row struct {
	title  string
	panels []panel
}

// panel is a picture of one or more queries.
type panel struct {
	kind  kind
	title string
	about string // what it shows, and what to do if it shows a fault
	unit  string // by Grafana's names: s, percentunit, reqps, bytes …
	// empty is set if no data is as it should be: when all is well, or where there is no
	// GPU. The tests prove such a panel with the fault that fills it.
	empty  empty
	series []series
}

// series is a query of Prometheus, and what its legend is made of.
type series struct{ query, legend string }

type kind int

const (
	lines kind = iota
	number
	bars
)

// empty is when a panel has no data, in the words that its description ends with.
type empty string

const (
	never    empty = ""
	whenWell empty = "Empty when all is well."
	noGPU    empty = "Empty without GPUs."
)

// Sizes are in Grafana's grid of 24 columns.
const (
	wide, half, quarter = 24, 12, 6
	high, low           = 8, 4
)

func (b board) build() (dashboard.Dashboard, error) {
	source := "prometheus"
	d := dashboard.NewDashboardBuilder("Millrace: "+b.title).
		Uid("millrace-"+b.name).
		Description(b.about).
		Tags([]string{"millrace"}).
		Refresh("30s").
		Time("now-1h", "now").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("source").Label("Prometheus").Type(source)).
		WithVariable(dashboard.NewQueryVariableBuilder("model").Label("model").
			Query(dashboard.StringOrMap{String: cog.ToPtr("label_values(millrace_extproc_requests_total, model)")}).
			Datasource(dataSource).Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
			Multi(true).IncludeAll(true).AllValue(".*")).
		Link(dashboard.NewDashboardLinkBuilder("Millrace").Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"millrace"}).KeepTime(true).IncludeVars(true))
	for _, r := range b.rows {
		d.WithRow(dashboard.NewRowBuilder(r.title))
		for _, p := range r.panels {
			d.WithPanel(p.build())
		}
	}
	return d.Build()
}

// dataSource is the Prometheus that the user of the dashboard chooses.
var dataSource = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${source}")}

func (p panel) build() cog.Builder[dashboard.Panel] {
	about := strings.TrimSpace(p.about + " " + string(p.empty))
	nothing := "no data"
	if p.empty != never {
		nothing = "none"
	}
	switch p.kind {
	case number:
		b := stat.NewPanelBuilder().Title(p.title).Description(about).Unit(p.unit).NoValue(nothing).
			Datasource(dataSource).Span(quarter).Height(low).
			ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
		for i, s := range p.series {
			b.WithTarget(s.build(i, true))
		}
		return b
	case bars:
		b := bargauge.NewPanelBuilder().Title(p.title).Description(about).Unit(p.unit).NoValue(nothing).
			Datasource(dataSource).Span(half).Height(high).Min(0).Orientation(common.VizOrientationHorizontal).
			ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
		for i, s := range p.series {
			b.WithTarget(s.build(i, true))
		}
		return b
	default:
		b := timeseries.NewPanelBuilder().Title(p.title).Description(about).Unit(p.unit).NoValue(nothing).
			Datasource(dataSource).Span(half).Height(high).Min(0)
		for i, s := range p.series {
			b.WithTarget(s.build(i, false))
		}
		return b
	}
}

func (s series) build(n int, now bool) cog.Builder[variants.Dataquery] {
	q := prometheus.NewDataqueryBuilder().Expr(s.query).LegendFormat(s.legend).
		RefId(string(rune('A' + n))).Datasource(dataSource)
	if now {
		return q.Instant()
	}
	return q.Range()
}
