package main

import (
	"context"

	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Services of the endpoint-picker protocol whose health is served, besides that of the
// whole server, which has no name.
const (
	liveness  = "liveness"
	readiness = "readiness"
	processor = "envoy.service.ext_proc.v3.ExternalProcessor"
)

// newHealth returns the health of an extproc that knows no fleet yet. The server as a
// whole and its liveness are good as soon as it answers: without news of the fleet it
// lets Envoy choose, which is better than no answer. Who asks for more gets more.
func newHealth() *health.Server {
	h := health.NewServer()
	h.SetServingStatus(liveness, grpc_health_v1.HealthCheckResponse_SERVING)
	h.SetServingStatus(readiness, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	h.SetServingStatus(processor, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return h
}

// follow reports when the fleet is known, and when ctx has ended: nothing new must come
// then.
func follow(ctx context.Context, h *health.Server, known <-chan struct{}) {
	select {
	case <-known:
		h.SetServingStatus(readiness, grpc_health_v1.HealthCheckResponse_SERVING)
		h.SetServingStatus(processor, grpc_health_v1.HealthCheckResponse_SERVING)
		<-ctx.Done()
	case <-ctx.Done():
	}
	h.Shutdown()
}
