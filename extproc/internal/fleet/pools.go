package fleet

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/stamp"
)

// gather is how long changes are gathered before they are taken in: it bounds what a
// thousand Pods that change at once cost.
const gather = 20 * time.Millisecond

// Cluster is what Kubernetes says of pools at one moment. It is not changed once it is
// given.
type Cluster struct {
	// Pools are those that were asked for, in that order, whether they exist or not.
	Pools []Pool
	// Pods are all Pods of the pools' namespaces.
	Pods []inventory.Pod
	// Peers are the addresses of extproc's other replicas, as far as they are among the Pods.
	Peers []string
}

// Pool is an InferencePool with what belongs to it.
type Pool struct {
	// Pool is who it is and who its Pods are; one that does not exist has a name only.
	inventory.Pool
	// Exists is whether it does.
	Exists bool
	// Objectives are the priorities of its objectives by name: below 0 sheddable, above 0
	// critical.
	Objectives map[string]int
	// Rewrites are under which names its models are forwarded. The first rule for a model
	// holds.
	Rewrites []config.Rewrite
	// Otherwise is for requests whose model none of Rewrites is for; empty: they keep theirs.
	Otherwise []config.RewriteTarget
}

// PoolsOptions is what pools are kept by.
type PoolsOptions struct {
	// File is the configuration with the Policy, and with Models whose tokenizers count;
	// empty: defaults hold.
	File string
	// Pickers get the tables of the pools, in the order of Cluster.Pools; where there are
	// several pools, one more gets that of all together.
	Pickers []Picker
	// Pages returns where an endpoint's metrics are; nil: where its type has them.
	Pages func(address string) []string
	// Conformance is whether headers of the conformance suite count.
	Conformance bool
	// Peers are the other replicas of extproc, which are to know what is placed where; nil:
	// there are none.
	Peers pick.Peers
	// Load reads tokenizers.
	Load func(path string) (pick.Counter, error)
	// Get fetches a page, as scrape.Client does; nil: over the network.
	Get getter
}

// Pools keeps the endpoints of InferencePools. Set says who they are.
type Pools struct {
	probed

	// Constant after NewPools.
	options PoolsOptions
	get     getter
	close   func()
	wake    chan struct{}  // holds one: something is to be taken in
	due     chan *learning // to be asked who they are
	took    sync.Once      // for synced
	synced  chan struct{}  // closed when a Cluster was taken in

	// Of Run alone.
	stamps stamp.Files

	// Atomic.
	latest atomic.Pointer[Cluster] // as Set has given it; nil: not yet

	// The rest is guarded by mu.
	cluster     *Cluster // nil: none yet
	stale       bool     // whether cluster or discoveries have changed since they were taken in
	pools       []*pool  // as options.Pickers
	discoveries map[string]*learning
	settings    settings
	fault       error // of the file as it is; nil: it is in force
}

// NewPools returns pools that have no endpoints until Set says so.
func NewPools(o PoolsOptions, log *slog.Logger, reg prometheus.Registerer) (*Pools, error) {
	p := &Pools{
		options: o, get: o.Get, close: func() {}, wake: make(chan struct{}, 1), due: make(chan *learning, askers),
		synced: make(chan struct{}), discoveries: map[string]*learning{},
	}
	if p.get == nil {
		client := scrape.NewClient()
		p.get, p.close = client.Get, client.Close
	}
	// Who asks endpoints who they are and who probes them do so over the same connections.
	p.probed.init("pools", p, o.Load, probe.Options{Get: p.get}, log, reg)
	for _, picker := range o.Pickers {
		p.pools = append(p.pools, &pool{picker: picker, models: map[string]*model{}})
	}
	if err := p.load(); err != nil {
		return nil, err
	}
	return p, nil
}

// Set takes in what Kubernetes says now.
func (p *Pools) Set(c *Cluster) {
	p.latest.Store(c)
	p.mu.Lock()
	p.cluster, p.stale = c, true
	p.mu.Unlock()
	p.stir()
}

// stir wakes who takes changes in.
func (p *Pools) stir() {
	select {
	case p.wake <- struct{}{}:
	default: // it is about to
	}
}

// Run follows the endpoints until ctx ends.
func (p *Pools) Run(ctx context.Context) error {
	defer p.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.keep(ctx) })
	g.Go(func() error { return p.takeIn(ctx) })
	for range askers {
		g.Go(func() error { return p.ask(ctx) })
	}
	return g.Wait()
}

// takeIn takes changes in as they come, a lot of them at a time if they come fast.
func (p *Pools) takeIn(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
		if err := p.update(time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gather):
		}
	}
}

// update makes what Kubernetes and the endpoints themselves say that of the tables.
func (p *Pools) update(now time.Time) error {
	p.mu.Lock()
	if !p.stale || p.cluster == nil {
		p.mu.Unlock()
		return nil
	}
	p.stale = false
	all := p.entriesLocked(now)
	p.setEntriesLocked(all, now)
	p.loader.want(p.tokenizersLocked())
	p.publishLocked()
	p.mu.Unlock()
	p.took.Do(func() { close(p.synced) })
	return p.prober.Set(endpoints.Probed(all))
}

// entriesLocked returns the endpoints of all pools, each once, and gives each pool its
// own. Who is new is asked who it is.
func (p *Pools) entriesLocked(now time.Time) []inventory.Entry {
	var all []inventory.Entry
	at := map[string]bool{}
	for i := range p.cluster.Pools {
		spec, own := &p.cluster.Pools[i], p.pools[i]
		own.spec = spec
		own.addresses = own.addresses[:0]
		if !spec.Exists {
			continue
		}
		for _, e := range inventory.OfPods(&spec.Pool, p.cluster.Pods) {
			own.addresses = append(own.addresses, e.Address)
			if !at[e.Address] {
				at[e.Address] = true
				all = append(all, p.known(e, own.name(), now))
			}
		}
	}
	slices.SortFunc(all, func(a, b inventory.Entry) int { return compare(a.Address, b.Address) })
	if n := len(p.cluster.Pools); n < len(p.pools) {
		union := p.pools[n]
		union.addresses = union.addresses[:0]
		for _, e := range all {
			union.addresses = append(union.addresses, e.Address)
		}
		union.spec = unite(p.cluster.Pools)
	}
	maps.DeleteFunc(p.discoveries, func(address string, _ *learning) bool { return !at[address] })
	return all
}

// Placed takes in what another replica has sent to an endpoint, or what came of it.
func (p *Pools) Placed(n int, placement func(i int) (address string, what prefix.Placement)) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range n {
		address, what := placement(i)
		if e := p.state.endpoints[address]; e != nil {
			p.state.policy.Prefixes.Record(what, e.kv, now)
		}
	}
}

// Synced is closed when what Kubernetes says was taken in once.
func (p *Pools) Synced() <-chan struct{} { return p.synced }

// often asks endpoints again who they are, and reads the file again when it has changed.
func (p *Pools) often(now time.Time, n int) {
	p.mu.Lock()
	p.askLocked(now, n)
	p.mu.Unlock()
	if n%fileTicks != 0 || !p.stamps.Changed() {
		return
	}
	err := p.load()
	p.mu.Lock()
	was := p.fault
	p.fault = err
	p.stale = p.stale || err == nil
	p.mu.Unlock()
	switch {
	case err == nil:
		p.log.Info("configuration read", "file", p.options.File)
		p.stir()
	case was == nil || was.Error() != err.Error():
		p.log.Warn("configuration refused, what was read before holds", "file", p.options.File, "error", err)
	}
}

// publishLocked makes the tables of all pools and publishes them.
func (p *Pools) publishLocked() {
	p.dirty = false
	if p.cluster == nil {
		return
	}
	views := make(map[string]*pick.Endpoint, len(p.state.endpoints))
	for address, e := range p.state.endpoints {
		views[address] = e.view()
	}
	for _, own := range p.pools {
		own.table = own.tabulate(views, p)
		for m := range own.table.All() {
			if setEngines(m, own.models[m.Name].resource) {
				p.loader.again()
			}
		}
		own.picker.Publish(own.table)
	}
}

// measuredLocked takes in what an endpoint's engine has done: for the first pool that has
// it, which is enough.
func (p *Pools) measuredLocked(w work, now time.Time) {
	for _, own := range p.pools {
		if _, ok := slices.BinarySearch(own.addresses, w.address); ok && own.table != nil {
			p.state.measured(own.picker, own.table, w, now)
			return
		}
	}
}

// poolRemedies are what to do about endpoints of pools.
var poolRemedies = remedies{
	down:    "check the Pods: they are Ready, and their engines do not answer",
	metrics: "start engines with metrics (llama-server: --metrics, SGLang: --enable-metrics), or let extproc reach them",
	events:  "start vLLM with --kv-events-config, publisher zmq and endpoint tcp://*:PORT, or take the Pod's announcement away",
}

// Conditions returns what is wrong: pools that do not exist, endpoints that do not answer.
func (p *Pools) Conditions() []obs.Condition {
	p.mu.Lock()
	fault, cluster := p.fault, p.cluster
	p.mu.Unlock()
	var all []obs.Condition
	if fault != nil {
		all = append(all, obs.Condition{
			Code: "configuration-refused", Text: fault.Error() + "; the previous configuration stays in force", Next: "correct the file; it is read again as soon as it changes",
		})
	}
	if cluster == nil {
		all = append(all, obs.Condition{
			Code: "no-fleet", Text: "pools and Pods were not listed yet: until then the gateway's own policy chooses",
			Next: "see the other conditions for what could not be listed", Severity: obs.Blocking,
		})
	} else {
		for i := range cluster.Pools {
			own := &cluster.Pools[i]
			name := own.Namespace + "/" + own.Name
			switch {
			case !own.Exists:
				all = append(all, obs.Condition{Code: "pool-missing", Text: "InferencePool " + name + " does not exist; its requests are answered with 503", Next: "create it, or correct -pool"})
			case len(inventory.OfPods(&own.Pool, cluster.Pods)) == 0:
				all = append(all, obs.Condition{Code: "pool-empty", Text: "InferencePool " + name + " has no Pod that is Ready; its requests wait or are answered with 503", Next: "check its selector, its targetPorts and its Pods"})
			}
		}
	}
	return append(all, p.probed.conditions(poolRemedies)...)
}

// Named returns the number of the pool with a name, "namespace/name".
func (p *Pools) Named(name string) (int, bool) {
	c := p.latest.Load()
	if c == nil {
		return 0, false
	}
	i := slices.IndexFunc(c.Pools, func(own Pool) bool { return own.Namespace+"/"+own.Name == name })
	return i, i >= 0
}

// AskedAs returns the number of the only pool whose picker is the Service of a host name,
// "service.namespace…", at a port; 0: whatever port.
func (p *Pools) AskedAs(host string, port int) (n int, ok bool) {
	service, rest, _ := strings.Cut(host, ".")
	namespace, _, _ := strings.Cut(rest, ".")
	c := p.latest.Load()
	if c == nil {
		return 0, false
	}
	for i := range c.Pools {
		own := &c.Pools[i]
		if own.Picker.Service != service || own.Namespace != namespace || port != 0 && own.Picker.Port != port {
			continue
		}
		if ok {
			return 0, false // two are asked for under one name
		}
		n, ok = i, true
	}
	return n, ok
}
