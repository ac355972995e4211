package api

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/supervise"
)

// outcomes are the ways in which a request may end.
var outcomes = []string{"ok", "refused", "full", "gone", "not_ready", "failed"}

// Outcomes of streams whose backend was lost.
const (
	resumeOwn       = "own"
	resumeElsewhere = "elsewhere"
	resumeRefused   = "refused"
	resumeFailed    = "failed"
)

// Metrics are the engine's own and, under the names that dashboards know, those of
// an inference engine.
type Metrics struct {
	requests *prometheus.CounterVec // by path and outcome
	resumed  *prometheus.CounterVec // by outcome
	prompt   *prometheus.CounterVec // these by model
	cached   *prometheus.CounterVec
	output   *prometheus.CounterVec
	first    *prometheus.HistogramVec
	whole    *prometheus.HistogramVec
	genAI    *genAI
	batches  prometheus.Histogram // by inputs
	split    prometheus.Counter
}

// seconds are the buckets of both histograms, as dashboards know them, rounded.
var seconds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640}

// Sources are what the gauges read.
type Sources struct {
	Gate     *admit.Gate
	Meter    *meter.Meter
	Cache    *cachelog.Log
	Kinds    backend.Kinds
	Snapshot func() (*supervise.Snapshot, <-chan struct{})
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer, src Sources) *Metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"model_name"})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: seconds}, []string{"model_name"})
	}
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_engine_requests_total", Help: "Requests by endpoint and outcome.",
		}, []string{"path", "outcome"}),
		resumed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_engine_streams_resumed_total",
			Help: "Streams whose backend was lost, by what became of them: continued on this engine's own backend or elsewhere, refused because they can't be, failed because nobody took them.",
		}, []string{"outcome"}),
		prompt: counter("vllm:prompt_tokens_total", "Prompt tokens of answered requests."),
		cached: counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the KV cache."),
		output: counter("vllm:generation_tokens_total", "Tokens generated."),
		first:  histogram("vllm:time_to_first_token_seconds", "Time to the backend's first byte."),
		whole:  histogram("vllm:e2e_request_latency_seconds", "Time to the end of the answer."),
		genAI:  newGenAI(reg),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_engine_embedding_batch_inputs", Help: "Embeddings of single inputs that were sent to the backend together, by call.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128},
		}),
		split: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_engine_embedding_batches_split_total", Help: "Batches of embeddings that the backend refused or that could not be divided, whose inputs were sent alone.",
		}),
	}
	for _, o := range outcomes {
		for _, op := range append(operations[:len(operations):len(operations)], other) {
			m.requests.WithLabelValues(op.label(), o)
		}
		m.requests.WithLabelValues(storedLabel, o)
	}
	for _, o := range []string{resumeOwn, resumeElsewhere, resumeRefused, resumeFailed} {
		m.resumed.WithLabelValues(o)
	}
	reg.MustRegister(m.requests, m.resumed, m.prompt, m.cached, m.output, m.first, m.whole, m.batches, m.split, gauges{src, m})
	return m
}

// answered counts a request that was answered to its end.
func (m *Metrics) answered(op operation, model string, u backend.Usage, first, whole time.Duration) {
	m.prompt.WithLabelValues(model).Add(float64(u.Prompt))
	m.cached.WithLabelValues(model).Add(float64(u.Cached))
	m.output.WithLabelValues(model).Add(float64(u.Completion))
	m.first.WithLabelValues(model).Observe(first.Seconds())
	m.whole.WithLabelValues(model).Observe(whole.Seconds())
	if op.GenAI != "" {
		m.genAI.answered(op.GenAI, model, u, first, whole)
	}
}

// batched counts a call for embeddings of so many clients.
func (m *Metrics) batched(inputs int) { m.batches.Observe(float64(inputs)) }

// failed counts a request for a model that we serve which got no good answer.
func (m *Metrics) failed(op operation, model string, status int, whole time.Duration) {
	if op.GenAI != "" {
		m.genAI.failed(op.GenAI, model, outcome(status), whole)
	}
}

// finished counts any request.
func (m *Metrics) finished(path string, status int) {
	m.requests.WithLabelValues(path, outcome(status)).Inc()
}

func outcome(status int) string {
	switch {
	case status < http.StatusBadRequest:
		return "ok"
	case status == http.StatusTooManyRequests:
		return "full"
	case status == statusGone:
		return "gone"
	case status < http.StatusInternalServerError:
		return "refused"
	case status == http.StatusServiceUnavailable:
		return "not_ready"
	}
	return "failed"
}

// gauges reads the present load and state when it is scraped.
type gauges struct {
	Sources
	metrics *Metrics
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descRunning  = describe("vllm:num_requests_running", "Requests in the backend.", "model_name")
	descWaiting  = describe("vllm:num_requests_waiting", "Requests waiting for a slot.", "model_name")
	descLimit    = describe("millrace_engine_concurrency_limit", "Requests that may be in the backend at a time: what its goal allows, at most its slots.", "model_name")
	descChanges  = describe("millrace_engine_concurrency_limit_changes_total", "Times that the limit of requests in the backend was changed by what was measured.", "direction")
	descQueue    = describe("millrace_engine_queue_refused_total", "Requests refused as the queue was full, as more urgent ones needed its room (displaced), or as they were sheddable and could not be in time (late).", "reason")
	descGoal     = describe("millrace_engine_goal_answers_total", "Answers of models with a goal that kept it, the wait in the queue included, and that missed it.", "outcome")
	descKV       = describe("vllm:kv_cache_usage_perc", "Used part of the KV cache, 1 is all.", "model_name")
	descQueries  = describe("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the KV cache.", "model_name")
	descTokens   = describe("millrace_engine_inflight_tokens", "Tokens that running and waiting requests may still need.")
	descSpeed    = describe("millrace_engine_speed_tokens_per_second", "Measured speed of one sequence.", "phase")
	descState    = describe("millrace_engine_state_info", "1 for the present state, 0 for the others.", "state")
	descCached   = describe("millrace_engine_in_cache_tokens", "Tokens that are known to be in the backend's caches.")
	descMissed   = describe("millrace_engine_cache_misses_total", "Answers whose prompts had fewer tokens in the cache than the log of the cache has.")
	descBad      = describe("millrace_engine_prefix_headers_malformed_total", "Headers with prefixes of prompts that could not be decoded.")
	descRestarts = describe("millrace_engine_restarts_total", "Starts of a process after its first one.", "role")
)

// cached is how many tokens the backend has in its caches, by its own log or by ours.
func (s Sources) cached(a *enginepb.Assignment) uint64 {
	if kind := s.Kinds.Of(a); kind != nil {
		if log := kind.Blocks(a); log != nil {
			return log.Tokens()
		}
	}
	return s.Cache.Tokens()
}

// Describe sends what Collect may send.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRunning, descWaiting, descLimit, descChanges, descQueue, descGoal, descKV, descQueries, descTokens, descSpeed, descState, descCached, descMissed, descBad, descRestarts} {
		ch <- d
	}
}

// Collect sends the present values.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	snap, _ := g.Snapshot()
	load, speed := g.Gate.Load(), g.Meter.Speed()
	gauge(descTokens, float64(load.Tokens))
	gauge(descCached, float64(g.cached(snap.Assignment)))
	counts := g.Gate.Counts()
	for _, c := range []struct {
		desc  *prometheus.Desc
		n     uint64
		label string
	}{
		{descChanges, counts.Grown, "up"}, {descChanges, counts.Shrunk, "down"},
		{descQueue, counts.Full, "full"}, {descQueue, counts.Displaced, "displaced"}, {descQueue, counts.Late, "late"},
		{descGoal, counts.Kept, "kept"}, {descGoal, counts.Missed, "missed"},
	} {
		count(c.desc, float64(c.n), c.label)
	}
	count(descMissed, float64(g.Cache.Misses()))
	count(descBad, float64(g.Cache.Malformed()))
	gauge(descSpeed, speed.Prefill, "prefill")
	gauge(descSpeed, speed.Decode, "decode")
	for i := int32(1); i < int32(len(enginepb.State_name)); i++ {
		present := 0.0
		if snap.State == enginepb.State(i) {
			present = 1
		}
		gauge(descState, present, enginepb.State_name[i])
	}
	restarts := map[backend.Role]uint32{backend.Shard: 0, backend.Head: 0}
	for _, p := range snap.Processes {
		restarts[p.Role] = p.Restarts
	}
	for role, n := range restarts {
		count(descRestarts, float64(n), role.String())
	}
	model := snap.Assignment.GetModel()
	if model == "" || snap.Assignment.GetStage() > 0 {
		return
	}
	gauge(descRunning, float64(load.Running), model)
	gauge(descWaiting, float64(load.Waiting), model)
	gauge(descLimit, float64(load.Slots), model)
	gauge(descKV, g.Meter.KVUse(), model)
	count(descQueries, float64(g.Meter.Totals().Prompt), model)
}
