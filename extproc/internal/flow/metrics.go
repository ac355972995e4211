package flow

import "github.com/prometheus/client_golang/prometheus"

// metrics of the queues and budgets of all models and tenants together.
type metrics struct {
	waiting                   [priorities]prometheus.Gauge
	wait                      [priorities]prometheus.Observer
	sheds                     [priorities][reasons]prometheus.Counter
	degraded, overdue, probes prometheus.Counter
	budget                    [overs]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	waiting := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_extproc_queue_requests",
		Help: "Requests that now wait because all endpoints are busy, by priority.",
	}, []string{"priority"})
	wait := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_extproc_queue_wait_seconds",
		Help:    "Time that requests waited in the queue which then went on, by priority.",
		Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30},
	}, []string{"priority"})
	sheds := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_sheds_total",
		Help: "Requests that were turned away because all endpoints are busy, by priority and by why they did not wait on.",
	}, []string{"priority", "reason"})
	budget := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_over_budget_total",
		Help: "Requests that were refused because their tenant has used up its budget, by what there is too little of.",
	}, []string{"what"})
	m := &metrics{
		probes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_probes_total",
			Help: "Requests by which the mesh makes sure of itself: they are no tenant's.",
		}),
		degraded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_degraded_total",
			Help: "Sheddable requests that went to a smaller model because all endpoints of theirs are busy.",
		}),
		overdue: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_queue_overdue_total",
			Help: "Requests that went on to busy endpoints because the gateway allows no longer wait.",
		}),
	}
	for p := range priorities {
		m.waiting[p] = waiting.WithLabelValues(p.String())
		m.wait[p] = wait.WithLabelValues(p.String())
		for r := None + 1; r < reasons; r++ {
			m.sheds[p][r] = sheds.WithLabelValues(p.String(), r.String())
		}
	}
	for o := OverNothing + 1; o < overs; o++ {
		m.budget[o] = budget.WithLabelValues(o.String())
	}
	reg.MustRegister(waiting, wait, sheds, budget, m.degraded, m.overdue, m.probes)
	return m
}
