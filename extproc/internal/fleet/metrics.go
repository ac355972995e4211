package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/probe"
)

// metrics of what xds says.
type metrics struct {
	connected prometheus.Gauge
	updates   prometheus.Counter
	rejected  prometheus.Counter
	endpoints map[pick.State]prometheus.Gauge
	// cached is not by engine: there may be ten thousand, and each has a metric of its own.
	cached prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	endpoints, byState := endpointGauges("xds names")
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_xds_connected",
			Help: "Whether the stream to xds is up (1), or the last state received stays in force (0).",
		}),
		updates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_xds_updates_total",
			Help: "Responses received from xds.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_xds_refused_total",
			Help: "Responses of xds with a resource that was refused as invalid.",
		}),
		endpoints: byState,
		cached: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_engines_in_cache_tokens",
			Help: "Tokens in the caches of all engines, as they report them.",
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

// localMetrics of endpoints that are probed.
type localMetrics struct {
	endpoints map[pick.State]prometheus.Gauge
	mute      prometheus.Gauge
	// Of the fleet of a file; nil: there is none.
	good  prometheus.Gauge
	reads map[bool]prometheus.Counter // by whether the file was good
}

func newLocalMetrics(who string, reg prometheus.Registerer) *localMetrics {
	endpoints, byState := endpointGauges(who + " names")
	m := &localMetrics{
		endpoints: byState,
		mute: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_endpoints_without_metrics",
			Help: "Endpoints that return no usable metrics though they should.",
		}),
	}
	reg.MustRegister(endpoints, m.mute)
	return m
}

// file adds the metrics of a file.
func (m *localMetrics) file(reg prometheus.Registerer) {
	reads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_fleet_reads_total",
		Help: "Times that the changed fleet file was read, by result.",
	}, []string{"result"})
	m.reads = map[bool]prometheus.Counter{true: reads.WithLabelValues("good"), false: reads.WithLabelValues("bad")}
	m.good = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_extproc_fleet_file_good",
		Help: "Whether the fleet file on disk is in force (1), or is faulty and an earlier one is (0).",
	})
	m.good.Set(1)
	reg.MustRegister(m.good, reads)
}

// read counts that the file was read.
func (m *localMetrics) read(err error) {
	m.reads[err == nil].Inc()
	m.good.Set(0)
	if err == nil {
		m.good.Set(1)
	}
}

// count counts the endpoints.
func (m *localMetrics) count(all map[string]*local) {
	n, mute := map[pick.State]int{}, 0
	for _, p := range all {
		if p.last == nil {
			n[pick.Ready]++
			continue
		}
		n[probeStates[p.last.State]]++
		if p.last.MetricsErr != nil {
			mute++
		}
	}
	for s, g := range m.endpoints {
		g.Set(float64(n[s]))
	}
	m.mute.Set(float64(mute))
}

var probeStates = map[probe.State]pick.State{probe.Ready: pick.Ready, probe.Suspect: pick.Suspect, probe.NotReady: pick.NotReady}

var stateNames = map[pick.State]string{pick.Ready: "ready", pick.Suspect: "suspect", pick.NotReady: "not_ready"}
