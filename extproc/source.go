package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"millrace.dev/millrace/extproc/internal/fleet"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/pool"
	"millrace.dev/millrace/extproc/internal/prompt"
	"millrace.dev/millrace/extproc/internal/stream"
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
	known     <-chan struct{} // closed when the fleet is known
}

// answering returns what answers by xds, a file, or pools.
func (o *options) answering(env *program.Env, tracer trace.Tracer) (*answering, error) {
	if len(o.pools) > 0 {
		return o.byPools(env, tracer)
	}
	picker := pick.New(env.Metrics)
	a := &answering{processor: stream.NewServer(stream.NewCore(picker, env.Metrics).Probes(os.Getenv(wire.ProbeKey)), tracer), known: picker.Known()}
	if o.fleet == "" {
		a.source = fleet.New(o.xds, env.Identity.DialOption(mtls.Is(mtls.XDS)), picker, prompt.Load, env.Log, env.Metrics)
		return a, nil
	}
	l, err := fleet.NewLocal(o.fleet, picker, prompt.Load, env.Log, env.Metrics)
	if err != nil {
		return nil, program.Config(err)
	}
	a.source = l
	return a, nil
}

// pooled is pools with who follows them.
type pooled struct {
	*fleet.Pools
	watcher *pool.Watcher
}

// Run follows the pools until ctx ends.
func (p pooled) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.Pools.Run(ctx) })
	g.Go(func() error { return p.watcher.Run(ctx, p.Set) })
	return g.Wait()
}

// Conditions returns what is wrong.
func (p pooled) Conditions() []obs.Condition {
	return append(p.watcher.Conditions(), p.Pools.Conditions()...)
}

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
	r := &router{cores: make([]*stream.Core, len(names))}
	options := fleet.PoolsOptions{File: o.config, Pages: o.reference.pages, Conformance: o.conformance, Load: prompt.Load}
	for i, name := range names {
		reg := prometheus.WrapRegistererWith(prometheus.Labels{"pool": name}, env.Metrics)
		picker := pick.New(reg)
		r.cores[i] = stream.NewCore(picker, reg)
		options.Pickers = append(options.Pickers, picker)
	}
	pools, err := fleet.NewPools(options, env.Log, env.Metrics)
	if err != nil {
		return nil, program.Config(err)
	}
	watcher, err := pool.New(o.watched(), env.Log)
	if err != nil {
		return nil, program.Setup(&obs.Hint{Err: err, Next: "run extproc in a Pod with a service account, or set $KUBECONFIG"})
	}
	r.pools = pools
	return &answering{source: pooled{pools, watcher}, processor: stream.NewRouted(r.route, tracer), known: pools.Synced()}, nil
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
	w := pool.Options{Group: o.reference.poolGroup, Fixed: o.reference.fixed, EventsPort: o.reference.plugins.eventsPort}
	for _, n := range o.pools {
		if len(w.Fixed) == 0 {
			w.Pools = append(w.Pools, n)
		}
	}
	return w
}
