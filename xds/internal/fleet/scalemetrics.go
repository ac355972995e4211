package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/internal/scale"
)

// scaledMetrics shows how the number of replicas follows demand, by model.
type scaledMetrics struct {
	desired, current, arrivals, queued, cost, limited *prometheus.GaugeVec
}

func newScaledMetrics(reg prometheus.Registerer) scaledMetrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "millrace_xds_scale_" + name, Help: help}, []string{"model"})
		reg.MustRegister(g)
		return g
	}
	return scaledMetrics{
		desired:  gauge("desired_replicas", "Replicas that a model is to have by demand, of models with spec.scaling."),
		current:  gauge("current_replicas", "Replicas that such a model has, those that drain included."),
		arrivals: gauge("arrivals_per_second", "Requests for such a model that arrive per second, whether they are answered yet or not."),
		queued:   gauge("queued_requests", "Requests for such a model that wait, in extproc or in engines."),
		limited:  gauge("limited", "Whether such a model has fewer replicas than it needs: 0 or 1."),
		cost:     gauge("cost_per_hour", "What the replicas of such a model cost per hour, in the unit of spec.scaling.cost."),
	}
}

// observe sets the gauges to what the snapshot says.
func (m scaledMetrics) observe(s *Snapshot) {
	for _, g := range []*prometheus.GaugeVec{m.desired, m.current, m.arrivals, m.queued, m.cost, m.limited} {
		g.Reset()
	}
	for name, v := range s.Scaled {
		m.desired.WithLabelValues(name).Set(float64(v.Desired))
		m.current.WithLabelValues(name).Set(float64(v.Current))
		m.arrivals.WithLabelValues(name).Set(v.Demand.Load.Requests)
		m.queued.WithLabelValues(name).Set(float64(v.Demand.Queued))
		m.limited.WithLabelValues(name).Set(obs.Number(v.Phase == scale.Limited))
		m.cost.WithLabelValues(name).Set(v.Cost)
	}
}
