package stream

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"millrace.dev/millrace/internal/obs"
)

// carrier gives a propagator the metadata of a gRPC call.
type carrier metadata.MD

// Get returns the first value of a key.
func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set sets a key.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys returns all keys.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

// note counts and traces a reply that ends the request's part of an exchange:
// began is when its first event came, ready when its last did.
func (s *Server) note(ctx context.Context, m *metrics, r *Reply, began, ready time.Time) {
	if r.Decision == nil && r.Error == nil {
		return
	}
	m.decisions.Observe(time.Since(ready).Seconds())
	if s.tracer == nil {
		return
	}
	md, _ := metadata.FromIncomingContext(ctx)
	inside, span := s.tracer.Start(obs.Propagator.Extract(ctx, carrier(md)), "pick",
		trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindInternal))
	defer span.End()
	if !span.IsRecording() {
		return
	}
	if r.Error != nil {
		span.SetAttributes(attribute.Int("http.response.status_code", r.Error.Status))
		span.SetStatus(codes.Error, r.Error.Code)
		return
	}
	span.SetAttributes(attributes(r.Decision)...)
	if q := r.Decision.Queued; !q.Since.IsZero() {
		_, queue := s.tracer.Start(inside, "queue", trace.WithTimestamp(q.Since), trace.WithAttributes(attribute.String("millrace.queued_for", q.For())))
		queue.End(trace.WithTimestamp(q.Since.Add(q.Took)))
	}
}

// attributes are a decision as a trace shows it.
func attributes(d *Decision) []attribute.KeyValue {
	candidates := make([]string, len(d.Choice.List))
	for i := range d.Choice.List {
		c := &d.Choice.List[i]
		b := append(appendMs(append([]byte(c.Address), ' '), c.Finish()), "ms "...)
		candidates[i] = string(appendTerms(b, &c.Terms))
	}
	return []attribute.KeyValue{
		attribute.String("millrace.model", d.Model),
		attribute.String("millrace.session", d.Session),
		attribute.String("millrace.operation", d.API.String()),
		attribute.String("millrace.priority", d.Priority),
		attribute.String("millrace.reason", d.Choice.Reason.String()),
		attribute.Int("millrace.prompt_tokens", d.PromptTokens),
		attribute.Bool("millrace.prompt_tokens_exact", d.Exact),
		attribute.Int("millrace.expected_output_tokens", d.OutputTokens),
		attribute.Int("millrace.expected_cached_tokens", d.Choice.List[0].Cached),
		attribute.StringSlice("millrace.candidates", candidates),
	}
}
