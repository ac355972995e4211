package main

import (
	"net"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/program"
)

// cleartext is the same services once more without TLS, for gateways and sidecars that bring
// their own encryption, or none: they have no identity of ours. Whoever reaches the port
// learns which endpoint would take a request, and no more.
type cleartext struct {
	address string
	ln      net.Listener
	server  *grpc.Server // nil: there is no such port
}

func (c *cleartext) flag(f *program.Flags) {
	f.Optional(&c.address, "plain", "`ip:port` of the external processor and gRPC health in plain text, for Envoys without a certificate of the mesh; if empty, there is no such port")
}

// open takes the port, if there is to be one.
func (c *cleartext) open(env *program.Env, processor *stream.Server, health *health.Server) (err error) {
	if c.address == "" {
		return nil
	}
	if c.ln, err = env.Open("plain", c.address); err != nil {
		return err
	}
	c.server = grpc.NewServer(serverOptions()...)
	extprocv3.RegisterExternalProcessorServer(c.server, processor)
	grpc_health_v1.RegisterHealthServer(c.server, health)
	env.Log.Info("plain text", "grpc", c.ln.Addr().String())
	return nil
}

// serve answers until end.
func (c *cleartext) serve() error {
	if c.server == nil {
		return nil
	}
	return c.server.Serve(c.ln)
}

// end lets streams in flight continue for a while, and then cuts them.
func (c *cleartext) end(grace time.Duration) {
	if c.server == nil {
		return
	}
	cut := time.AfterFunc(grace, c.server.Stop)
	defer cut.Stop()
	c.server.GracefulStop()
}
