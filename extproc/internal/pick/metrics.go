package pick

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the choices.
type metrics struct {
	picks       [reasons]prometheus.Counter
	ejections   prometheus.Counter
	blamed      prometheus.Counter // requests that fail wherever they are sent
	predictions prometheus.Histogram
	// By what factor answers took longer than was predicted, and than would have been
	// with their length known.
	asPredicted, asLong prometheus.Observer
	models              *modelMetrics
}

// New returns a Picker without a table, which counts into reg.
func New(reg prometheus.Registerer) *Picker {
	p := &Picker{metrics: newMetrics(reg), known: make(chan struct{})}
	reg.MustRegister(newShares(p), newEndpointMetrics(p), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_extproc_prefixes",
		Help: "Prefixes of prompts, and names of sessions, now remembered.",
	}, p.prefixes), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_extproc_requests_in_flight",
		Help: "Requests in flight at endpoints.",
	}, func() float64 {
		requests, _ := p.inFlight()
		return float64(requests)
	}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_extproc_tokens_in_flight",
		Help: "Tokens that requests in flight are expected to need.",
	}, func() float64 {
		_, tokens := p.inFlight()
		return float64(tokens)
	}))
	return p
}

// inFlight adds up what is reserved at the endpoints of the table in force.
func (p *Picker) inFlight() (requests, tokens int64) {
	for _, e := range p.endpoints() {
		r, n := e.InFlight()
		requests, tokens = requests+r, tokens+n
	}
	return requests, tokens
}

// prefixes counts what is remembered.
func (p *Picker) prefixes() float64 {
	if t := p.Table(); t != nil && t.Policy.Prefixes != nil {
		return float64(t.Policy.Prefixes.Len(time.Now()))
	}
	return 0
}

func newMetrics(reg prometheus.Registerer) *metrics {
	picks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_picks_total",
		Help: "Choices of an endpoint, by why the first host was chosen.",
	}, []string{"reason"})
	m := &metrics{
		blamed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_blamed_requests_total",
			Help: "Requests that were answered with 500 by each engine that they were sent to, while other requests were not: no endpoint is ejected for them.",
		}),
		ejections: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_ejections_total",
			Help: "Times that an endpoint was ejected for failing.",
		}),
		predictions: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "millrace_extproc_prediction_error_ratio",
			Help:    "Difference between predicted and observed time of an answer, divided by the observed one.",
			Buckets: []float64{.02, .05, .1, .2, .3, .5, .75, 1, 2, 5},
		}),
		models: newModelMetrics(reg),
	}
	ratios := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_extproc_seen_by_predicted_ratio",
		Help:    "Observed time of an answer divided by the predicted one: predicted with the expected length of the answer, and with its real length.",
		Buckets: []float64{.1, .25, .5, .67, .8, .9, 1, 1.1, 1.25, 1.5, 2, 4, 10},
	}, []string{"length"})
	m.asPredicted, m.asLong = ratios.WithLabelValues("expected"), ratios.WithLabelValues("real")
	for r := range m.picks {
		m.picks[r] = picks.WithLabelValues(Reason(r).String())
	}
	reg.MustRegister(picks, m.ejections, m.blamed, m.predictions, ratios)
	return m
}
