package main

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"millrace.dev/millrace/internal/program"
)

// Services of the endpoint-picker protocol whose health is served, besides that of the
// whole server, which has no name.
const (
	liveness  = "liveness"
	readiness = "readiness"
	processor = "envoy.service.ext_proc.v3.ExternalProcessor"
	// extension is what the reference pickers' charts ask for.
	extension = "inference-extension"
)

// ready are those that are well once the fleet is known.
var ready = []string{readiness, processor, extension}

// newHealth returns the health of an extproc that knows no fleet yet. The server as a
// whole and its liveness are good as soon as it answers: without news of the fleet it
// lets Envoy choose, which is better than no answer. Who asks for more gets more.
func newHealth() *health.Server {
	h := health.NewServer()
	h.SetServingStatus(liveness, grpc_health_v1.HealthCheckResponse_SERVING)
	for _, name := range ready {
		h.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}
	return h
}

// follow reports when the fleet is known, and when ctx has ended: nothing new must come
// then.
func follow(ctx context.Context, h *health.Server, known <-chan struct{}) {
	select {
	case <-known:
		for _, name := range ready {
			h.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	h.Shutdown()
}

// healthPort is a port of health alone; nil: there is none.
type healthPort struct {
	server *grpc.Server
	ln     net.Listener
}

// healthPort opens the port of -health. What it says is no secret, so that it is in
// plain text wherever it listens: kubelet asks without TLS.
func (o *options) healthPort(env *program.Env, h *health.Server) (*healthPort, error) {
	if o.health == "" {
		return nil, nil
	}
	ln, err := env.Open("health", o.health)
	if err != nil {
		return nil, err
	}
	p := &healthPort{grpc.NewServer(), ln}
	grpc_health_v1.RegisterHealthServer(p.server, h)
	return p, nil
}

func (p *healthPort) serve() error {
	if p == nil {
		return nil
	}
	return p.server.Serve(p.ln)
}

func (p *healthPort) stop() {
	if p != nil {
		p.server.Stop()
	}
}
