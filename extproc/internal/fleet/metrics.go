package fleet

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/scrape"
)

// metrics of what xds says.
type metrics struct {
	connected prometheus.Gauge
	updates   prometheus.Counter
	rejected  prometheus.Counter
	endpoints map[pick.State]prometheus.Gauge
	// cached is not by engine: there may be ten thousand, and each tells it itself.
	cached prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	endpoints, byState := endpointGauges("xds names")
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_xds_connected",
			Help: "Whether xds answers (1) or what it said last holds (0).",
		}),
		updates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_xds_updates_total",
			Help: "Responses of xds.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_xds_refused_total",
			Help: "Responses of xds of which a part was refused.",
		}),
		endpoints: byState,
		cached: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_engines_cached_tokens",
			Help: "Tokens that engines say they have in their caches, all together.",
		}),
	}
	reg.MustRegister(m.connected, m.updates, m.rejected, endpoints, m.cached)
	return m
}

// count counts the endpoints of a table.
func (m *metrics) count(t *pick.Table) {
	n := map[pick.State]int{}
	for _, model := range t.Models {
		for _, e := range model.Endpoints {
			n[e.State]++
		}
	}
	for s, g := range m.endpoints {
		g.Set(float64(n[s]))
	}
}

// endpointGauges returns the gauge of endpoints as a whole and by state.
func endpointGauges(who string) (*prometheus.GaugeVec, map[pick.State]prometheus.Gauge) {
	all := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_extproc_endpoints",
		Help: "Endpoints that " + who + ", by state.",
	}, []string{"state"})
	by := map[pick.State]prometheus.Gauge{}
	for s, name := range stateNames {
		by[s] = all.WithLabelValues(name)
	}
	return all, by
}

// localMetrics of the fleet of a file.
type localMetrics struct {
	good      prometheus.Gauge
	reads     map[bool]prometheus.Counter // by whether the file was good
	endpoints map[pick.State]prometheus.Gauge
	looks     map[string]prometheus.Counter // by what they found
	seconds   prometheus.Histogram
	dumb      prometheus.Gauge
}

// What looks find.
const (
	lookMetrics = "metrics" // metrics came
	lookAnswer  = "answer"  // it lives, no metrics came
	lookUnwell  = "unwell"  // it says that it is not well
	lookGone    = "gone"    // nobody is there
	lookSilent  = "silent"  // nothing came in time
)

func newLocalMetrics(reg prometheus.Registerer) *localMetrics {
	endpoints, byState := endpointGauges("the file of the fleet names")
	reads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_fleet_reads_total",
		Help: "Times that the file of the fleet had changed and was read, by what came of it.",
	}, []string{"result"})
	looks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_looks_total",
		Help: "Looks at endpoints, by what they found.",
	}, []string{"found"})
	m := &localMetrics{
		good: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_fleet_file_good",
			Help: "Whether the file of the fleet as it is now is in force (1) or an earlier one is (0).",
		}),
		reads:     map[bool]prometheus.Counter{true: reads.WithLabelValues("good"), false: reads.WithLabelValues("bad")},
		endpoints: byState,
		looks:     map[string]prometheus.Counter{},
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "millrace_extproc_look_seconds",
			Help:    "Time that a look at an endpoint took.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2},
		}),
		dumb: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_endpoints_without_metrics",
			Help: "Endpoints whose metrics do not come though they should.",
		}),
	}
	for _, name := range []string{lookMetrics, lookAnswer, lookUnwell, lookGone, lookSilent} {
		m.looks[name] = looks.WithLabelValues(name)
	}
	m.good.Set(1)
	reg.MustRegister(m.good, reads, endpoints, looks, m.seconds, m.dumb)
	return m
}

// read counts that the file was read.
func (m *localMetrics) read(err error) {
	m.reads[err == nil].Inc()
	m.good.Set(0)
	if err == nil {
		m.good.Set(1)
	}
}

// looked counts a look.
func (m *localMetrics) looked(f *finding, took time.Duration) {
	found := lookAnswer
	var status scrape.StatusError
	switch {
	case f.health == nil && f.sample != nil:
		found = lookMetrics
	case errors.Is(f.health, scrape.ErrSilent):
		found = lookSilent
	case errors.As(f.health, &status):
		found = lookUnwell
	case f.health != nil:
		found = lookGone
	}
	m.looks[found].Inc()
	m.seconds.Observe(took.Seconds())
}

// count counts the endpoints.
func (m *localMetrics) count(all map[string]*plain) {
	n, dumb := map[pick.State]int{}, 0
	for _, p := range all {
		n[p.vital.state]++
		if p.fault != nil {
			dumb++
		}
	}
	for s, g := range m.endpoints {
		g.Set(float64(n[s]))
	}
	m.dumb.Set(float64(dumb))
}
