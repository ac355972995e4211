package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
)

// metrics of what xds says.
type metrics struct {
	connected prometheus.Gauge
	updates   prometheus.Counter
	rejected  prometheus.Counter
	endpoints map[pick.State]prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	endpoints := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_extproc_endpoints",
		Help: "Endpoints that xds names, by state.",
	}, []string{"state"})
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
		endpoints: map[pick.State]prometheus.Gauge{
			pick.Ready:    endpoints.WithLabelValues("ready"),
			pick.Suspect:  endpoints.WithLabelValues("suspect"),
			pick.NotReady: endpoints.WithLabelValues("not_ready"),
		},
	}
	reg.MustRegister(m.connected, m.updates, m.rejected, endpoints)
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
