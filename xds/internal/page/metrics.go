package page

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of the page.
type metrics struct {
	encoded prometheus.Counter
	dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, p *Page) *metrics {
	m := &metrics{
		encoded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_xds_page_snapshots_total",
			Help: "Snapshots of the fleet that were encoded for viewers of the page, each once for all of them.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_xds_page_dropped_total",
			Help: "Viewers of the page that were dropped, as they did not read what was sent.",
		}),
	}
	viewers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_xds_page_viewers",
		Help: "Viewers that follow the page now.",
	}, func() float64 { return float64(p.viewers.Load()) })
	reg.MustRegister(m.encoded, m.dropped, viewers)
	return m
}
