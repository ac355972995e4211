package pick

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/flow"
)

// Outcome is how a request for a model ended, as metrics have it.
type Outcome uint8

const (
	// OK is an answer below 400.
	OK Outcome = iota
	// Refused is one of the engine's with 4xx: the request was wrong.
	Refused
	// Failed is one of the engine's with 5xx, after all retries.
	Failed
	// Shed is one of ours: the queue is full, a budget is used up, the request is wrong.
	Shed
	// Gone is none at all: the client left, or Envoy gave up.
	Gone
	outcomes
)

// String returns the outcome as metrics have it.
func (o Outcome) String() string {
	return flow.Outcomes[o]
}

// OutcomeOf returns the outcome of an answer with an HTTP status; 0: there was none.
func OutcomeOf(status int) Outcome {
	switch {
	case status == 0:
		return Gone
	case status < 400:
		return OK
	case status < 500:
		return Refused
	}
	return Failed
}

// Ended is a request that has ended.
type Ended struct {
	Model *Model
	// Priority is "critical", "standard" or "sheddable".
	Priority string
	Outcome  Outcome
	// Endpoint is who answered; nil: nobody, or it is not known.
	Endpoint *Endpoint
	// Expected is how many tokens of the prompt were expected to be in Endpoint's cache,
	// where its engine does not say of single answers how many were.
	Expected int
	// Whole is how long the request took from its arrival to the end of its answer. First
	// is how long it took to the first token; 0: not known.
	Whole, First time.Duration
}

// End counts a request that has ended.
func (p *Picker) End(r *Ended) {
	s := p.metrics.models.of(r.Model.Name)
	s.requests[priorityIndex(r.Priority)][r.Outcome].Inc()
	if r.Expected > 0 {
		s.expected.Add(float64(r.Expected))
	}
	if r.Outcome != OK {
		return
	}
	s.whole[priorityIndex(r.Priority)].Observe(r.Whole.Seconds())
	if r.First > 0 {
		s.first[priorityIndex(r.Priority)].Observe(r.First.Seconds())
	}
	if r.Endpoint == nil {
		return
	}
	served := &r.Endpoint.served
	served.whole.add(r.Whole)
	if r.First > 0 {
		served.first.add(r.First)
	}
}

// tally adds up durations.
type tally struct{ n, ns atomic.Uint64 }

func (t *tally) add(d time.Duration) {
	t.ns.Add(uint64(max(0, d)))
	t.n.Add(1)
}

// served is what an endpoint has done, as far as we have seen it. All of it counts since
// extproc knows the endpoint.
type served struct {
	whole, first, decode   tally
	failures               atomic.Uint64 // of tries, also those that a retry elsewhere has mended
	prompt, cached, output atomic.Uint64 // tokens, as the engine counts them
}

// answered adds what an engine said of answers.
func (s *served) answered(u *Usage) {
	s.prompt.Add(uint64(max(0, u.Prompt)))
	s.cached.Add(uint64(max(0, u.Cached)))
	s.output.Add(uint64(max(0, u.Completion)))
	if u.DecodeMs > 0 && u.DecodeMs < 1e12 {
		s.decode.add(time.Duration(u.DecodeMs * float64(time.Millisecond)))
	}
}

// mostLabelled is how many endpoints have metrics of their own. Those of the rest are
// added up, as "other": ten series each of ten thousand would be more than anybody reads.
const mostLabelled = 512

// others is the label of the endpoints behind the first mostLabelled.
const others = "other"

// endpointMetrics shows what each endpoint of the table in force has done.
type endpointMetrics struct {
	picker *Picker
	descs  [endpointSeries]*prometheus.Desc
}

// The series of an endpoint.
const (
	seriesWhole = iota
	seriesFirst
	seriesFailures
	seriesPrompt
	seriesCached
	seriesOutput
	seriesDecode
	seriesInFlight
	endpointSeries
)

func newEndpointMetrics(p *Picker) *endpointMetrics {
	m := &endpointMetrics{picker: p}
	for i, d := range [endpointSeries][2]string{
		seriesWhole:    {"request_seconds", "Time of good answers of the endpoint, from the request's arrival to the answer's end: how many, and their sum."},
		seriesFirst:    {"first_token_seconds", "Time from a request's arrival to the first token of its answer, of streams of our engines: how many, and their sum."},
		seriesFailures: {"failures_total", "Attempts that failed at the endpoint: 5xx, no connection, connections that were cut."},
		seriesPrompt:   {"prompt_tokens_total", "Prompt tokens, as the endpoint's engine counts them."},
		seriesCached:   {"cached_tokens_total", "Prompt tokens that the endpoint's engine found in its cache."},
		seriesOutput:   {"output_tokens_total", "Tokens that the endpoint's engine has generated."},
		seriesDecode:   {"decode_seconds_total", "Time that output tokens took the endpoint's engine, summed over answers: output tokens divided by it are the speed that a client sees."},
		seriesInFlight: {"requests_in_flight", "Requests of this extproc in flight at the endpoint."},
	} {
		m.descs[i] = prometheus.NewDesc("millrace_extproc_endpoint_"+d[0], d[1], []string{"endpoint", "replica"}, nil)
	}
	return m
}

// Describe is a Collector's.
func (m *endpointMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range m.descs {
		ch <- d
	}
}

// Collect is a Collector's.
func (m *endpointMetrics) Collect(ch chan<- prometheus.Metric) {
	var rest figures
	all := m.picker.endpoints()
	for i, e := range all {
		f := figuresOf(e)
		if i < mostLabelled {
			replica := ""
			if e.Ours() {
				replica = e.Replica
			}
			m.send(ch, &f, e.Address, replica)
			continue
		}
		rest.add(&f)
	}
	if len(all) > mostLabelled {
		m.send(ch, &rest, others, others)
	}
}

func (m *endpointMetrics) send(ch chan<- prometheus.Metric, f *figures, labels ...string) {
	for i, d := range m.descs {
		switch v := f[i]; i {
		case seriesWhole, seriesFirst:
			ch <- prometheus.MustNewConstSummary(d, v.n, v.sum, nil, labels...)
		case seriesInFlight:
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v.sum, labels...)
		default:
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v.sum, labels...)
		}
	}
}

// figures are an endpoint's values, by series.
type figures [endpointSeries]struct {
	n   uint64
	sum float64
}

func figuresOf(e *Endpoint) (f figures) {
	s := &e.served
	f[seriesWhole].n, f[seriesWhole].sum = s.whole.n.Load(), float64(s.whole.ns.Load())/1e9
	f[seriesFirst].n, f[seriesFirst].sum = s.first.n.Load(), float64(s.first.ns.Load())/1e9
	f[seriesFailures].sum = float64(s.failures.Load())
	f[seriesPrompt].sum = float64(s.prompt.Load())
	f[seriesCached].sum = float64(s.cached.Load())
	f[seriesOutput].sum = float64(s.output.Load())
	f[seriesDecode].sum = float64(s.decode.ns.Load()) / 1e9
	requests, _ := e.InFlight()
	f[seriesInFlight].sum = float64(requests)
	return f
}

func (f *figures) add(g *figures) {
	for i := range f {
		f[i].n += g[i].n
		f[i].sum += g[i].sum
	}
}

// endpoints returns each endpoint of the table in force once, by address.
func (p *Picker) endpoints() []*Endpoint {
	t := p.Table()
	if t == nil {
		return nil
	}
	seen := map[*Live]bool{} // an endpoint may serve several models
	var all []*Endpoint
	for m := range t.All() {
		for _, e := range m.Endpoints {
			if !seen[e.Live] {
				seen[e.Live] = true
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b *Endpoint) int {
		if a.Address < b.Address {
			return -1
		}
		return 1
	})
	return all
}
