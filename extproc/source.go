package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"millrace.dev/millrace/extproc/internal/eds"
	"millrace.dev/millrace/extproc/internal/fleet"
	"millrace.dev/millrace/extproc/internal/peer"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/pool"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/prompt"
	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/wire"
)

// source is who says what the fleet is.
type source interface {
	Run(ctx context.Context) error
	Conditions() []obs.Condition
}

// answering is a source with what answers Envoy by it.
type answering struct {
	source
	processor *stream.Server
	hosts     *eds.Server     // nil: Envoy has its hosts from elsewhere
	peers     *peer.Peers     // nil: there are no other replicas to know of each other
	known     <-chan struct{} // closed when the fleet is known
	xds       bool            // whether xds is the source
	pickers   []*pick.Picker  // of all pools
	core      *stream.Core    // any: what is counted is of all together
}

// answering returns what answers by xds, a file, or pools, until ctx ends.
func (o *options) answering(ctx context.Context, env *program.Env, tracer trace.Tracer) (*answering, error) {
	if len(o.pools) > 0 {
		return o.byPools(env, tracer)
	}
	picker := pick.New(env.Metrics)
	core := stream.NewCore(picker, env.Metrics).Probes(os.Getenv(wire.ProbeKey)).Logs(env.Log)
	core.Require(o.keys)
	core.Tight(env.Memory.Tight)
	env.Watch.Add("decisions", core.Alive)
	a := &answering{processor: stream.NewServer(core, tracer), known: picker.Known(), pickers: []*pick.Picker{picker}, core: core}
	if a.xds = o.fleet == ""; a.xds {
		client := fleet.New(o.xds, env.Identity.DialOption(mtls.Is(mtls.XDS)), picker, prompt.Load, env.Log, env.Metrics)
		client.OnAccount(core.Account)
		every := o.xds
		if o.flags.Given("every-xds") {
			every = o.every
		}
		client.OnDemand(core.Waiting, every)
		decisions := stream.NewDecisions()
		core.Decides(decisions)
		client.OnDecision(decisions)
		a.source = client
		return a, nil
	}
	a.hosts = eds.New(ctx, env.Log)
	l, err := fleet.NewLocal(ctx, fleet.LocalOptions{
		File: o.fleet, Picker: picker, Load: prompt.Load, Lookup: inventory.LookupBy(o.dns), Hosts: a.hosts.Set,
	}, env.Log, env.Metrics)
	if err != nil {
		return nil, program.Config(err)
	}
	a.source = served{l, a.hosts}
	return a, nil
}

// served is the fleet of a file with what serves its hosts to Envoy.
type served struct {
	*fleet.Local
	hosts *eds.Server
}

// Run follows the file until ctx ends.
func (s served) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Local.Run(ctx) })
	g.Go(func() error { return s.hosts.Run(ctx) })
	return g.Wait()
}

// pooled is pools with who follows them.
type pooled struct {
	*fleet.Pools
	watcher *pool.Watcher
	peers   *peer.Peers
}

// Run follows the pools until ctx ends.
func (p pooled) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.Pools.Run(ctx) })
	g.Go(func() error { return p.peers.Run(ctx) })
	g.Go(func() error {
		return p.watcher.Run(ctx, func(c *fleet.Cluster) {
			p.Set(c)
			p.peers.Set(c.Peers)
		})
	})
	return g.Wait()
}

// Conditions returns what is wrong.
func (p pooled) Conditions() []obs.Condition {
	return append(p.watcher.Conditions(), p.Pools.Conditions()...)
}

// garbage is how much of it there may be, in percent of what is in use. That includes the
// index of prefixes, most of which is never touched: by Go's own 100 % the garbage of a
// thousand Pods would be more than all that is in use.
const garbage = 40

// allPools is the label of what is of all pools together.
const allPools = "*"

// byPools returns what answers by pools: each has a core of its own, with metrics of its
// own; where there are several, one more has all of them together.
func (o *options) byPools(env *program.Env, tracer trace.Tracer) (*answering, error) {
	names := make([]string, len(o.pools))
	for i, n := range o.pools {
		names[i] = n.String()
	}
	if len(names) > 1 {
		names = append(names, allPools)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	pickers := make([]*pick.Picker, len(names))
	r := &router{cores: make([]*stream.Core, len(names))}
	options := fleet.PoolsOptions{File: o.config, Pages: o.reference.pages, Conformance: o.conformance, Load: prompt.Load}
	for i, name := range names {
		reg := prometheus.WrapRegistererWith(prometheus.Labels{"pool": name}, env.Metrics)
		picker := pick.New(reg)
		pickers[i] = picker
		r.cores[i] = stream.NewCore(picker, reg).Logs(env.Log)
		r.cores[i].Require(o.keys)
		r.cores[i].Beside(r.cores[0])
		r.cores[i].Tight(env.Memory.Tight)
		options.Pickers = append(options.Pickers, picker)
	}
	peers, err := o.peers(env, func(n int, placement func(int) (string, prefix.Placement)) { r.pools.Placed(n, placement) })
	if err != nil {
		return nil, err
	}
	options.Peers = peers
	pools, err := fleet.NewPools(options, env.Log, env.Metrics)
	if err != nil {
		return nil, program.Config(err)
	}
	watcher, err := pool.New(o.watched(), env.Log)
	if err != nil {
		return nil, program.Setup(&obs.Hint{Err: err, Next: "run extproc in a Pod with a service account, or set $KUBECONFIG"})
	}
	r.pools = pools
	return &answering{
		source: pooled{pools, watcher, peers}, processor: stream.NewRouted(r.route, tracer), peers: peers, known: pools.Synced(),
		pickers: pickers, core: r.cores[0],
	}, nil
}

// peers returns what publishes to the other replicas where requests went. They are reached
// where this one listens, as securely as gateways reach it.
func (o *options) peers(env *program.Env, placed func(int, func(int) (string, prefix.Placement))) (*peer.Peers, error) {
	_, text, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	dial := env.Identity.DialOption(mtls.Is(mtls.ExtProc))
	if o.secure.On() {
		dial = grpc.WithTransportCredentials(credentials.NewTLS(o.secure.Client()))
	}
	return peer.New(peer.Options{Port: port, Dial: dial, Placed: placed}, env.Log, env.Metrics), nil
}

// namespaceFile is where kubelet says in which namespace a Pod is.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// self is the Pod in which this is: $POD_NAME, else the host's name, of $NAMESPACE, else of
// what kubelet says. Where there is no such Pod nobody is taken for a replica.
func self() pool.Name {
	host, _ := os.Hostname()
	namespace, _ := os.ReadFile(namespaceFile)
	return pool.Name{Namespace: cmp.Or(os.Getenv("NAMESPACE"), strings.TrimSpace(string(namespace))), Name: cmp.Or(os.Getenv("POD_NAME"), host)}
}

// router finds the core that is to answer a stream.
type router struct {
	// Constant after byPools.
	pools *fleet.Pools
	cores []*stream.Core // by pool; where there are several pools, the last is of all
}

// route returns the core of the pool that a stream is for. The gateway says so by the
// metadata that it was given for that, or by the name under which it asks: that of the
// Service and port that only one pool refers to. Where neither says so, any pool may be
// meant; the model and the subset that the gateway allows then find the endpoint.
func (r *router) route(ctx context.Context) *stream.Core {
	all := r.cores[len(r.cores)-1]
	if len(r.cores) == 1 {
		return all
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if named := md.Get(wire.PoolHeader); len(named) > 0 {
		if i, ok := r.pools.Named(named[0]); ok {
			return r.cores[i]
		}
		return all
	}
	if host := md.Get(":authority"); len(host) > 0 {
		if i, ok := r.pools.AskedAs(askedAs(host[0])); ok {
			return r.cores[i]
		}
	}
	return all
}

// askedAs reads an :authority: "host:port", or the name of an Istio cluster,
// "outbound|port||host". port is 0 where it says none.
func askedAs(authority string) (host string, port int) {
	if parts := strings.Split(authority, "|"); len(parts) == 4 {
		n, _ := strconv.Atoi(parts[1])
		return parts[3], n
	}
	host, text, err := net.SplitHostPort(authority)
	if err != nil {
		return authority, 0
	}
	n, _ := strconv.Atoi(text)
	return host, n
}

// watched is what is to be followed in Kubernetes.
func (o *options) watched() pool.Options {
	w := pool.Options{Self: self(), Group: o.reference.poolGroup, Fixed: o.reference.fixed, EventsPort: o.reference.plugins.eventsPort}
	for _, n := range o.pools {
		if len(w.Fixed) == 0 {
			w.Pools = append(w.Pools, n)
		}
	}
	return w
}
