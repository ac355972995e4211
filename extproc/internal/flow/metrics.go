package flow

import "github.com/prometheus/client_golang/prometheus"

// metrics of the queues and budgets. Those of tenants are bounded: see tenants.
type metrics struct {
	waiting           *prometheus.GaugeVec     // by model and priority
	wait              *prometheus.HistogramVec // by model and priority
	sheds             *prometheus.CounterVec   // by model, priority and reason
	degraded, overdue prometheus.Counter
	probes            prometheus.Counter
	budget            [overs]prometheus.Counter
	// by is by source: answers, and their tokens.
	by [sources]struct {
		answers, tokens prometheus.Counter
	}
}

// queueMetrics are those of a model's queue.
type queueMetrics struct {
	waiting [priorities]prometheus.Gauge
	wait    [priorities]prometheus.Observer
	sheds   [priorities][reasons]prometheus.Counter
	overdue prometheus.Counter
}

// mostModels is how many models' queues have series of their own; those of the rest are
// added up.
const mostModels = 128

// of returns the metrics of the queue of a model, before which there are n others.
func (m *metrics) of(model string, n int) *queueMetrics {
	if n >= mostModels {
		model = "other"
	}
	q := &queueMetrics{overdue: m.overdue}
	for p := range priorities {
		q.waiting[p] = m.waiting.WithLabelValues(model, p.String())
		q.wait[p] = m.wait.WithLabelValues(model, p.String())
		for r := None + 1; r < reasons; r++ {
			q.sheds[p][r] = m.sheds.WithLabelValues(model, p.String(), r.String())
		}
	}
	return q
}

func newMetrics(reg prometheus.Registerer, reserved func() float64) *metrics {
	waiting := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_extproc_queue_requests",
		Help: "Requests that now wait because all endpoints are busy, by model and priority.",
	}, []string{"model", "priority"})
	wait := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_extproc_queue_wait_seconds",
		Help:    "Time that requests waited in the queue before they were sent to an endpoint, by model and priority.",
		Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30},
	}, []string{"model", "priority"})
	sheds := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_sheds_total",
		Help: "Requests that were refused because all endpoints are busy, by model, priority, and the reason why they did not wait longer.",
	}, []string{"model", "priority", "reason"})
	budget := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_over_budget_total",
		Help: "Requests that were refused because their tenant's budget is used up, by budget: requests or tokens.",
	}, []string{"what"})
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_charged_answers_total",
		Help: "Requests that tenants' budgets of tokens were charged for, by how it was known what they needed.",
	}, []string{"source"})
	tokens := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_charged_tokens_total",
		Help: "Tokens that tenants' budgets were charged for, of prompts and answers, by how it was known how many they were.",
	}, []string{"source"})
	reserve := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_extproc_reserved_tokens",
		Help: "Tokens that tenants' budgets are charged in advance, for requests of which it is not known yet what they needed.",
	}, reserved)
	m := &metrics{
		waiting: waiting, wait: wait, sheds: sheds,
		probes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_own_probes_total",
			Help: "Test requests of millrace up, which count for no tenant.",
		}),
		degraded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_degraded_total",
			Help: "Sheddable requests that went to a smaller model because all endpoints of theirs are busy.",
		}),
		overdue: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_queue_overdue_total",
			Help: "Requests that were sent to busy endpoints because the gateway allows no longer wait.",
		}),
	}
	for o := OverNothing + 1; o < overs; o++ {
		m.budget[o] = budget.WithLabelValues(o.String())
	}
	for by := range sources {
		m.by[by].answers, m.by[by].tokens = answers.WithLabelValues(by.String()), tokens.WithLabelValues(by.String())
	}
	m.of("", mostModels) // so that each metric exists from the start
	reg.MustRegister(waiting, wait, sheds, budget, answers, tokens, reserve, m.degraded, m.overdue, m.probes)
	return m
}

// charged counts a request whose charge is settled.
func (m *metrics) charged(by Source, tokens int) {
	m.by[by].answers.Inc()
	m.by[by].tokens.Add(float64(max(0, tokens)))
}
