// Command engine keeps one inference engine alive on its node and serves the
// OpenAI API in front of it.
//
// It is started by `millrace up` or by the node's service manager, told what to
// serve by its nodeagent, and asked by Envoy.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"time"

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
	"millrace.dev/millrace/internal/program"
)

func main() { os.Exit(program.Main("engine", run)) }

// options are the flags.
type options struct {
	node, http, grpc, logs, traces string
	programs                       llamacpp.Programs
}

// run obeys the command line.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o := &options{}
	return program.Program{
		Name: "engine", Metrics: "127.0.0.1:0", Flags: o.flags, Validate: o.validate, Load: o.load, Serve: o.serve,
	}.Run(ctx, args, stderr)
}

func (o *options) flags(f *program.Flags) {
	f.StringVar(&o.node, "node", "", "name of this node")
	f.Listen(&o.http, "http", "127.0.0.1:0", "`ip:port` of the OpenAI API")
	f.Listen(&o.grpc, "grpc", "127.0.0.1:0", "`ip:port` of the Engine service")
	f.Listen(&o.programs.ShardAddress, "shard", "", "`ip:port` where this node's shard listens")
	f.Listen(&o.programs.BackendAddress, "backend", "", "`ip:port` where the backend listens")
	f.StringVar(&o.programs.Runtime, "runtime", "", "`folder` with llama.cpp's binding and RPC plugin")
	f.StringVar(&o.logs, "logs", ".", "`folder` for the logs of backend and shard")
	f.StringVar(&o.programs.LlamaServer, "llama-server", "", "native llama-server to use instead of the runtime")
	f.StringVar(&o.programs.RPCServer, "rpc-server", "", "native ggml-rpc-server to use instead of the runtime")
	f.StringVar(&o.traces, "traces", "", "where spans go: otlp://host:port")
}

// load checks this node's parts.
func (o *options) load() error {
	if err := o.programs.Check(); err != nil {
		return program.Setup(&obs.Hint{Err: fmt.Errorf("set-up: %w", err), Next: "run `millrace up`, which fetches llama.cpp, and set -runtime to its folder, or name native programs with -llama-server and -rpc-server"})
	}
	return nil
}

// nodeName is the contract's rule for names of nodes.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (o *options) validate() error {
	var errs []error
	if !nodeName.MatchString(o.node) {
		errs = append(errs, fmt.Errorf("-node: %q; must be a name of a-z, 0-9 and -", o.node))
	}
	if o.traces != "" {
		_, err := obs.ParseTarget(o.traces)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// serve builds the parts in order and runs them until ctx ends.
func (o *options) serve(ctx context.Context, env *program.Env) error {
	log, reg := env.Log.With("node", o.node), env.Metrics
	tracing, flush, err := env.Tracing(ctx, o.node, o.traces)
	if err != nil {
		return err
	}
	defer flush()
	web, err := env.Listen("http", o.http)
	if err != nil {
		return err
	}
	defer web.Close()
	rpc, err := env.Listen("grpc", o.grpc)
	if err != nil {
		return err
	}
	defer rpc.Close()
	o.http, o.grpc = web.Addr().String(), rpc.Addr().String()

	// The parts, from the backend up.
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
	g.Go(func() error { return obs.Serve(serving, web, handler) })
	g.Go(func() error { return serveGRPC(ctx, rpc, server) })
	g.Go(func() error {
		return env.Admin(serving, func() []obs.Condition { return conditions(supervisor) })
	})
	log.Info("ready", "http", o.http, "grpc", o.grpc, "metrics", env.AdminAddress())
	return g.Wait()
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
