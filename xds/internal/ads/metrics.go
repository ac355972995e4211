package ads

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/translate"
)

// metrics shows the conversations with the clients of ADS.
type metrics struct {
	clients prometheus.Gauge
	pushes  *prometheus.CounterVec   // by type
	acks    *prometheus.CounterVec   // by type
	nacks   *prometheus.CounterVec   // by type
	latency *prometheus.HistogramVec // by type
}

// otherType labels what clients ask for and nobody has.
const otherType = "other"

var labels = map[string]string{
	translate.ListenerType:  "listener",
	translate.SecretType:    "secret",
	translate.RouteType:     "route",
	translate.ClusterType:   "cluster",
	translate.EndpointsType: "endpoints",
	wire.EndpointType:       "endpoint_state",
	wire.ModelType:          "model_state",
	wire.PolicyType:         "policy_state",
	wire.CacheType:          "cache_state",
}

// label returns the short name of a type URL.
func label(typ string) string {
	if l, ok := labels[typ]; ok {
		return l
	}
	return otherType
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
	}
	m := &metrics{
		clients: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_xds_clients", Help: "Clients of ADS now connected.",
		}),
		pushes: counter("millrace_xds_pushes_total", "Responses sent over ADS."),
		acks:   counter("millrace_xds_acks_total", "Responses that a client has accepted."),
		nacks:  counter("millrace_xds_nacks_total", "Responses that a client has refused."),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_xds_push_seconds",
			Help:    "Time from sending a response until the client accepts or refuses it.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"type"}),
	}
	reg.MustRegister(m.clients, m.pushes, m.acks, m.nacks, m.latency)
	for _, l := range labels {
		m.pushes.WithLabelValues(l)
		m.acks.WithLabelValues(l)
		m.nacks.WithLabelValues(l)
		m.latency.WithLabelValues(l)
	}
	m.pushes.WithLabelValues(otherType)
	m.acks.WithLabelValues(otherType)
	m.nacks.WithLabelValues(otherType)
	m.latency.WithLabelValues(otherType)
	return m
}
