package stream

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
)

// metrics of the streams.
type metrics struct {
	decisions prometheus.Histogram
	laps      [lapsKinds]prometheus.Observer // by part of a decision
	streams   prometheus.Gauge
	started   prometheus.Counter
	open      prometheus.Counter
	errors    map[int]prometheus.Counter // by status
	// Bodies that were forwarded otherwise than they came, and those that could not be seen
	// though they might have had to.
	unpacked, renamed, unseen prometheus.Counter
	// repeated counts messages behind the end of what they belong to.
	repeated prometheus.Counter
	// estimated counts requests whose prompt's tokens are an estimate, by why.
	estimated map[string]prometheus.Counter
}

// statuses of the answers that we give in an engine's stead.
var statuses = []int{400, 404, 413, 415, 429, 431, 502, 503}

func newMetrics(reg prometheus.Registerer) *metrics {
	errors := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_errors_total",
		Help: "Requests that extproc answered itself with an error, by HTTP status.",
	}, []string{"status"})
	m := &metrics{
		decisions: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "millrace_extproc_decision_seconds",
			Help:    "Time from the message that completes a request until the decision is made.",
			Buckets: []float64{5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 2e-2, .1},
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_extproc_streams",
			Help: "Streams of Envoy now open, one for each request in flight.",
		}),
		started: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_streams_total",
			Help: "Streams that Envoy opened.",
		}),
		open: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_open_answers_total",
			Help: "Decisions that name no endpoint, so that Envoy's own policy chooses: the fleet is not known yet.",
		}),
		unseen: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_unseen_bodies_total",
			Help: "Requests whose body would have been changed, but that Envoy did not send to extproc before the decision.",
		}),
		repeated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_extproc_ignored_messages_total",
			Help: "Messages of Envoy that came behind the end of what they belong to: ignored. Above 0 something between Envoy and extproc says things twice.",
		}),
		errors:    map[int]prometheus.Counter{},
		estimated: map[string]prometheus.Counter{},
	}
	parts := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_extproc_decision_phase_seconds",
		Help:    "Time of the parts of a decision, of one decision in 16.",
		Buckets: []float64{1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 2e-2},
	}, []string{"phase"})
	for i, name := range lapNames {
		m.laps[i] = parts.WithLabelValues(name)
	}
	bodies := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_changed_bodies_total",
		Help: "Request bodies that were changed before they were forwarded, by what was changed: encoding (decompressed), model (rewritten).",
	}, []string{"what"})
	m.unpacked, m.renamed = bodies.WithLabelValues("encoding"), bodies.WithLabelValues("model")
	estimates := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_extproc_estimated_prompts_total",
		Help: "Requests whose prompt's tokens are an estimate, by why: x-millrace-decision has it as doubt.",
	}, []string{"reason"})
	for _, reason := range pick.Doubts {
		m.estimated[reason] = estimates.WithLabelValues(reason)
	}
	for _, s := range statuses {
		m.errors[s] = errors.WithLabelValues(strconv.Itoa(s))
	}
	reg.MustRegister(m.decisions, m.streams, m.started, m.open, m.unseen, m.repeated, parts, bodies, errors, estimates)
	return m
}

// counted counts a request by whether its prompt's tokens are an estimate.
func (m *metrics) counted(n *counted) {
	if c := m.estimated[n.doubt]; c != nil {
		c.Inc()
	}
}

// forwarded counts a body that is forwarded otherwise than it came.
func (m *metrics) forwarded(u *understood) {
	if u.forward.bare {
		m.unpacked.Inc()
	}
	if u.asked != "" {
		m.renamed.Inc()
	}
}

// refused counts an error that the client got from us.
func (m *metrics) refused(status int) {
	if c := m.errors[status]; c != nil {
		c.Inc()
	}
}
