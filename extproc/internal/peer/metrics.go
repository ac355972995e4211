package peer

import "github.com/prometheus/client_golang/prometheus"

// metrics of Peers.
type metrics struct {
	peers                   prometheus.Gauge
	sent, received, dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	placements := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_peer_placements_total",
		Help: "Requests and answers that replicas of extproc report to each other, by result.",
	}, []string{"result"})
	m := &metrics{
		peers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_peers",
			Help: "Other replicas of extproc that are connected.",
		}),
		sent: placements.WithLabelValues("sent"), received: placements.WithLabelValues("received"), dropped: placements.WithLabelValues("dropped"),
	}
	reg.MustRegister(m.peers, placements)
	return m
}
