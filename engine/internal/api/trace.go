package api

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// trace adds the parts of a request to its trace, once they are known: how long it has waited to
// be let in, and by the backend's own timings what its answer's time went to.
func (c *call) trace() {
	if !c.span.IsRecording() {
		return
	}
	inside := trace.ContextWithSpan(context.Background(), c.span)
	if !c.entered.IsZero() {
		c.passed(inside, "admission", c.wanted, c.entered)
	}
	u := c.usage
	if c.done.IsZero() || u.Prefill+u.Decode <= 0 || u.Prefill+u.Decode > c.done.Sub(c.sent) {
		return // of several choices, or parts, the backend's timings are of one
	}
	inside = trace.ContextWithSpanContext(inside, c.asking)
	decode := c.done.Add(-u.Decode)
	prefill := decode.Add(-u.Prefill)
	c.passed(inside, "prefill", prefill, decode,
		attribute.Int64("gen_ai.usage.input_tokens", int64(u.Prompt)), attribute.Int64("gen_ai.usage.cache_read.input_tokens", int64(u.Cached)),
		attribute.StringSlice("millrace.shards", c.shards()))
	c.passed(inside, "decode", decode, c.done,
		attribute.Int64("gen_ai.usage.output_tokens", int64(u.Completion)), attribute.StringSlice("millrace.shards", c.shards()))
}

// passed adds one that is over.
func (c *call) passed(ctx context.Context, name string, from, to time.Time, attrs ...attribute.KeyValue) {
	_, span := c.cfg.Tracer.Start(ctx, name, trace.WithTimestamp(from), trace.WithAttributes(attrs...))
	span.End(trace.WithTimestamp(to))
}

// shards is which node has which share of the layers, "node-a 0.50": each spends about so much of
// the backend's time, which does not say more of it. nil: the model is whole.
func (c *call) shards() []string {
	stages := c.serving.Assignment.GetStages()
	if len(stages) < 2 {
		return nil
	}
	sum := 0.0
	for _, s := range stages {
		sum += float64(s.GetShare())
	}
	all := make([]string, len(stages))
	for i, s := range stages {
		all[i] = fmt.Sprintf("%s %.2f", s.GetNode(), float64(s.GetShare())/sum)
	}
	return all
}
