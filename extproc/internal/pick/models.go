package pick

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/wire"
)

// priorities are the labels of priorities.
var priorities = [...]string{wire.Critical, wire.Standard, wire.Sheddable}

// priorityIndex is which of priorities a request has.
func priorityIndex(p string) int {
	switch p {
	case wire.Critical:
		return 0
	case wire.Sheddable:
		return 2
	}
	return 1
}

// seconds are the buckets of how long answers take, those of engine's own metrics.
var seconds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640}

// mostModels is how many models have series of their own, some hundred each. The rest,
// which may be adapters that engines name, have those of others together.
const mostModels = 128

// modelMetrics are those with a model as their label: one that the fleet serves. Series of
// a model that it serves no more are deleted.
type modelMetrics struct {
	// Constant.
	requests                         *prometheus.CounterVec   // by model, priority, outcome
	whole, first                     *prometheus.HistogramVec // by model, priority
	prompt, cached, expected, output *prometheus.CounterVec   // by model

	// Atomic.
	series atomic.Pointer[map[string]*modelSeries] // by model; never changed

	// mu guards writing series, and the field below.
	mu       sync.Mutex
	labelled int // models with series of their own
}

// modelSeries are a model's.
type modelSeries struct {
	requests                         [len(priorities)][outcomes]prometheus.Counter
	whole, first                     [len(priorities)]prometheus.Observer
	prompt, cached, expected, output prometheus.Counter
}

func newModelMetrics(reg prometheus.Registerer) *modelMetrics {
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_extproc_" + name, Help: help}, append([]string{"model"}, more...))
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "millrace_extproc_" + name, Help: help, Buckets: seconds}, []string{"model", "priority"})
	}
	m := &modelMetrics{
		requests: counter("requests_total", "Requests that have ended, by model, priority, and outcome: ok, refused (4xx of the engine), failed (5xx), shed (answered by extproc itself), gone (no answer).", "priority", "outcome"),
		whole:    histogram("request_seconds", "Time of good answers, from the request's arrival to the answer's end, waiting in the queue included."),
		first:    histogram("first_token_seconds", "Time from a request's arrival to the first token of its answer, of streams of our engines."),
		prompt:   counter("prompt_tokens_total", "Prompt tokens of answered requests, as the engines counted them."),
		cached:   counter("cached_tokens_total", "Prompt tokens that the engines found in their caches."),
		expected: counter("expected_cached_tokens_total", "Prompt tokens of answered requests that were expected to be in the cache of the engine that answered."),
		output:   counter("output_tokens_total", "Tokens that the engines generated."),
	}
	m.series.Store(&map[string]*modelSeries{})
	reg.MustRegister(m.requests, m.whole, m.first, m.prompt, m.cached, m.expected, m.output)
	return m
}

// of returns the series of a model.
func (m *modelMetrics) of(model string) *modelSeries {
	if s := (*m.series.Load())[model]; s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.series.Load()
	if s := old[model]; s != nil {
		return s
	}
	all := make(map[string]*modelSeries, len(old)+2)
	for name, s := range old {
		all[name] = s
	}
	if m.labelled < mostModels {
		m.labelled++
		all[model] = m.make(model)
	} else {
		if all[others] == nil {
			all[others] = m.make(others)
		}
		all[model] = all[others]
	}
	m.series.Store(&all)
	return all[model]
}

// make makes the series of a label.
func (m *modelMetrics) make(model string) *modelSeries {
	s := &modelSeries{
		prompt: m.prompt.WithLabelValues(model), cached: m.cached.WithLabelValues(model),
		expected: m.expected.WithLabelValues(model), output: m.output.WithLabelValues(model),
	}
	for i, p := range priorities {
		for o := range outcomes {
			s.requests[i][o] = m.requests.WithLabelValues(model, p, o.String())
		}
		s.whole[i], s.first[i] = m.whole.WithLabelValues(model, p), m.first.WithLabelValues(model, p)
	}
	return s
}

// keep makes the series of a table's models, and deletes those of others. A request that
// is in flight meanwhile may bring some back until the next table.
func (m *modelMetrics) keep(t *Table) {
	m.sweep(t)
	for model := range t.All() {
		m.of(model.Name)
	}
}

// sweep deletes the series of models that are not in a table.
func (m *modelMetrics) sweep(t *Table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.series.Load()
	all := make(map[string]*modelSeries, len(t.Models)+2)
	for name, s := range old {
		if name == others || t.Named(name) != nil {
			all[name] = s
			continue
		}
		if s == old[others] {
			continue // it had none of its own
		}
		m.labelled--
		labels := prometheus.Labels{"model": name}
		for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
			m.requests, m.whole, m.first, m.prompt, m.cached, m.expected, m.output,
		} {
			v.DeletePartialMatch(labels)
		}
	}
	if len(all) < len(old) {
		m.series.Store(&all)
	}
}

// answered adds what an engine said of answers.
func (s *modelSeries) answered(u *Usage) {
	s.prompt.Add(float64(max(0, u.Prompt)))
	s.cached.Add(float64(max(0, u.Cached)))
	s.output.Add(float64(max(0, u.Completion)))
}
