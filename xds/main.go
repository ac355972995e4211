// Command xds is the control plane: nodes report to it; it decides which node serves
// which model, and with what weight; and it publishes that to Envoy and extproc by delta ADS,
// and to the nodes by directives. After a restart it learns everything again from reports. In
// a cluster several xds serve, and one of them, the leader, directs the nodes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/drained"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/servertls"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/ads"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
)

func main() { os.Exit(program.Main("xds", run)) }

// options is what the flags say.
type options struct {
	flags                           *program.Flags
	listen, config, extproc, traces string
	scaler                          string
	scalerTLS                       servertls.TLS
	drained                         string
	secrets, without                string
	https                           translate.HTTPS
	settle                          time.Duration
	site                            translate.Site
	authority                       authority
	cluster                         cluster
	mesh                            mesh
	live                            live
	source                          source
	elsewhere                       bool // whether -check leaves out what Envoy and nodes read
	log                             *slog.Logger
}

// source publishes what is desired.
type source interface {
	// Latest returns what it has, and a channel that is closed when there is something
	// newer.
	Latest() (desired.Published, <-chan struct{})
	// Run follows what is desired until ctx ends.
	Run(ctx context.Context) error
}

// run obeys the command line.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o := &options{log: obs.Logger(stderr, "xds")}
	return program.Program{
		Name: "xds", Metrics: "127.0.0.1:7101", Flags: o.add, Validate: o.validate, Load: o.load, Usable: o.usable, Serve: o.serve,
		Identity: func() mtls.ID { return mtls.ID{Role: mtls.XDS} },
		Grace:    func() time.Duration { return o.cluster.leave },
	}.Run(ctx, args, stderr)
}

func (o *options) add(f *program.Flags) {
	o.flags = f
	f.Listen(&o.listen, "listen", "127.0.0.1:7100", "`ip:port` of the gRPC services: ADS, fleet, health")
	f.Optional(&o.scaler, "scaler", "`ip:port` of KEDA's external scaler protocol, for models with scaling.mode: recommend, in plain text without -scaler-tls-cert; none: it is not served")
	o.scalerTLS.Prefix = "scaler-"
	f.StringVar(&o.scalerTLS.Cert, "scaler-tls-cert", "", "`file` with the certificate of -scaler, followed")
	f.StringVar(&o.scalerTLS.Key, "scaler-tls-key", "", "`file` with its private key")
	f.StringVar(&o.scalerTLS.Clients, "scaler-tls-client-ca", "", "`file` with the authorities that sign KEDA's certificate; if empty, every client is accepted")
	f.StringVar(&o.config, "config", "", "`file` with Model, Policy and Endpoints objects; if empty, the defaults")
	f.StringVar(&o.drained, "drained", "", "`file` with the nodes that are drained, which millrace drain writes; if empty, none is")
	f.StringVar(&o.site.Gateway, "gateway", "127.0.0.1:8080", "`ip:port` of Envoy's public listener")
	f.StringVar(&o.https.Gateway, "https", "", "`ip:port` of a second public listener of Envoy, with TLS; needs -https-cert and -https-key")
	f.StringVar(&o.https.Cert, "https-cert", "", "`path` of its certificate and chain on Envoy's machine, in PEM; replaced by renaming")
	f.StringVar(&o.https.Key, "https-key", "", "`path` of the certificate's key there")
	f.StringVar(&o.without, "without-extproc", "forward", "what Envoy does with requests while no extproc answers, `forward|refuse`: forward by weights, or refuse with 503, which API keys need")
	f.StringVar(&o.extproc, "extproc", "", "`host:port,…` of every extproc; a name stands for all addresses that it resolves to; if empty, Envoy routes by weight alone")
	f.IntVar(&o.site.Pickers, "extprocs", 0, "how many extprocs there are: each gets its share of the tenants' budgets; 0: as many as -extproc names")
	f.StringVar(&o.site.AccessLog, "access-log", "", "`path` of Envoy's access log; if empty, there is no log")
	f.StringVar(&o.traces, "traces", "", "`otlp://host:port` to which Envoy sends its spans")
	f.StringVar(&o.secrets, "envoy-tls", "", "`folder` on Envoy's machine with certificate.json and authorities.json, for Envoy's TLS to extproc and engines (envoy/README.md)")
	o.authority.flags(f)
	o.cluster.flags(f)
	o.mesh.flags(f)
	o.live.flags(f)
	f.BoolVar(&o.elsewhere, "elsewhere", false, "with -check: Envoy and the nodes are other machines; skip the files that only they read")
	f.DurationVar(&o.settle, "settle", 2500*time.Millisecond, "after a start, how long to wait for nodes at most before anything is pushed; with -kube the default is 10s")
}

func (o *options) validate() (err error) {
	if o.extproc != "" {
		o.site.ExtProc = strings.Split(o.extproc, ",")
	}
	if o.traces != "" {
		o.site.Traces, err = obs.ParseTarget(o.traces)
	}
	if o.without != "forward" && o.without != "refuse" {
		err = errors.Join(err, fmt.Errorf("-without-extproc: %q; must be forward or refuse", o.without))
	}
	o.site.Refuse = o.without == "refuse"
	switch h := o.https; {
	case h != (translate.HTTPS{}) && (h.Gateway == "" || h.Cert == "" || h.Key == ""):
		err = errors.Join(err, errors.New("-https, -https-cert and -https-key; must be given together"))
	case h.Gateway != "":
		o.site.HTTPS = &h
	}
	if o.site.Pickers < 0 {
		err = errors.Join(err, errors.New("-extprocs; must be ≥ 0"))
	}
	if (o.secrets == "") != (o.flags.TLS().CA == "") {
		err = errors.Join(err, errors.New("-envoy-tls, -tls-ca; give both or neither: Envoy has TLS if the other programs have it"))
	}
	return errors.Join(err, o.validateScaler(), o.authority.validate(o.flags), o.cluster.validate(o), o.mesh.validate(&o.cluster), o.live.validate())
}

// load reads what the flags name. Flags that Envoy can't take are found with the
// defaults, before the file is read.
func (o *options) load() error {
	if err := o.live.load(); err != nil {
		return err
	}
	if o.secrets != "" {
		o.site.TLS = &translate.TLS{Domain: o.flags.ID().Domain, Folder: o.secrets}
	}
	base, err := desired.Open("", nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	p, _ := base.Latest()
	if _, err := translate.Static(o.site, p.State, nil); err != nil {
		return program.Usage(err)
	}
	if o.cluster.Namespace != "" {
		if err := o.cluster.open(o); err != nil {
			return program.Setup(err)
		}
		o.source = o.cluster
		return nil
	}
	if o.source, err = desired.Open(o.config, nil, o.admit, o.log); err != nil {
		return program.Config(err)
	}
	return nil
}

// admit returns what keeps a state from being in force: resources that break Envoy's
// own rules, or ours.
func (o *options) admit(s *desired.State) []config.Fault {
	all, err := translate.Static(o.site, s, [][]byte{make([]byte, 32)})
	if err != nil {
		return []config.Fault{{Text: err.Error()}}
	}
	return translate.Faults(all)
}

// serve builds the parts in order and runs them until ctx ends.
func (o *options) serve(ctx context.Context, env *program.Env) error {
	ln, err := env.Listen("listen", o.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	certificates, err := o.authority.open(env)
	if err != nil {
		return err
	}
	if err := o.mesh.open(env, &o.cluster, o.site.Refuse); err != nil {
		return err
	}
	blocks.SetMemory(env.Memory.Share(blockShare, blocks.DefaultMemory))
	log, reg := env.Log, env.Metrics
	leading := ctx
	ctx, stop := program.Outlive(ctx, o.cluster.leave)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	resources := ads.New(ctx, log, reg)
	nodes := fleet.NewService(log, reg, func() (int, []obs.Condition) { return resources.Clients(), resources.Conditions() })
	prober := probe.New(probe.Options{
		Program: "xds", Logs: true, Models: true,
		Observed: func(o *probe.Observation) { nodes.Post(ctx, fleet.Observed{Observation: o}) },
	}, log, reg)
	server := newServer(env, resources, nodes)
	if err := o.serveScaler(ctx, g, env, nodes); err != nil {
		return err
	}
	if err := o.servePage(ctx, g, env, nodes); err != nil {
		return err
	}
	env.Watch.Add("fleet", nodes.Alive)

	g.Go(func() error { return env.Memory.Follow(ctx, memory) })
	g.Go(func() error { return o.source.Run(ctx) })
	all := o.cluster.fleet(o.settle)
	if o.drained != "" {
		first := readDrained(o.drained, log)
		all.Step(time.Now(), drains(first)) // before anything is laid out
		g.Go(func() error {
			return drained.Follow(ctx, o.drained, first, log, func(now []drained.Node) { nodes.Post(ctx, drains(now)) })
		})
	}
	g.Go(func() error { return nodes.Run(ctx, all) })
	o.cluster.serve(ctx, leading, g, nodes)
	o.mesh.serve(ctx, g, nodes)
	g.Go(func() error { return follow(ctx, o.source, nodes, prober) })
	g.Go(func() error { return prober.Run(ctx) })
	caches := make(chan struct{})
	g.Go(func() error { return pushCaches(ctx, nodes, resources, caches) })
	g.Go(func() error { return push(ctx, nodes, resources, &rollout{site: o.site}, caches) })
	g.Go(func() error { return server.Serve(ln) })
	g.Go(func() error { return certificates.run(ctx) })
	g.Go(func() error {
		return env.Admin(ctx, func() []obs.Condition {
			return slices.Concat(o.cluster.conditions(leading, nodes, resources), certificates.conditions(), o.scalerTLS.Conditions(), o.mesh.conditions(), o.public())
		})
	})
	g.Go(func() error {
		<-ctx.Done()
		server.Stop() // streams never end by themselves, and their clients come back
		return nil
	})
	log.Info("ready", "grpc", ln.Addr().String(), "metrics", env.AdminAddress())
	return g.Wait()
}

// follow gives the fleet what is desired, and the prober who is to be probed, until ctx
// ends. The fleet comes first: it takes in nothing of whom it does not know.
func follow(ctx context.Context, s source, nodes *fleet.Service, prober *probe.Prober) error {
	for {
		p, next := s.Latest()
		nodes.Post(ctx, fleet.Desired{Published: p})
		if p.State != nil {
			if err := prober.Set(endpoints.Probed(inventory.OfObjects(p.State.Endpoints))); err != nil {
				return err // addresses have been checked
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}

// readDrained returns the nodes that are drained at the start.
func readDrained(path string, log *slog.Logger) []drained.Node {
	all, err := drained.Read(path)
	if err != nil {
		log.Warn("drained nodes are not known, none is", "err", err)
	}
	return all
}

// drains are the nodes that a person has drained, as the fleet reads them.
func drains(all []drained.Node) fleet.Drains {
	d := fleet.Drains{Nodes: make(map[string]string, len(all))}
	for _, n := range all {
		d.Nodes[n.Name] = "by hand, since " + n.Since.Format(time.DateTime)
	}
	return d
}

// maxMessage bounds a message from a client, in bytes: an extproc that comes back
// says of each resource which version it has.
const maxMessage = 8 << 20

// newServer returns the gRPC server. Clients may ping as they like: they find
// out within seconds that we hang, and we that they do.
func newServer(env *program.Env, resources *ads.Server, nodes *fleet.Service) *grpc.Server {
	s := env.GRPC(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second},
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 500 * time.Millisecond, PermitWithoutStream: true}),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, resources)
	fleetpb.RegisterFleetServer(s, nodes)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer()) // serving, as soon as it answers
	return s
}
