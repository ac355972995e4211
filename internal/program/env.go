package program

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/internal/mtls"
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
	// Watch finds out that the program is stuck: its conditions and metrics are watched by
	// themselves, what else must answer is added before Admin.
	Watch *obs.Watch
	// Identity is who the program is to the others; nil: it speaks plain text.
	Identity *mtls.Source
	// Page is served beside the admin page, at / and below /page/; nil: nothing is. To be set
	// before Admin.
	Page http.Handler
	// Memory is how much the program may use; Follow is to be run.
	Memory *Memory

	name  string
	flags *Flags
	admin net.Listener
	// probes is nil where nobody asks for it.
	probes net.Listener
}

// Listen opens the address of the flag of that name. With an identity its
// connections are those of others who have one.
func (e *Env) Listen(name, address string) (net.Listener, error) {
	return e.listen(name, address, listen)
}

// Open opens the address of a flag of Optional. Its connections are anybody's.
func (e *Env) Open(name, address string) (net.Listener, error) {
	return e.listen(name, address, openPort)
}

func (e *Env) listen(name, address string, u use) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &obs.Hint{Err: fmt.Errorf("%s: %w", name, err),
			Next: fmt.Sprintf("stop the program that listens there, or set -%s to a free ip:port; port 0 takes any", name)}
	case err != nil:
		return nil, &obs.Hint{Err: fmt.Errorf("%s: %w", name, err), Next: fmt.Sprintf("set -%s to an ip:port of this machine", name)}
	}
	// A name was maybe not that of loopback.
	if bound := ln.Addr().String(); e.flags.open(u, bound) {
		_ = ln.Close()
		return nil, Usage(&obs.Hint{Err: fmt.Errorf("%s: %s is not on loopback, and would be reached in plain text", name, bound), Next: openHint})
	}
	if e.Identity == nil || u >= probes || u == admin && !e.guardsAdmin(ln) {
		return ln, nil
	}
	return e.Identity.Listener(ln, "h2", "http/1.1"), nil
}

// guardsAdmin reports whether the admin page is had by operators only. On loopback,
// and where plain text is allowed, it is anybody's, like Envoy's.
func (e *Env) guardsAdmin(ln net.Listener) bool {
	return e.Identity != nil && !e.flags.insecure && !IsLoopback(ln.Addr().String())
}

// GRPC returns the server for a listener of Listen: with an identity each call is
// checked.
func (e *Env) GRPC(params keepalive.ServerParameters, more ...grpc.ServerOption) *grpc.Server {
	if e.Identity == nil {
		return grpc.NewServer(append(more, grpc.KeepaliveParams(params))...)
	}
	return grpc.NewServer(append(e.Identity.ServerOptions(params), more...)...)
}

// HTTP serves h, which is what, on a listener of Listen until ctx ends.
func (e *Env) HTTP(ctx context.Context, ln net.Listener, what string, h http.Handler) error {
	if e.Identity == nil {
		return obs.Serve(ctx, ln, h)
	}
	return obs.Serve(ctx, ln, h, func(srv *http.Server) { e.Identity.Server(srv, what) })
}

// Admin serves the admin page, and what of it is for probes, until ctx ends. conditions
// returns what is wrong now.
func (e *Env) Admin(ctx context.Context, conditions func() []obs.Condition) error {
	all := func() []obs.Condition {
		return slices.Concat(conditions(), e.Identity.Conditions(), e.Memory.Conditions())
	}
	e.Watch.Add("conditions", func() error { all(); return nil })
	e.Watch.AddSeldom("metrics", func() error { _, _ = e.Metrics.Gather(); return nil }) // what is wrong with one shows on the page
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.Watch.Run(ctx) })
	if e.probes != nil {
		g.Go(func() error { return obs.Serve(ctx, e.probes, obs.Probes(e.Metrics, all, e.Watch)) })
	}
	g.Go(func() error {
		page := e.beside(obs.Admin(e.Metrics, all, e.Watch))
		if e.guardsAdmin(e.admin) {
			return e.HTTP(ctx, e.admin, mtls.Admin, page)
		}
		return obs.Serve(ctx, e.admin, page)
	})
	return g.Wait()
}

// beside adds the program's own page to the admin page.
func (e *Env) beside(admin http.Handler) http.Handler {
	if e.Page == nil {
		return admin
	}
	mux := http.NewServeMux()
	mux.Handle("/", admin)
	mux.Handle("/page/", e.Page)
	mux.Handle("GET /{$}", e.Page)
	return mux
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
