package obs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	sdkresource "go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Propagator reads and writes the W3C traceparent header.
var Propagator propagation.TextMapPropagator = propagation.TraceContext{}

// exportEvery bounds how long a finished span waits before it is sent.
const exportEvery = 200 * time.Millisecond

// ParseTarget returns the host:port of a tracing target "otlp://host:port".
func ParseTarget(target string) (string, error) {
	addr, ok := strings.CutPrefix(target, "otlp://")
	if !ok {
		return "", fmt.Errorf("traces: %q; must be otlp://host:port", target)
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", fmt.Errorf("traces: %q: %w", target, err)
	}
	return addr, nil
}

// Tracing returns a provider whose spans go to target by OTLP over gRPC, and the
// function that sends what is left and ends it. An empty target gives a provider
// that records nothing and costs nothing. Spans follow the caller's sampling
// decision; those without a caller are sampled. An exporter that can't be reached
// never delays a request: spans are dropped.
func Tracing(ctx context.Context, service, node, target string) (trace.TracerProvider, func(context.Context) error, error) {
	if target == "" {
		return noop.NewTracerProvider(), func(context.Context) error { return nil }, nil
	}
	addr, err := ParseTarget(target)
	if err != nil {
		return nil, nil, err
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(addr), otlptracegrpc.WithInsecure(),
		otlptracegrpc.WithTimeout(2*time.Second))
	if err != nil {
		return nil, nil, fmt.Errorf("traces: %w", err)
	}
	attrs := []attribute.KeyValue{attribute.String("service.name", service), attribute.String("service.namespace", "millrace")}
	if node != "" {
		attrs = append(attrs, attribute.String("service.instance.id", node))
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(exportEvery)),
		sdktrace.WithResource(sdkresource.NewSchemaless(attrs...)),
	)
	return provider, func(ctx context.Context) error {
		return errors.Join(provider.ForceFlush(ctx), provider.Shutdown(ctx))
	}, nil
}
