package fleet

import (
	"fmt"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/kvevents"
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
	reg.MustRegister(m.connected, m.updates, m.rejected, endpoints, m.cached, kvevents.BlocksRefused("extproc"))
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

const endpointsName = "millrace_extproc_endpoints"

func endpointsHelp(who string) string { return "Endpoints that " + who + ", by state." }

// endpointGauges returns the gauge of endpoints as a whole and by state.
func endpointGauges(who string) (*prometheus.GaugeVec, map[pick.State]prometheus.Gauge) {
	all := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: endpointsName,
		Help: endpointsHelp(who),
	}, []string{"state"})
	by := map[pick.State]prometheus.Gauge{}
	for s, name := range stateNames {
		by[s] = all.WithLabelValues(name)
	}
	return all, by
}

// localMetrics of the fleet of a file.
type localMetrics struct {
	good  prometheus.Gauge
	reads map[bool]prometheus.Counter // by whether the file was good
}

// registerProbed registers the metrics of endpoints that are probed, whom who names. They are
// counted when they are asked for: what /readyz says at the same time is the same.
func (p *probed) registerProbed(who string, reg prometheus.Registerer) {
	for s, name := range stateNames {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: endpointsName, Help: endpointsHelp(who + " names"), ConstLabels: prometheus.Labels{"state": name},
		}, func() float64 { return float64(p.count().states[s]) }))
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_extproc_endpoints_without_metrics",
		Help: "Endpoints that answer and return no usable metrics though they should.",
	}, func() float64 { return float64(len(p.count().mute)) }))
}

// count is the endpoints that are probed, as they are now.
type count struct {
	all    int
	states map[pick.State]int
	// down are those that are not ready, and why, mute what is wrong with the metrics of the
	// others, wrong which models are not as the fleet has them, files whose keys or certificates
	// can't be used, each in the order of addresses.
	down, mute, wrong, files []string
	// unpriced are those that did not say what their last answers had; none while tenants have
	// no budget of tokens.
	unpriced []string
}

// because is who, and why.
func because(who string, err error) string {
	if err == nil {
		return who
	}
	return fmt.Sprintf("%s (%v)", who, err)
}

func (p *probed) count() count {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := count{all: len(p.locals), states: map[pick.State]int{}}
	for _, address := range slices.Sorted(maps.Keys(p.locals)) {
		l := p.locals[address]
		if e := p.state.endpoints[address]; e != nil && e.live.Unpriced() && p.state.charges() {
			c.unpriced = append(c.unpriced, address)
		}
		if l.last == nil {
			c.states[pick.Ready]++
			continue
		}
		c.states[probeStates[l.last.State]]++
		if l.last.ModelsErr != nil {
			c.wrong = append(c.wrong, because(address, l.last.ModelsErr))
		}
		if l.last.FilesErr != nil {
			c.files = append(c.files, because(address, l.last.FilesErr))
		}
		switch {
		case l.last.State != probe.Ready:
			c.down = append(c.down, because(address, l.last.Err))
		case l.last.MetricsErr != nil:
			c.mute = append(c.mute, fmt.Sprintf("%s (%v)", l.entry.Metrics, l.last.MetricsErr))
		}
	}
	return c
}

func newLocalMetrics(reg prometheus.Registerer) *localMetrics {
	m := &localMetrics{}
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

var probeStates = map[probe.State]pick.State{probe.Ready: pick.Ready, probe.Suspect: pick.Suspect, probe.NotReady: pick.NotReady}

var stateNames = map[pick.State]string{pick.Ready: "ready", pick.Suspect: "suspect", pick.NotReady: "not_ready"}
