package api

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/internal/backend"
)

// genAI are OpenTelemetry's metrics of a model server, by the names that Prometheus has
// for them. The conventions are in development, and names in them have changed: all that
// we use are in this file.
//
// Source: OpenTelemetry's semantic conventions for generative AI metrics, v1.41.
type genAI struct {
	duration *prometheus.HistogramVec // by operation, model, error
	first    *prometheus.HistogramVec // these by operation and model
	perToken *prometheus.HistogramVec
	tokens   *prometheus.HistogramVec // by operation, model, kind of token
}

// Labels of the conventions' attributes.
const (
	attrOperation = "gen_ai_operation_name"
	attrProvider  = "gen_ai_provider_name"
	attrModel     = "gen_ai_request_model"
	attrToken     = "gen_ai_token_type"
	attrError     = "error_type"
)

// provider is who we are in the conventions' words.
const provider = "millrace"

func newGenAI(reg prometheus.Registerer) *genAI {
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets, ConstLabels: prometheus.Labels{attrProvider: provider},
		}, append([]string{attrOperation, attrModel}, labels...))
	}
	// Bounds are those that the conventions recommend.
	g := &genAI{
		duration: histogram("gen_ai_server_request_duration_seconds", "Time from a request's arrival at the engine to the end of its answer.",
			prometheus.ExponentialBuckets(.01, 2, 14), attrError),
		first: histogram("gen_ai_server_time_to_first_token_seconds", "Time to the first token of good answers.",
			[]float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}),
		perToken: histogram("gen_ai_server_time_per_output_token_seconds", "Time per output token after the first, of good answers.",
			[]float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5}),
		tokens: histogram("gen_ai_client_token_usage", "Tokens of a good answer, and of its prompt.",
			prometheus.ExponentialBuckets(1, 4, 14), attrToken),
	}
	reg.MustRegister(g.duration, g.first, g.perToken, g.tokens)
	return g
}

// answered counts a good answer: times are from the request's arrival.
func (g *genAI) answered(operation, model string, u backend.Usage, first, whole time.Duration) {
	g.duration.WithLabelValues(operation, model, "").Observe(whole.Seconds())
	g.tokens.WithLabelValues(operation, model, "input").Observe(float64(u.Prompt))
	if u.Completion == 0 {
		return
	}
	g.tokens.WithLabelValues(operation, model, "output").Observe(float64(u.Completion))
	g.first.WithLabelValues(operation, model).Observe(first.Seconds())
	if after := float64(u.Completion) - 1; after > 0 {
		g.perToken.WithLabelValues(operation, model).Observe((whole - first).Seconds() / after)
	}
}

// failed counts one that got no good answer.
func (g *genAI) failed(operation, model, outcome string, whole time.Duration) {
	g.duration.WithLabelValues(operation, model, outcome).Observe(whole.Seconds())
}
