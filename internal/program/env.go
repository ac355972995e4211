package program

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"millrace.dev/millrace/internal/obs"
)

// flushGrace is how long a program that ends waits for its last spans to be sent.
const flushGrace = time.Second

// Env is what a program that serves gets.
type Env struct {
	// Log is the program's log.
	Log *slog.Logger
	// Metrics is what the admin page shows; those of Go and of the process are in it.
	Metrics *prometheus.Registry

	name  string
	admin net.Listener
}

// Listen opens the address of the flag of that name.
func (e *Env) Listen(name, address string) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &obs.Hint{Err: fmt.Errorf("%s: %w", name, err),
			Next: fmt.Sprintf("stop the program that listens there, or set -%s to a free ip:port; port 0 takes any", name)}
	case err != nil:
		return nil, &obs.Hint{Err: fmt.Errorf("%s: %w", name, err), Next: fmt.Sprintf("set -%s to an ip:port of this machine", name)}
	}
	return ln, nil
}

// Admin serves the admin page until ctx ends. conditions returns what is wrong now.
func (e *Env) Admin(ctx context.Context, conditions func() []obs.Condition) error {
	return obs.Serve(ctx, e.admin, obs.Admin(e.Metrics, conditions))
}

// AdminAddress is where the admin page is.
func (e *Env) AdminAddress() string { return e.admin.Addr().String() }

// Tracing returns where spans go, as obs.Tracing does, and the function that sends
// the last ones.
func (e *Env) Tracing(ctx context.Context, node, target string) (trace.TracerProvider, func(), error) {
	provider, shutdown, err := obs.Tracing(ctx, e.name, node, target)
	if err != nil {
		return nil, nil, err
	}
	return provider, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushGrace)
		defer cancel()
		_ = shutdown(ctx) // nobody is left who could act on it
	}, nil
}
