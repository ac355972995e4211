// Command engine keeps one inference engine alive on its node and serves the
// OpenAI API in front of it.
//
// `millrace up` or the node's service manager starts it, its nodeagent assigns it what to
// serve, and Envoy sends it requests.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/snapshot"
	"millrace.dev/millrace/engine/internal/status"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/usable"
	"millrace.dev/millrace/internal/wire"
)

func main() { os.Exit(program.Main("engine", run)) }

// options are the flags.
type options struct {
	node, http, grpc, logs, traces string
	// shard and backend are where this node's processes listen.
	shard, backend string
	cleartext      bool // whether the OpenAI API has no TLS in any case
	leave, grace   time.Duration
	kinds          kinds
	records        records
	snapshots      snapshots
}

// run obeys the command line.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o := &options{}
	return program.Program{
		Name: "engine", Shared: true, Metrics: "127.0.0.1:0", Flags: o.flags, Validate: o.validate, Load: o.load, Usable: o.usable, Serve: o.serve,
		Identity: func() mtls.ID { return mtls.ID{Role: mtls.Engine, Node: o.node} },
		Grace:    func() time.Duration { return o.leave + o.grace },
	}.Run(ctx, args, stderr)
}

func (o *options) flags(f *program.Flags) {
	f.StringVar(&o.node, "node", "", "name of this node; of a Kubernetes node's name, each \".\" becomes \"-\"")
	f.Listen(&o.http, "http", "127.0.0.1:0", "`ip:port` of the OpenAI API")
	f.BoolVar(&o.cleartext, "http-plain-text", false, "serve the OpenAI API in plain text and without authentication even with TLS, for service meshes that encrypt by themselves and gateways without TLS")
	f.Listen(&o.grpc, "grpc", "127.0.0.1:0", "`ip:port` of the Engine service")
	f.Listen(&o.shard, "shard", "", "`ip:port` where other nodes reach this node's shard")
	f.Cleartext(&o.backend, "backend", "", "`ip:port` where the backend listens")
	f.StringVar(&o.logs, "logs", ".", "`folder` for the logs of backend and shard")
	f.DurationVar(&o.leave, "leave", 0, "how long new requests are still accepted after SIGTERM, while engine reports that it is draining")
	f.DurationVar(&o.grace, "grace", 10*time.Second, "how long running requests may take after -leave, then they are cut")
	f.StringVar(&o.traces, "traces", "", "`otlp://host:port` to which spans are sent; if empty, there is no tracing")
	o.kinds.flags(f.FlagSet)
	o.records.flags(f)
	o.snapshots.flags(f)
}

// load checks this node's parts.
func (o *options) load() error {
	if err := o.kinds.check(); err != nil {
		return program.Setup(fmt.Errorf("set-up: %w", err))
	}
	return nil
}

// usable says what is wrong with the folder for logs, and with what is stored.
func (o *options) usable() error {
	err := usable.Folder(o.logs)
	if err != nil {
		err = fmt.Errorf("-logs: %w", err)
	}
	return errors.Join(err, o.records.usable(), o.snapshots.usable())
}

// nodeName is the contract's rule for names of nodes.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (o *options) validate() error {
	o.node = wire.NodeName(o.node)
	var errs []error
	if !nodeName.MatchString(o.node) {
		errs = append(errs, fmt.Errorf("-node: %q; must be a name of a-z, 0-9 and -", o.node))
	}
	if o.leave < 0 || o.grace <= 0 {
		errs = append(errs, fmt.Errorf("-leave: %s, -grace: %s; must be ≥ 0 and > 0", o.leave, o.grace))
	}
	if o.traces != "" {
		_, err := obs.ParseTarget(o.traces)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, o.records.validate(), o.snapshots.validate())...)
}

// serve builds the parts in order and runs them until ctx ends.
func (o *options) serve(ctx context.Context, env *program.Env) error {
	log, reg := env.Log.With("node", o.node), env.Metrics
	tracing, flush, err := env.Tracing(ctx, o.node, o.traces)
	if err != nil {
		return err
	}
	defer flush()
	listen := env.Listen
	if o.cleartext {
		listen = env.Open
	}
	web, err := listen("http", o.http)
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
	stored, err := o.records.open(env, o.node)
	if err != nil {
		return err
	}
	transport := backend.Transport()
	defer transport.CloseIdleConnections()
	shards, err := o.shards(env)
	if err != nil {
		return err
	}
	folder := o.snapshots.open(env, &o.kinds)
	kinds := o.kinds.open(shards.local, o.backend, shards.ways, transport, reg, log)
	gate, meter, cache := &admit.Gate{}, &meter.Meter{}, &cachelog.Log{}
	var states *snapshot.Service
	supervisor := supervise.New(supervise.Config{
		Node: o.node, Logs: o.logs, Launcher: launcher{kinds, meter}, Log: log, Leave: o.leave, Grace: o.grace,
		Running: func() int { return gate.Load().Running }, Served: meter.Served, Door: gate,
		Settling: func() bool { return states.Settling() },
		Security: func(node string) grpc.DialOption { return env.Identity.DialOption(mtls.IsEngineOf(node)) },
	})
	states, err = o.snapshots.saving(snapshot.Config{
		Folder: folder, Kinds: kinds, Snapshot: supervisor.Snapshot, Cache: cache,
		Running: func() int { return gate.Load().Running }, Speed: meter.Speed,
	}, env, o)
	if err != nil {
		return err
	}
	metrics := api.NewMetrics(reg, api.Sources{Gate: gate, Meter: meter, Cache: cache, Kinds: kinds, Snapshot: supervisor.Snapshot})
	// Requests are answered until the supervisor has drained. Where others are to know
	// before, so is who watches.
	serving, drained := context.WithCancel(context.WithoutCancel(ctx))
	defer drained()
	watched := ctx
	if o.leave > 0 {
		watched = serving
	}
	peers, scheme := o.peers(env)
	defer peers.CloseIdleConnections()
	handler := api.New(api.Config{
		Node: o.node, Kinds: kinds, Transport: transport, Serving: supervisor.Serving,
		Gate: gate, Meter: meter, Cache: cache, Metrics: metrics, Tracer: tracing.Tracer("millrace.dev/millrace/engine"),
		Conversations: stored.service, Snapshots: restorer(states),
		Log: log, Address: o.http, Scheme: scheme, Peers: peers, ResumeFor: api.ResumeFor,
	})
	server := status.New(status.Config{
		Node: o.node, HTTP: o.http, PlainText: o.cleartext, GRPC: o.grpc, Backend: o.backend, Shard: o.shard, Kinds: kinds,
		Supervisor: supervisor, Gate: gate, Meter: meter, Cache: cache, Ends: watched.Done(),
	})

	env.Watch.Add("supervisor", supervisor.Alive)

	g := errgroup.Group{}
	g.Go(func() error { return env.Memory.Follow(serving, memory) })
	g.Go(func() error {
		defer drained()
		return supervisor.Run(ctx)
	})
	g.Go(func() error {
		follow(serving, supervisor, gate, &room{Kinds: kinds, Meter: meter, cache: cache, log: log})
		return nil
	})
	g.Go(func() error { return o.api(serving, env, web, handler) })
	g.Go(func() error { return o.serveGRPC(watched, env, rpc, server, stored, states) })
	g.Go(func() error { return stored.run(serving) })
	g.Go(func() error { return runSnapshots(serving, states) })
	g.Go(func() error { return shards.run(serving, supervisor) })
	g.Go(func() error {
		return env.Admin(serving, func() []obs.Condition { return conditions(supervisor) })
	})
	log.Info("ready", "http", o.http, "grpc", o.grpc, "metrics", env.AdminAddress())
	return g.Wait()
}

// peers is the way to the OpenAI API of other engines, and its scheme.
func (o *options) peers(env *program.Env) (*http.Transport, string) {
	t := backend.Transport()
	if env.Identity == nil || o.cleartext {
		return t, "http"
	}
	t.TLSClientConfig = env.Identity.Client(mtls.Is(mtls.Engine), "http/1.1")
	return t, "https"
}

// api serves the OpenAI API until ctx ends.
func (o *options) api(ctx context.Context, env *program.Env, ln net.Listener, h http.Handler) error {
	if o.cleartext {
		return obs.Serve(ctx, ln, h)
	}
	return env.HTTP(ctx, ln, mtls.OpenAI, h)
}

// serveGRPC serves until ctx ends. Streams are cut: their other ends come back.
func (o *options) serveGRPC(ctx context.Context, env *program.Env, ln net.Listener, s *status.Server, stored opened, states *snapshot.Service) error {
	srv := env.GRPC(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second},
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		o.records.options(),
	)
	enginepb.RegisterEngineServer(srv, s)
	stored.register(srv)
	registerSnapshots(srv, states)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	if err := srv.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("grpc: %w", err)
	}
	return nil
}

// launcher starts what an assignment asks for; its probes measure the speed.
type launcher struct {
	backend.Kinds
	meter *meter.Meter
}

// Process returns a process of the replica, not yet started.
func (l launcher) Process(r backend.Role, a *enginepb.Assignment) (backend.Process, error) {
	return l.Of(a).Process(r, a)
}

// probeTokens is enough to measure and little to wait for.
const probeTokens = 8

// Prove has the replica generate a few tokens.
func (l launcher) Prove(ctx context.Context, a *enginepb.Assignment) error {
	speed, err := l.Of(a).Probe(ctx, a, probeTokens)
	if err == nil {
		l.meter.Calibrate(speed)
	}
	return err
}

// loadEvery is how often the backend of a busy replica is asked for its load, loadFor
// how long it may take to answer.
const (
	loadEvery = time.Second
	loadFor   = 3 * time.Second
)

// follow keeps the gate at the size of the assignment, and knows the backend's load.
func follow(ctx context.Context, s *supervise.Supervisor, gate *admit.Gate, m *room) {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	var epoch uint64
	var asked time.Time
	var measured *enginepb.Assignment // what the speeds were measured on
	for {
		snap, changed := s.Snapshot()
		b := snap.Assignment.GetBackend()
		if a := snap.Assignment; a.GetReplica() != measured.GetReplica() || !enginepb.SameProcess(a, measured) {
			m.Forget()
		}
		measured = snap.Assignment
		gate.Set(admit.Limits{
			Slots: int(b.GetSlots()), Queue: int(b.GetQueue()), Prefill: m.Speed().Prefill,
			Goal: admit.Goal{First: b.GetGoal().GetFirstToken().AsDuration(), Token: b.GetGoal().GetToken().AsDuration()},
		})
		if snap.Epoch != epoch {
			epoch = snap.Epoch
			m.empty(snap)
		}
		if snap.State == enginepb.State_READY && !snap.Dormant && snap.Assignment.GetStage() == 0 && (m.Served().After(asked) || m.busy) {
			asked = time.Now()
			m.ask(ctx, snap.Assignment)
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
	backend.Kinds
	*meter.Meter
	cache *cachelog.Log
	log   *slog.Logger
	kv    backend.KV
	busy  bool // whether the backend had requests when it was last asked
}

// empty says that a backend was started.
func (m *room) empty(snap *supervise.Snapshot) {
	m.cache.Reset(snap.Epoch)
	m.kv = backend.KV{}
	if snap.Assignment != nil && snap.Assignment.GetStage() == 0 {
		if log := m.Of(snap.Assignment).Blocks(snap.Assignment); log != nil {
			log.SetEpoch(snap.Epoch)
		}
		var err error
		if m.kv, err = m.Of(snap.Assignment).Room(snap.Assignment); err != nil {
			m.log.Warn("size of the backend's cache unknown", "err", err)
		}
	}
	m.use(backend.Load{})
}

// ask asks the backend for its load.
func (m *room) ask(ctx context.Context, a *enginepb.Assignment) {
	ctx, cancel := context.WithTimeout(ctx, loadFor)
	defer cancel()
	load, err := m.Of(a).Load(ctx, a)
	if err != nil {
		return // the supervisor finds out what is wrong
	}
	m.Measure(load.Speed)
	m.use(load)
}

// use takes the backend's load. What running sequences leave behind is in its cache
// in host memory for a while, or where it has none, in the room itself.
func (m *room) use(l backend.Load) {
	if l.Total > 0 {
		m.kv.Total = l.Total
	}
	m.SetKV(l.Used, m.kv.Total)
	m.SetBackend(l.Running, l.Waiting)
	m.busy = l.Running > 0
	if m.kv.Host > 0 {
		m.cache.Resize(int64(m.kv.Host + l.Used))
	} else {
		m.cache.Resize(int64(m.kv.Total))
	}
}

// conditions is what is wrong, for /readyz.
func conditions(s *supervise.Supervisor) []obs.Condition {
	snap, _ := s.Snapshot()
	c := obs.Condition{Code: "engine_" + snap.State.String(), Text: snap.Reason, Next: "see the logs of the backend and the shard, in the folder of -logs", Severity: obs.Blocking}
	switch {
	case snap.State == enginepb.State_READY:
		return nil
	case snap.State == enginepb.State_IDLE && snap.Version == (enginepb.Version{}):
		// Where engines are replaced one after the other, the next one must not end before
		// this one serves what it is for.
		c.Text, c.Next = "xds has not said yet what to serve, or that nothing is to be served", "see whether the node's nodeagent reaches xds"
	case snap.State == enginepb.State_IDLE:
		c.Severity = obs.Degraded // ready for whatever comes
	}
	return []obs.Condition{c}
}
