// Command xds is the control plane: nodes report to it, it decides who serves
// what and with what weight, and tells Envoy and extproc by delta ADS and the
// nodes by directives. All it knows it learns again after a restart.
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
	"strings"
	"syscall"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/ads"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		obs.PrintError(os.Stderr, "xds", err)
		stop()
		os.Exit(exitCode(err))
	}
}

// options is what the flags say.
type options struct {
	listen, metrics, config string
	settle                  time.Duration
	check, version          bool
	settings                translate.Settings
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stderr, "xds", version())
		return nil
	}
	if err := o.load(); err != nil {
		return err
	}
	static, err := resources(o.settings)
	if err != nil {
		return err
	}
	if o.check {
		fmt.Fprintln(stderr, "xds: the configuration is good")
		return nil
	}
	return serve(ctx, o, static, obs.Logger(stderr, "xds"))
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	var extproc, traces string
	fs := flag.NewFlagSet("xds", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.listen, "listen", "127.0.0.1:7100", "`ip:port` of the gRPC services: ADS, fleet, health")
	fs.StringVar(&o.metrics, "metrics", "127.0.0.1:7101", "`ip:port` of /metrics, /healthz, /readyz, /debug/pprof/")
	fs.StringVar(&o.config, "config", "", "`file` with Model and Policy objects; none: the defaults")
	fs.StringVar(&o.settings.Gateway, "gateway", "127.0.0.1:8080", "`ip:port` of Envoy's public listener")
	fs.StringVar(&extproc, "extproc", "", "`ip:port,…` of every extproc; none: Envoy routes by weight alone")
	fs.StringVar(&o.settings.AccessLog, "access-log", "", "`path` of Envoy's access log; none: no log")
	fs.StringVar(&traces, "traces", "", "`otlp://host:port` to which Envoy sends its spans")
	fs.DurationVar(&o.settle, "settle", 2500*time.Millisecond, "longest wait for nodes before anything is decided or pushed")
	fs.BoolVar(&o.check, "check", false, "check the configuration and end")
	fs.BoolVar(&o.version, "version", false, "print the version and end")
	if err := fs.Parse(args); err != nil {
		return nil, &usageError{err}
	}
	if fs.NArg() > 0 {
		return nil, &usageError{fmt.Errorf("argument %q; there must be only flags", fs.Arg(0))}
	}
	for _, f := range []struct{ name, addr string }{{"listen", o.listen}, {"metrics", o.metrics}} {
		if _, err := net.ResolveTCPAddr("tcp", f.addr); err != nil || f.addr == "" {
			return nil, &usageError{fmt.Errorf("-%s: %q; must be ip:port", f.name, f.addr)}
		}
	}
	if extproc != "" {
		o.settings.ExtProc = strings.Split(extproc, ",")
	}
	if traces != "" {
		addr, err := obs.ParseTarget(traces)
		if err != nil {
			return nil, &usageError{err}
		}
		o.settings.Traces = addr
	}
	return o, nil
}

// load reads what the flags name.
func (o *options) load() error {
	file, err := config.Load(o.config)
	if err != nil {
		return &configError{err}
	}
	o.settings.Config = file
	o.settings.CookieKeys, err = cookieKeys(file.Policy.Spec.Sessions.Cookie)
	if err != nil {
		return &configError{err}
	}
	return nil
}

// resources returns the resources that don't depend on the fleet, once they have
// passed Envoy's own rules.
func resources(s translate.Settings) (translate.Resources, error) {
	static, err := translate.Static(s)
	if err != nil {
		return nil, &usageError{err}
	}
	if err := translate.Validate(static); err != nil {
		return nil, &configError{err}
	}
	return static, nil
}

// serve builds the parts in order and runs them until ctx ends.
func serve(ctx context.Context, o *options, static translate.Resources, log *slog.Logger) error {
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

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	g, ctx := errgroup.WithContext(ctx)
	resources := ads.New(ctx, log, reg)
	if err := resources.Publish(static); err != nil {
		return err
	}
	nodes := fleet.NewService(log, reg, func() (int, []obs.Condition) { return resources.Clients(), resources.Conditions() })
	server := newServer(resources, nodes)

	g.Go(func() error { return nodes.Run(ctx, fleet.New(wants(o.settings.Config), o.settle, time.Now())) })
	caches := make(chan struct{})
	g.Go(func() error { return pushCaches(ctx, nodes, resources, caches) })
	g.Go(func() error { return push(ctx, nodes, resources, o.settings, caches) })
	g.Go(func() error { return server.Serve(ln) })
	g.Go(func() error { return obs.Serve(ctx, admin, obs.Admin(reg, conditions(nodes, resources))) })
	g.Go(func() error {
		<-ctx.Done()
		server.Stop() // streams never end by themselves, and their clients come back
		return nil
	})
	log.Info("ready", "grpc", ln.Addr().String(), "metrics", admin.Addr().String())
	return g.Wait()
}

// maxMessage bounds a message from a client, in bytes: an extproc that comes back
// says of each resource which version it has.
const maxMessage = 64 << 20

// newServer returns the gRPC server. Clients may ping as they like: they find
// out within seconds that we hang, and we that they do.
func newServer(resources *ads.Server, nodes *fleet.Service) *grpc.Server {
	s := grpc.NewServer(
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 500 * time.Millisecond, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, resources)
	fleetpb.RegisterFleetServer(s, nodes)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer()) // serving, as soon as it answers
	return s
}

// conditions returns what is wrong with xds itself. What is wrong with a node is
// shown by status: xds is as ready as ever.
func conditions(nodes *fleet.Service, resources *ads.Server) func() []obs.Condition {
	return func() []obs.Condition {
		all := resources.Conditions()
		if snap, _ := nodes.Latest(); !snap.Settled {
			all = append(all, obs.Condition{
				Code: "not-settled",
				Text: "waiting for the nodes to report; nothing is pushed yet",
				Next: "wait for -settle at most",
			})
		}
		return all
	}
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
