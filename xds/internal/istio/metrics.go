package istio

import "github.com/prometheus/client_golang/prometheus"

// metrics is what is counted of the writer.
type metrics struct {
	writes  *prometheus.CounterVec // by kind and verb
	errors  *prometheus.CounterVec // by kind
	edits   *prometheus.CounterVec // by kind
	bytes   prometheus.Counter
	objects *prometheus.GaugeVec // by kind
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		writes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_xds_istio_writes_total", Help: "Writes of Istio objects that the API server accepted."}, []string{"kind", "verb"}),
		errors:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_xds_istio_write_errors_total", Help: "Writes of Istio objects that failed."}, []string{"kind"}),
		edits:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_xds_istio_foreign_edits_total", Help: "Changes of our Istio objects by somebody else that were undone."}, []string{"kind"}),
		bytes:   prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_xds_istio_written_bytes_total", Help: "Bytes of Istio objects that were written."}),
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "millrace_xds_istio_objects", Help: "Our Istio objects in the cluster."}, []string{"kind"}),
	}
	for _, k := range Kinds() {
		for _, v := range []verb{apply, restore, remove} {
			m.writes.WithLabelValues(k.Name, v.String())
		}
		m.errors.WithLabelValues(k.Name)
		m.edits.WithLabelValues(k.Name)
		m.objects.WithLabelValues(k.Name)
	}
	reg.MustRegister(m.writes, m.errors, m.edits, m.bytes, m.objects)
	return m
}
