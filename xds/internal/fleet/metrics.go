package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/xds/fleetpb"
)

// metrics shows the fleet as xds sees it.
type metrics struct {
	reports   prometheus.Counter
	refused   prometheus.Counter
	forgotten prometheus.Counter
	nodes     *prometheus.GaugeVec // by state
	endpoints *prometheus.GaugeVec // by state
	settled   prometheus.Gauge
}

// states are the label values of an endpoint's or node's state.
var states = map[fleetpb.EndpointState_State]string{ready: "ready", suspect: "suspect", notReady: "not_ready"}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reports: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_xds_reports_total", Help: "Reports of nodes that were accepted.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_xds_reports_refused_total", Help: "Reports of nodes that were refused as invalid.",
		}),
		forgotten: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_xds_caches_forgotten_total", Help: "Reports of nodes after which what their engines have cached was forgotten, because all of it together takes as much memory as it may.",
		}),
		nodes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_xds_nodes", Help: "Nodes by state.",
		}, []string{"state"}),
		endpoints: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_xds_endpoints", Help: "Replicas by state.",
		}, []string{"state"}),
		settled: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_xds_settled", Help: "Whether the fleet is known after a start, so that it is pushed: 0 or 1.",
		}),
	}
	reg.MustRegister(m.reports, m.refused, m.forgotten, m.nodes, m.endpoints, m.settled)
	m.observe(&Snapshot{})
	return m
}

// observe sets the gauges to what the snapshot says.
func (m *metrics) observe(s *Snapshot) {
	nodes := make(map[string]int, len(states))
	endpoints := make(map[string]int, len(states))
	for _, n := range s.Nodes {
		nodes[states[n.State]]++
	}
	for _, e := range s.Endpoints {
		endpoints[states[e.State]]++
	}
	for _, label := range states {
		m.nodes.WithLabelValues(label).Set(float64(nodes[label]))
		m.endpoints.WithLabelValues(label).Set(float64(endpoints[label]))
	}
	m.settled.Set(0)
	if s.Settled {
		m.settled.Set(1)
	}
}
