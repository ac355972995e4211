package kvevents

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all Followers together.
type Metrics struct {
	batches, gaps, passed prometheus.Counter
}

// NewMetrics returns the metrics, registered, of the program of the given name.
func NewMetrics(program string, reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		batches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_" + program + "_kv_batches_total",
			Help: "Messages of engines about their KV caches.",
		}),
		gaps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_" + program + "_kv_gaps_total",
			Help: "Times that a message about a KV cache was missing or could not be decoded, so that the engine's blocks were forgotten.",
		}),
	}
	m.passed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_" + program + "_kv_passed_total",
		Help: "Events of engines about blocks that were passed over, as nobody knows what these stand for.",
	})
	reg.MustRegister(m.batches, m.gaps, m.passed)
	return m
}
