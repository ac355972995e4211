// Command extproc answers Envoy: for each request, which engine finishes it
// first. It learns the fleet from xds, or from a file, counts tokens with the
// model's own tokenizer, and keeps conversations where they are cached.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/extproc/internal/fleet"
	"millrace.dev/millrace/extproc/internal/pool"
	"millrace.dev/millrace/extproc/internal/prompt"
	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/extproc/peerpb"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/servertls"
)

// maxMessage bounds one message from Envoy, in bytes: a buffered body comes as
// one. Envoy's own limit and the policy's are far below.
const maxMessage = 256 << 20

// window is how much of a body may be on its way, in bytes: it lets most bodies
// come without waiting for us.
const window = 1 << 20

// grace is how long streams in flight may continue when extproc is to end.
// What is cut then continues in Envoy without us.
const grace = 2 * time.Second

func main() { os.Exit(program.Main("extproc", run)) }

// options is what the flags say.
type options struct {
	flags                      *program.Flags
	listen, xds, fleet, traces string
	every                      string
	dns                        string
	online                     bool
	keyFiles                   string
	keys                       *keys.Files // that clients need; nil: none
	leave                      time.Duration
	secure                     servertls.TLS
	cleartext                  cleartext
	// Of pools.
	poolNames, config, health string
	conformance               bool
	reference                 reference
	pools                     []pool.Name // nil: xds or a file says who the endpoints are
}

// run obeys the command line.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o := &options{}
	return program.Program{
		Name: "extproc", Metrics: "127.0.0.1:7201", Flags: o.add, Validate: o.validate, Check: o.check, Serve: o.serve,
		Identity: func() mtls.ID { return mtls.ID{Role: mtls.ExtProc} },
		Grace:    func() time.Duration { return o.leave + o.grace() },
	}.Run(ctx, args, stderr)
}

func (o *options) add(f *program.Flags) {
	o.flags = f
	f.Listen(&o.listen, "listen", "127.0.0.1:7200", "`ip:port` of the gRPC services: external processor, health")
	o.cleartext.flag(f)
	f.Dial(&o.xds, "xds", "127.0.0.1:7100", "`ip:port` of xds")
	f.Dial(&o.every, "every-xds", "127.0.0.1:7100", "`host:port` that stands for every xds, where -xds may lead to any of several: each is to know for which models requests wait; without it, -xds does")
	f.StringVar(&o.fleet, "fleet", "", "`file` that lists the engines, for use without xds; if empty, xds lists them")
	f.StringVar(&o.dns, "dns", "", "with -fleet: `ip:port` of the DNS server for host names in the file; if empty, this machine's")
	f.BoolVar(&o.online, "online", false, "with -check and -fleet: also look up the host names in the file, and ask the engines whether they serve, and which models")
	f.StringVar(&o.poolNames, "pool", "", "`namespace/name,…` of the InferencePools in Kubernetes to pick endpoints of, without xds")
	f.StringVar(&o.config, "config", "", "with -pool: `file` with a Policy, and with Models that name tokenizers; if empty, the defaults")
	f.Optional(&o.health, "health", "`ip:port` of gRPC health alone, in plain text even with TLS, for kubelet; if empty, only -listen has it")
	f.BoolVar(&o.conformance, "conformance-headers", false, "with -pool: obey and set the test headers of the inference extension's conformance suite")
	o.reference.add(f)
	f.StringVar(&o.keyFiles, "api-keys", "", "`file,…` with hashes of the API keys that clients need, a line \"sha256:HEX TENANT\" each; if empty, clients need no key. With keys, Envoy must refuse requests that extproc has not answered for")
	f.DurationVar(&o.leave, "leave", 0, "how long it continues to answer after SIGTERM, while its gRPC health reports NOT_SERVING")
	f.StringVar(&o.traces, "traces", "", "`otlp://host:port` to which spans are sent; if empty, there is no tracing")
	f.StringVar(&o.secure.Clients, "tls-client-ca", "", "`file` with the authorities that sign the certificates of gateways, without -tls-ca; if empty, every client is accepted")
	f.BoolVar(&o.secure.Self, "secure-serving", false, "serve TLS with a certificate of its own making, for gateways that do not verify it")
}

// validate returns all that is wrong with the flags.
func (o *options) validate() error {
	errs := []error{o.validatePools()}
	if o.fleet != "" && o.flags.Given("xds") {
		errs = append(errs, errors.New("-fleet, -xds; give one of them only"))
	}
	if o.traces != "" {
		_, err := obs.ParseTarget(o.traces)
		errs = append(errs, err)
	}
	if _, err := netip.ParseAddrPort(o.dns); o.dns != "" && err != nil {
		errs = append(errs, fmt.Errorf("-dns: %.80q; must be ip:port", o.dns))
	}
	if (o.dns != "" || o.online) && o.fleet == "" {
		errs = append(errs, errors.New("-dns and -online; go with -fleet"))
	}
	if o.leave < 0 {
		errs = append(errs, fmt.Errorf("-leave: %s; must be ≥ 0", o.leave))
	}
	errs = append(errs, o.validateTLS())
	o.flags.Guarded = o.secure.On()
	return errors.Join(errs...)
}

// validateTLS returns what is wrong with the flags of TLS, of the mesh and of the port alone.
func (o *options) validateTLS() error {
	switch f := o.flags.TLS(); {
	case f.CA != "" && (o.secure.Self || o.secure.Clients != ""):
		return errors.New("-tls-ca, -secure-serving, -tls-client-ca; with -tls-ca give none of the others: the mesh's own authorities decide which clients are accepted")
	case f.CA != "":
		return nil // the program's identity is on the port
	case f.Key != "":
		o.secure.Cert, o.secure.Key = f.Cert, f.Key
	}
	return o.secure.Check()
}

// validatePools returns what is wrong with the flags of pools.
func (o *options) validatePools() error {
	if o.poolNames != "" {
		names, err := pool.ParseNames(o.poolNames)
		if err != nil {
			return fmt.Errorf("-pool: %w", err)
		}
		o.pools = names
	}
	if err := o.reference.validate(o); err != nil {
		return err
	}
	switch {
	case len(o.pools) > 0 && (o.fleet != "" || o.flags.Given("xds")):
		return errors.New("-pool, -fleet, -xds; give one of them only")
	case len(o.pools) == 0 && (o.config != "" || o.conformance):
		return errors.New("-config, -conformance-headers; need -pool, too")
	}
	return nil
}

// check reads the files that flags name, and what these name. It asks nobody, unless
// -online says so.
func (o *options) check(stderr io.Writer) error {
	var errs []error
	if o.config != "" {
		errs = append(errs, fleet.CheckPools(o.config))
	}
	if o.fleet != "" {
		errs = append(errs, fleet.CheckFile(o.fleet, prompt.Load, stderr))
	}
	if o.keyFiles != "" {
		if _, err := keys.Open(slog.New(slog.DiscardHandler), strings.Split(o.keyFiles, ",")...); err != nil {
			errs = append(errs, fmt.Errorf("-api-keys: %w", err))
		}
	}
	if _, err := o.secure.Options(slog.New(slog.DiscardHandler)); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return program.Config(err)
	}
	if o.online {
		if err := fleet.CheckOnline(o.fleet, inventory.LookupBy(o.dns), nil); err != nil {
			return err
		}
	}
	fmt.Fprintln(stderr, "extproc: flags and configuration are in order")
	return nil
}

// serve builds the parts in order and runs them until ctx ends.
func (o *options) serve(ctx context.Context, env *program.Env) error {
	ln, err := env.Listen("listen", o.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	tracer, flush, err := o.tracer(ctx, env)
	if err != nil {
		return err
	}
	defer flush()

	log := env.Log
	if o.keyFiles != "" {
		if o.keys, err = keys.Open(log, strings.Split(o.keyFiles, ",")...); err != nil {
			return program.Config(fmt.Errorf("-api-keys: %w", err))
		}
	}
	bound(env.Memory)
	serving, stop := program.Outlive(ctx, o.leave)
	defer stop()
	answers, err := o.answering(serving, env, tracer)
	if err != nil {
		return err
	}
	o.note(log)
	health := newHealth()
	options, err := o.secure.Options(log)
	if err != nil {
		return err
	}
	server := newServer(env, answers, health, options)
	if err := o.cleartext.open(env, answers.processor, health); err != nil {
		return err
	}
	kubelet, err := o.healthPort(env, health)
	if err != nil {
		return err
	}

	g, serving := errgroup.WithContext(serving)
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(serving, cancel)
	g.Go(func() error { return answers.Run(serving) })
	g.Go(func() error { return env.Memory.Follow(serving, answers.parts) })
	g.Go(func() error { return o.keys.Run(serving) })
	g.Go(func() error { return kubelet.serve() })
	g.Go(func() error { return server.Serve(ln) })
	g.Go(o.cleartext.serve)
	g.Go(func() error {
		return env.Admin(serving, func() []obs.Condition {
			return slices.Concat(answers.Conditions(), o.secure.Conditions(), o.keys.Conditions())
		})
	})
	g.Go(func() error {
		follow(ctx, health, answers.known)
		<-serving.Done()
		o.cleartext.end(o.grace())
		end(server, o.grace())
		kubelet.stop()
		return nil
	})
	log.Info("ready", "grpc", ln.Addr().String(), "metrics", env.AdminAddress())
	return g.Wait()
}

// newServer returns the gRPC server.
func newServer(env *program.Env, answers *answering, health *health.Server, options []grpc.ServerOption) *grpc.Server {
	s := env.GRPC(keepalive.ServerParameters{}, append(options, serverOptions()...)...)
	extprocv3.RegisterExternalProcessorServer(s, answers.processor)
	if answers.hosts != nil {
		answers.hosts.Register(s)
	}
	if answers.peers != nil {
		peerpb.RegisterPeersServer(s, answers.peers)
	}
	grpc_health_v1.RegisterHealthServer(s, health)
	return s
}

// serverOptions are those of every port.
func serverOptions() []grpc.ServerOption {
	return append(stream.ServerOptions(),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(16*window),
		// Envoy may ping as it likes: it finds out within seconds that we hang.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 500 * time.Millisecond, PermitWithoutStream: true}),
	)
}

// grace is how long streams in flight may continue.
func (o *options) grace() time.Duration {
	if o.reference.names() {
		return o.reference.drain
	}
	return grace
}

// note logs what of the command line has no effect.
func (o *options) note(log *slog.Logger) {
	flags, plugins := o.reference.notes()
	if len(flags) > 0 {
		log.Warn("flags without effect", "flags", flags)
	}
	if len(plugins) > 0 {
		log.Warn("plugins without effect; extproc decides by predicted time (extproc/README.md)", "file", o.reference.configFile, "plugins", plugins)
	}
}

// end lets streams in flight continue for a while, and then cuts them.
func end(s *grpc.Server, grace time.Duration) {
	cut := time.AfterFunc(grace, s.Stop)
	defer cut.Stop()
	s.GracefulStop()
}

// tracer returns the tracer, nil if tracing is off, and what sends the last spans.
func (o *options) tracer(ctx context.Context, env *program.Env) (trace.Tracer, func(), error) {
	provider, flush, err := env.Tracing(ctx, "", o.traces)
	if err != nil || o.traces == "" {
		return nil, flush, err
	}
	return provider.Tracer("millrace.dev/millrace/extproc"), flush, nil
}
