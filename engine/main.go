// Command engine keeps one inference engine alive on its node and serves the
// OpenAI API in front of it.
//
// It is started by `millrace up` or by the node's service manager, told what to
// serve by its nodeagent, and asked by Envoy.
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
	"regexp"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/api"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/llamacpp"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/status"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/internal/obs"
)

// Exit statuses, the same in every program.
const (
	exitRuntime = 1
	exitUsage   = 2
	exitSetUp   = 4
	exitAddress = 5
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		if !errors.Is(err, errUsage) { // the flag package has printed its own
			obs.PrintError(os.Stderr, "engine", err)
		}
		stop()
		os.Exit(exitStatus(err))
	}
}

var (
	// errUsage marks what the flag package has reported already.
	errUsage = errors.New("usage")
	// errFlags and errSetUp mark errors of the flags and of this node's parts.
	errFlags = errors.New("flags")
	errSetUp = errors.New("set-up")
)

func exitStatus(err error) int {
	switch {
	case errors.Is(err, errUsage), errors.Is(err, errFlags):
		return exitUsage
	case errors.Is(err, errSetUp):
		return exitSetUp
	case errors.Is(err, syscall.EADDRINUSE):
		return exitAddress
	}
	return exitRuntime
}

// options are the flags.
type options struct {
	node, http, grpc, metrics, logs, traces string
	programs                                llamacpp.Programs
	check, version                          bool
}

func parseFlags(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("engine", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.node, "node", "", "name of this node")
	fs.StringVar(&o.http, "http", "127.0.0.1:0", "`address` of the OpenAI API")
	fs.StringVar(&o.grpc, "grpc", "127.0.0.1:0", "`address` of the Engine service")
	fs.StringVar(&o.programs.ShardAddress, "shard", "", "`address` where this node's shard listens")
	fs.StringVar(&o.programs.BackendAddress, "backend", "", "`address` where the backend listens")
	fs.StringVar(&o.metrics, "metrics", "127.0.0.1:0", "`address` of metrics and health")
	fs.StringVar(&o.programs.Runtime, "runtime", "", "`folder` with llama.cpp's binding and RPC plugin")
	fs.StringVar(&o.logs, "logs", ".", "`folder` for the logs of backend and shard")
	fs.StringVar(&o.programs.LlamaServer, "llama-server", "", "native llama-server to use instead of the runtime")
	fs.StringVar(&o.programs.RPCServer, "rpc-server", "", "native ggml-rpc-server to use instead of the runtime")
	fs.StringVar(&o.traces, "traces", "", "where spans go: otlp://host:port")
	fs.BoolVar(&o.check, "check", false, "check flags and parts, then exit")
	fs.BoolVar(&o.version, "version", false, "print the version, then exit")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errUsage, err)
	}
	if o.version {
		return o, nil
	}
	if err := errors.Join(o.validate(), extra(fs)); err != nil {
		return o, fmt.Errorf("%w: %w", errFlags, err)
	}
	if err := o.programs.Check(); err != nil {
		return o, &obs.Hint{Err: fmt.Errorf("%w: %w", errSetUp, err), Next: "run `millrace up`, which fetches llama.cpp, and set -runtime to its folder, or name native programs with -llama-server and -rpc-server"}
	}
	return o, nil
}

func extra(fs *flag.FlagSet) error {
	if fs.NArg() > 0 {
		return fmt.Errorf("argument %q; only flags are known", fs.Arg(0))
	}
	return nil
}

// nodeName is the contract's rule for names of nodes.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (o options) validate() error {
	var errs []error
	if !nodeName.MatchString(o.node) {
		errs = append(errs, fmt.Errorf("-node: %q; must be a name of a-z, 0-9 and -", o.node))
	}
	for _, a := range []struct{ flag, address string }{
		{"-http", o.http}, {"-grpc", o.grpc}, {"-metrics", o.metrics},
		{"-shard", o.programs.ShardAddress}, {"-backend", o.programs.BackendAddress},
	} {
		if _, err := net.ResolveTCPAddr("tcp", a.address); err != nil || a.address == "" {
			errs = append(errs, fmt.Errorf("%s: %q; must be ip:port", a.flag, a.address))
		}
	}
	if o.traces != "" {
		if _, err := obs.ParseTarget(o.traces); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	switch {
	case o.version:
		fmt.Fprintln(stderr, "engine", version())
		return nil
	case o.check:
		fmt.Fprintln(stderr, "engine: flags and parts are in order")
		return nil
	}
	log := obs.Logger(stderr, "engine").With("node", o.node)
	tracing, stopTracing, err := obs.Tracing(ctx, "engine", o.node, o.traces)
	if err != nil {
		return err
	}
	defer func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stopTracing(grace)
	}()
	lns, err := listen(o.http, o.grpc, o.metrics)
	if err != nil {
		return err
	}
	o.http, o.grpc, o.metrics = lns[0].Addr().String(), lns[1].Addr().String(), lns[2].Addr().String()

	// The parts, from the backend up.
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	transport := llamacpp.Transport()
	defer transport.CloseIdleConnections()
	runner := llamacpp.NewRunner(o.programs, transport)
	gate, meter, cache := &admit.Gate{}, &meter.Meter{}, &cachelog.Log{}
	supervisor := supervise.New(supervise.Config{
		Node: o.node, Logs: o.logs, Launcher: launcher{runner, meter}, Log: log,
		Running: func() int { return gate.Load().Running }, Served: meter.Served,
	})
	metrics := api.NewMetrics(reg, api.Sources{Gate: gate, Meter: meter, Cache: cache, Snapshot: supervisor.Snapshot})
	handler := api.New(api.Config{
		Node: o.node, Backend: o.programs.BackendAddress, Transport: transport, Serving: supervisor.Serving,
		Gate: gate, Meter: meter, Cache: cache, Metrics: metrics, Tracer: tracing.Tracer("millrace.dev/millrace/engine"),
	})
	server := status.New(status.Config{
		Node: o.node, HTTP: o.http, GRPC: o.grpc, Backend: o.programs.BackendAddress, Shard: o.programs.ShardAddress,
		Supervisor: supervisor, Gate: gate, Meter: meter, Cache: cache, Ends: ctx.Done(),
	})

	// Requests are answered until the supervisor has drained.
	serving, drained := context.WithCancel(context.WithoutCancel(ctx))
	defer drained()
	g := errgroup.Group{}
	g.Go(func() error {
		defer drained()
		return supervisor.Run(ctx)
	})
	g.Go(func() error {
		follow(serving, supervisor, runner, gate, &room{Meter: meter, cache: cache, log: log})
		return nil
	})
	g.Go(func() error { return obs.Serve(serving, lns[0], handler) })
	g.Go(func() error { return serveGRPC(ctx, lns[1], server) })
	g.Go(func() error {
		return obs.Serve(serving, lns[2], obs.Admin(reg, func() []obs.Condition { return conditions(supervisor) }))
	})
	log.Info("ready", "http", o.http, "grpc", o.grpc, "metrics", o.metrics)
	return g.Wait()
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

// listen opens all addresses, or none.
func listen(addresses ...string) ([]net.Listener, error) {
	var lns []net.Listener
	for _, a := range addresses {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			for _, ln := range lns {
				_ = ln.Close()
			}
			if errors.Is(err, syscall.EADDRINUSE) {
				err = &obs.Hint{Err: err, Next: "stop the program that listens there, or choose another address"}
			}
			return nil, err
		}
		lns = append(lns, ln)
	}
	return lns, nil
}

// serveGRPC serves until ctx ends. Streams are cut: their other ends come back.
func serveGRPC(ctx context.Context, ln net.Listener, s *status.Server) error {
	srv := grpc.NewServer(
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	enginepb.RegisterEngineServer(srv, s)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	if err := srv.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("grpc: %w", err)
	}
	return nil
}

// launcher is the Runner as supervise wants it; its probes measure the speed.
type launcher struct {
	*llamacpp.Runner
	meter *meter.Meter
}

// probeTokens is enough to measure and little to wait for.
const probeTokens = 8

// Prove has the replica generate a few tokens.
func (l launcher) Prove(ctx context.Context) error {
	speed, err := l.Probe(ctx, probeTokens)
	if err == nil {
		l.meter.Calibrate(speed)
	}
	return err
}

// kvEvery is how often the backend of a busy replica is asked for its KV cache.
const kvEvery = time.Second

// follow keeps the gate at the size of the assignment, and knows the KV cache.
func follow(ctx context.Context, s *supervise.Supervisor, r *llamacpp.Runner, gate *admit.Gate, m *room) {
	tick := time.NewTicker(kvEvery)
	defer tick.Stop()
	var epoch uint64
	var asked time.Time
	var measured *enginepb.Assignment // what the speeds were measured on
	for {
		snap, changed := s.Snapshot()
		b := snap.Assignment.GetBackend()
		if a := snap.Assignment; a.GetReplica() != measured.GetReplica() || len(a.GetStages()) != len(measured.GetStages()) {
			m.Forget()
		}
		measured = snap.Assignment
		gate.Resize(int(b.GetSlots()), int(b.GetQueue()))
		if snap.Epoch != epoch {
			epoch = snap.Epoch
			m.empty(snap)
		}
		if snap.State == enginepb.State_READY && snap.Assignment.GetStage() == 0 && m.Served().After(asked) {
			asked = time.Now()
			if used, err := r.KVUsed(ctx); err == nil {
				m.use(used)
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// room is what is known of the backend's KV cache.
type room struct {
	*meter.Meter
	cache *cachelog.Log
	log   *slog.Logger
	// host is how many tokens the backend keeps beside its slots.
	host uint64
}

// empty says that a backend was started.
func (m *room) empty(snap *supervise.Snapshot) {
	m.cache.Reset(snap.Epoch)
	if b := snap.Assignment.GetBackend(); b != nil && snap.Assignment.GetStage() == 0 {
		var err error
		if m.host, err = llamacpp.HostTokens(b); err != nil {
			m.log.Warn("size of the backend's cache unknown", "err", err)
			m.host = llamacpp.ContextOf(b)
		}
	}
	m.use(0)
}

// use says that the backend's slots hold so many tokens. What they let go is in its
// cache in host memory for a while.
func (m *room) use(slots uint64) {
	m.SetKV(slots)
	m.cache.Resize(int64(m.host + slots))
}

// conditions is what is wrong, for /readyz.
func conditions(s *supervise.Supervisor) []obs.Condition {
	snap, _ := s.Snapshot()
	if snap.State == enginepb.State_READY {
		return nil
	}
	return []obs.Condition{{Code: "engine_" + snap.State.String(), Text: snap.Reason, Next: "see the logs of backend and shard"}}
}
