package issue

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count requests by how they ended.
type metrics struct {
	issued, refused, unavailable prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	all := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_xds_certificate_requests_total",
		Help: "Requests of Pods for certificates, by outcome: issued, refused, unavailable (the API server or this server could not answer).",
	}, []string{"outcome"})
	reg.MustRegister(all)
	return metrics{all.WithLabelValues("issued"), all.WithLabelValues("refused"), all.WithLabelValues("unavailable")}
}

// count counts a request that was not served.
func (m metrics) count(status int) {
	if status >= http.StatusInternalServerError {
		m.unavailable.Inc()
		return
	}
	m.refused.Inc()
}
