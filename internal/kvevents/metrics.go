package kvevents

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/blocks"
)

// Metrics of all Followers together.
type Metrics struct {
	batches, gaps, passed, crowded prometheus.Counter
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
		crowded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_" + program + "_kv_publishers_refused_total",
			Help: "Publishers of events about KV caches that were not followed, because too many are.",
		}),
	}
	m.passed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_" + program + "_kv_passed_total",
		Help: "Events of engines about blocks that were passed over, as nobody knows what these stand for.",
	})
	reg.MustRegister(m.batches, m.gaps, m.passed, m.crowded, BlocksRefused(program))
	return m
}

// BlocksRefused counts, for the program of the given name, the blocks for which there was no memory.
func BlocksRefused(program string) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "millrace_" + program + "_kv_blocks_refused_total",
		Help: "Blocks of engines' KV caches that were not taken in, because the blocks of all engines take as much memory as they may.",
	}, func() float64 {
		_, _, refused := blocks.Memory()
		return float64(refused)
	})
}
