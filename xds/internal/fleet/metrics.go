package fleet

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
)

// metrics shows the fleet as xds sees it.
type metrics struct {
	reports   prometheus.Counter
	refused   prometheus.Counter
	forgotten prometheus.Counter
	nodes     *prometheus.GaugeVec // by state
	endpoints *prometheus.GaugeVec // by state
	served    *prometheus.GaugeVec // by model
	settled   prometheus.Gauge
	plans     prometheus.Histogram
	predicted *prometheus.GaugeVec // by replica and phase
	observed  *prometheus.GaugeVec // by replica and phase
	asleep    prometheus.Gauge
	waiting   prometheus.Gauge
	swaps     prometheus.Counter
	swapped   uint64 // of swaps, those that are counted
	scaled    scaledMetrics
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
		served: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_xds_model_served", Help: "Whether a request for a model is served: 1 if a replica takes it, or none runs as nobody asks; 0 if it waits or fails.",
		}, []string{"model"}),
		settled: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_xds_settled", Help: "Whether the fleet is known after a start, so that it is pushed: 0 or 1.",
		}),
		plans: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_xds_layout_plan_seconds", Help: "Time that it took to plan the layouts of all models.",
			Buckets: []float64{0.001, 0.01, 0.1, 1, 10},
		}),
		predicted: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_xds_layout_predicted_tokens_per_second", Help: "Speed of a replica for one request, decode or prefill, as it was predicted when its layout was planned.",
		}, []string{"replica", "phase"}),
		observed: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_xds_layout_observed_tokens_per_second", Help: "Speed of a replica for one request, decode or prefill, as its engine has measured it, of replicas of which something was predicted.",
		}, []string{"replica", "phase"}),
	}
	m.asleep = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_xds_replicas_asleep", Help: "Replicas of models that are loaded on demand and have no place on nodes now.",
	})
	m.waiting = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_xds_requests_awaiting_place", Help: "Requests that extprocs keep because their model has no place on nodes.",
	})
	m.swaps = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_xds_swaps_total", Help: "Places on nodes that a model which is loaded on demand has given up for another one.",
	})
	m.scaled = newScaledMetrics(reg)
	reg.MustRegister(m.asleep, m.waiting, m.swaps, m.plans, m.predicted, m.observed, m.reports, m.refused, m.forgotten, m.nodes, m.endpoints, m.served, m.settled)
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
	m.served.Reset()
	for _, o := range s.Objects {
		if o.Kind == config.KindModel {
			m.served.WithLabelValues(o.Name).Set(obs.Number(o.served()))
		}
	}
	m.layouts(s)
	m.scaled.observe(s)
	asleep, waiting := 0, 0
	for _, u := range s.Unplaced {
		if u.Asleep {
			asleep++
		}
	}
	for _, d := range s.Waiting {
		waiting += d.Waiting
	}
	m.asleep.Set(float64(asleep))
	m.waiting.Set(float64(waiting))
	m.swaps.Add(float64(s.Swaps - m.swapped)) // neither goes back
	m.swapped = s.Swaps
	m.settled.Set(obs.Number(s.Settled))
}

// planned notes how long a plan took.
func (m *metrics) planned(d time.Duration) { m.plans.Observe(d.Seconds()) }

// layouts shows what was predicted of replicas beside what they measure.
func (m *metrics) layouts(s *Snapshot) {
	m.predicted.Reset()
	m.observed.Reset()
	for _, e := range s.Endpoints {
		p, ok := s.Predicted[e.Replica]
		if !ok {
			continue
		}
		for phase, v := range map[string][2]float64{"decode": {p.Decode, e.Speed.GetDecode()}, "prefill": {p.Prefill, e.Speed.GetPrefill()}} {
			m.predicted.WithLabelValues(e.Replica, phase).Set(v[0])
			if v[1] > 0 {
				m.observed.WithLabelValues(e.Replica, phase).Set(v[1])
			}
		}
	}
}
