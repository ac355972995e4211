// Command extproc answers Envoy: for each request, which engine finishes it
// first. It learns the fleet from xds, or from a file, counts tokens with the
// model's own tokenizer, and keeps conversations where they are cached.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/extproc/internal/fleet"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/obs"
)

// maxMessage bounds one message from Envoy, in bytes: a buffered body comes as
// one. Envoy's own limit and the policy's are far below.
const maxMessage = 256 << 20

// window is how much of a body may be on its way, in bytes: it lets most bodies
// come without waiting for us.
const window = 1 << 20

// grace is how long streams in flight may go on when extproc is told to end.
// What is cut then goes on in Envoy without us.
const grace = 2 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		obs.PrintError(os.Stderr, "extproc", err)
		stop()
		os.Exit(exitCode(err))
	}
}

// options is what the flags say.
type options struct {
	listen, metrics, xds, fleet, traces string
	check, version                      bool
	named                               bool // whether -xds was set
	secure                              secure
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	switch {
	case o.version:
		fmt.Fprintln(stderr, "extproc", version())
		return nil
	case o.check:
		if err := o.checkFleet(); err != nil {
			return err
		}
		fmt.Fprintln(stderr, "extproc: the configuration is good")
		return nil
	}
	return serve(ctx, o, obs.Logger(stderr, "extproc"))
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("extproc", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.listen, "listen", "127.0.0.1:7200", "`ip:port` of the gRPC services: external processor, health")
	fs.StringVar(&o.metrics, "metrics", "127.0.0.1:7201", "`ip:port` of /metrics, /healthz, /readyz, /debug/pprof/")
	fs.StringVar(&o.xds, "xds", "127.0.0.1:7100", "`ip:port` of xds")
	fs.StringVar(&o.fleet, "fleet", "", "`file` that names engines to do without xds; none: xds names them")
	fs.StringVar(&o.traces, "traces", "", "`otlp://host:port` to which spans are sent; none: no tracing")
	fs.StringVar(&o.secure.cert, "tls-cert", "", "`file` with the PEM certificates of the gRPC port, read again when it changes; none: no TLS")
	fs.StringVar(&o.secure.key, "tls-key", "", "`file` with its key")
	fs.StringVar(&o.secure.clients, "tls-client-ca", "", "`file` with the authorities that sign clients' certificates; none: anybody may ask")
	fs.BoolVar(&o.secure.self, "secure-serving", false, "serve TLS with a certificate of its own making, for gateways that do not verify it")
	fs.BoolVar(&o.check, "check", false, "check the flags and the file of the fleet, and end")
	fs.BoolVar(&o.version, "version", false, "print the version and end")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, &usageError{err}
	}
	fs.Visit(func(f *flag.Flag) { o.named = o.named || f.Name == "xds" })
	if fs.NArg() > 0 {
		return nil, &usageError{fmt.Errorf("argument %q; there must be only flags", fs.Arg(0))}
	}
	return o, o.validate()
}

// validate returns all that is wrong with the flags.
func (o *options) validate() error {
	var errs []error
	for _, f := range []struct{ name, addr string }{{"listen", o.listen}, {"metrics", o.metrics}, {"xds", o.xds}} {
		if _, _, err := net.SplitHostPort(f.addr); err != nil {
			errs = append(errs, fmt.Errorf("-%s: %q; must be ip:port", f.name, f.addr))
		}
	}
	if o.fleet != "" && o.named {
		errs = append(errs, errors.New("-fleet and -xds; must be one of them"))
	}
	if o.traces != "" {
		if _, err := obs.ParseTarget(o.traces); err != nil {
			errs = append(errs, err)
		}
	}
	if err := o.secure.validate(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return &usageError{err}
	}
	return nil
}

// serve builds the parts in order and runs them until ctx ends.
func serve(ctx context.Context, o *options, log *slog.Logger) error {
	ln, err := listen("listen", o.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	admin, err := listen("metrics", o.metrics)
	if err != nil {
		return err
	}
	defer admin.Close()
	tracer, flush, err := tracing(ctx, o.traces)
	if err != nil {
		return err
	}
	defer flush()

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	picker := pick.New(reg)
	source, err := o.source(picker, log, reg)
	if err != nil {
		return err
	}
	health := newHealth()
	options, err := o.secure.options(log)
	if err != nil {
		return err
	}
	server := newServer(stream.NewServer(stream.NewCore(picker, reg), tracer), health, options)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return source.Run(ctx) })
	g.Go(func() error { return server.Serve(ln) })
	g.Go(func() error {
		return obs.Serve(ctx, admin, obs.Admin(reg, func() []obs.Condition {
			return append(source.Conditions(), o.secure.conditions()...)
		}))
	})
	g.Go(func() error {
		follow(ctx, health, picker.Known())
		end(server)
		return nil
	})
	log.Info("ready", "grpc", ln.Addr().String(), "metrics", admin.Addr().String())
	return g.Wait()
}

// source is who says what the fleet is.
type source interface {
	Run(ctx context.Context) error
	Conditions() []obs.Condition
}

// source returns xds or the file.
func (o *options) source(picker *pick.Picker, log *slog.Logger, reg prometheus.Registerer) (source, error) {
	if o.fleet == "" {
		return fleet.New(o.xds, picker.Publish, loadTokenizer, log, reg), nil
	}
	l, err := fleet.NewLocal(o.fleet, picker, loadTokenizer, log, reg)
	if err != nil {
		return nil, &fleetError{err}
	}
	return l, nil
}

// checkFleet returns what is wrong with the file of the fleet, if there is one.
func (o *options) checkFleet() error {
	if o.fleet == "" {
		return nil
	}
	if err := fleet.CheckFile(o.fleet, loadTokenizer); err != nil {
		return &fleetError{err}
	}
	return nil
}

// newServer returns the gRPC server.
func newServer(processor *stream.Server, health *health.Server, options []grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(append(append(options, stream.ServerOptions()...),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(16*window),
		// Envoy may ping as it likes: it finds out within seconds that we hang.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 500 * time.Millisecond, PermitWithoutStream: true}),
	)...)
	extprocv3.RegisterExternalProcessorServer(s, processor)
	grpc_health_v1.RegisterHealthServer(s, health)
	return s
}

// end lets streams in flight go on for a while, and then cuts them.
func end(s *grpc.Server) {
	cut := time.AfterFunc(grace, s.Stop)
	defer cut.Stop()
	s.GracefulStop()
}

// tracing returns the tracer, nil if tracing is off, and what sends the last spans.
func tracing(ctx context.Context, target string) (trace.Tracer, func(), error) {
	provider, shutdown, err := obs.Tracing(ctx, "extproc", "", target)
	if err != nil {
		return nil, nil, err
	}
	flush := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = shutdown(ctx) // nobody is left to be told
	}
	if target == "" {
		return nil, flush, nil
	}
	return provider.Tracer("millrace.dev/millrace/extproc"), flush, nil
}

func listen(name, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &obs.Hint{
			Err:  fmt.Errorf("%s: %w", name, err),
			Next: fmt.Sprintf("set -%s to a free ip:port; port 0 takes any", name),
		}
	}
	return ln, nil
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
