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

// plain is the same services once more without TLS, for gateways and sidecars that bring
// their own encryption, or none: they have no identity of ours. Whoever reaches the port
// learns which endpoint would take a request, and no more.
type plain struct {
	address string
	ln      net.Listener
	server  *grpc.Server // nil: there is no such port
}

func (p *plain) flag(f *program.Flags) {
	f.Cleartext(&p.address, "plain", "", "`ip:port` of the external processor and health without TLS, for Envoys that have no certificate of ours; none: there is no such port")
}

// open takes the port, if there is to be one.
func (p *plain) open(env *program.Env, processor *stream.Server, health *health.Server) (err error) {
	if p.address == "" {
		return nil
	}
	if p.ln, err = env.Listen("plain", p.address); err != nil {
		return err
	}
	p.server = grpc.NewServer(serverOptions()...)
	extprocv3.RegisterExternalProcessorServer(p.server, processor)
	grpc_health_v1.RegisterHealthServer(p.server, health)
	env.Log.Info("plain text", "grpc", p.ln.Addr().String())
	return nil
}

// serve answers until end.
func (p *plain) serve() error {
	if p.server == nil {
		return nil
	}
	return p.server.Serve(p.ln)
}

// end lets streams in flight continue for a while, and then cuts them.
func (p *plain) end(grace time.Duration) {
	if p.server == nil {
		return
	}
	cut := time.AfterFunc(grace, p.server.Stop)
	defer cut.Stop()
	p.server.GracefulStop()
}
