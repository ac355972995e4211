// Package kube is a Kubernetes cluster as xds sees it: the source of the desired state
// (Models, Policies and Endpoints of one namespace), who of several xds leads, what is
// known of nodes and engine Pods, and the one writer of statuses and of the labels that
// say what a Pod serves. Called by main; what it observes of nodes and leaders goes to
// fleet as events.
//
// Its one rule: all that is decided is pure (objects, nodes, status); while the API
// server is away nothing changes, and a start without it takes up the copy of what was
// there last.
//
// What it asks the API server for, which is all that its account needs:
//
//	namespaced, millrace.dev: models, policies, foreignendpoints              list, watch
//	namespaced, millrace.dev: models/status, policies/status,
//	                          foreignendpoints/status                         patch
//	namespaced, core: pods                                                    list, watch, patch
//	namespaced, coordination.k8s.io: leases, by name                          get, update
//	cluster-wide, core: nodes                                                 list, watch
//
// The lease must be there. Kinds and resources are known: nothing is discovered.
package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/kube"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/internal/fleet"
)

const (
	// keyEvery is how often the file of the cookies' key is read, gather how long changes
	// of objects and of nodes are gathered.
	keyEvery = time.Second
	gather   = 50 * time.Millisecond
	// awayAfter is how long nothing is answered until the API server counts as away.
	awayAfter = 20 * time.Second
)

// Config says which cluster it is, and who we are in it.
type Config struct {
	// Namespace has the objects, the engines' Pods and the lease; empty: there is no
	// cluster.
	Namespace string
	// Lease is the lease's name, Identity how this xds calls itself in it: no two may have
	// the same at a time.
	Lease, Identity string
	// Engines selects the engines' Pods by their labels.
	Engines string
	// Copy is the file with the copy of what was there last; empty: there is none.
	Copy string
	// Models is the folder at which relative paths start.
	Models string
	// CookieKey is the file with the key of cookies for a policy that names none; empty:
	// each xds makes its own.
	CookieKey string
	// Address is the URL of the API for the statuses of models; empty: not known.
	Address string
	// Unmet returns what of the policy can't be followed though it is in force; nil:
	// nothing is known of that.
	Unmet func() []obs.Condition
	// Admit returns what keeps a State from being in force.
	Admit desired.Admit
	// Log is where changes are logged.
	Log *slog.Logger
}

// Fleet is what the cluster is observed for.
type Fleet interface {
	// Post gives it an event.
	Post(ctx context.Context, ev fleet.Event)
	// Latest returns its last snapshot, and a channel that is closed with the next one.
	Latest() (*fleet.Snapshot, <-chan struct{})
}

// Cluster is a Kubernetes cluster.
type Cluster struct {
	// Constant after Open.
	cfg     Config
	cache   cache.Cache
	client  client.Client
	leases  kubernetes.Interface
	engines labels.Selector
	// objects and nodes are signalled when one of them has changed.
	objects, nodes chan struct{}

	// Atomic.
	elector  atomic.Pointer[leaderelection.LeaderElector] // nil: none yet
	answered atomic.Int64                                 // when the API server last did, ns since the epoch
	unread   atomic.Pointer[string]                       // why something could not be listed or watched last; nil: it could

	// mu guards the fields below.
	mu     sync.Mutex
	judged judgement
	next   chan struct{} // closed when judged is replaced
	key    []byte        // that of CookieKey
	saved  saved
}

// Open prepares for the cluster in which this process runs, or that $KUBECONFIG names,
// and reads the copy of what was there last. It asks nobody for anything.
func Open(cfg Config) (*Cluster, error) {
	access, err := connect()
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		cfg: cfg, next: make(chan struct{}), objects: make(chan struct{}, 1), nodes: make(chan struct{}, 1),
		saved: saved{Namespace: cfg.Namespace},
	}
	c.answered.Store(time.Now().UnixNano())
	if c.engines, err = labels.Parse(cfg.Engines); err != nil {
		return nil, fmt.Errorf("-kube-engines: %w", err)
	}
	if c.key, err = c.readKey(); err != nil {
		return nil, fmt.Errorf("-cookie-key: %w", err)
	}
	quiet.Do(func() { libraries(cfg.Log) })
	if err := c.dial(access); err != nil {
		return nil, err
	}
	c.restore()
	return c, nil
}

// connect returns how the API server is reached.
func connect() (*rest.Config, error) {
	access, err := kube.Config()
	if err != nil {
		return nil, &obs.Hint{Err: fmt.Errorf("-kube: %w", err), Next: "run xds in a Pod with a ServiceAccount, or set KUBECONFIG"}
	}
	access.UserAgent = "millrace-xds"
	access.QPS, access.Burst = 50, 100
	return access, nil
}

// readKey reads the key of the installation; nil if it has none.
func (c *Cluster) readKey() ([]byte, error) {
	if c.cfg.CookieKey == "" {
		return nil, nil
	}
	return config.Cookie{KeyFile: c.cfg.CookieKey}.Key()
}

// restore takes up the copy.
func (c *Cluster) restore() {
	s, ok, err := load(c.cfg.Copy, c.cfg.Namespace)
	if err != nil {
		c.cfg.Log.Warn("copy of the desired state not read", "err", err)
	}
	if !ok {
		return
	}
	if c.saved = s; !s.Judged {
		return
	}
	j := c.rules().judge(s.Objects, judgement{goods: s.goodsOf()})
	j.published.Stale = "the API server has not answered since this xds started"
	c.judged = j
	c.cfg.Log.Info("copy of the desired state in force", "objects", len(s.Objects), "faults", len(j.published.Faults))
}

func (c *Cluster) rules() rules {
	return rules{dir: c.cfg.Models, key: keyOf(c.key), admit: c.cfg.Admit}
}

// Latest returns what is desired, and a channel that is closed when there is something
// newer.
func (c *Cluster) Latest() (desired.Published, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.judged.published, c.next
}

// Run follows the objects until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.cache.Start(ctx) })
	g.Go(func() error { return c.follow(ctx) })
	return g.Wait()
}

// Serve observes leaders and nodes for the fleet, and writes back what became of the
// objects, until ctx ends. The lease is let go when leading ends, which is before.
func (c *Cluster) Serve(ctx, leading context.Context, f Fleet) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.lead(ctx, leading, f) })
	g.Go(func() error { return c.followNodes(ctx, f) })
	g.Go(func() error { return c.writeAll(ctx, f) })
	return g.Wait()
}

// follow judges the objects whenever they, or the key of cookies, have changed.
func (c *Cluster) follow(ctx context.Context) error {
	if !c.synced(ctx, kinds()...) {
		return nil
	}
	tick := time.NewTicker(keyEvery)
	defer tick.Stop()
	for changed := true; ; {
		if changed {
			all, err := c.list(ctx)
			if err != nil {
				return err
			}
			c.judge(all)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			changed = c.renewKey()
		case <-c.objects:
			changed = true
			if !wait(ctx, gather) {
				return nil
			}
		}
	}
}

// renewKey reads the key again, and returns whether it is another. A key that can't be
// read changes nothing.
func (c *Cluster) renewKey() bool {
	key, err := c.readKey()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || bytes.Equal(key, c.key) {
		return false
	}
	c.key = key
	return true
}

// judge makes the objects the desired ones.
func (c *Cluster) judge(all []object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.judged
	c.judged = c.rules().judge(all, before)
	now := c.judged.published
	if len(now.Faults) > 0 && fmt.Sprint(now.Faults) != fmt.Sprint(before.published.Faults) {
		c.cfg.Log.Warn("objects refused", "faults", len(now.Faults), "first", now.Faults[0].Kind+"/"+now.Faults[0].Name+": "+now.Faults[0].Error())
	}
	if now.State != before.published.State {
		c.cfg.Log.Info("objects read", "version", now.State.Version, "models", len(now.State.Models), "faults", len(now.Faults))
	}
	close(c.next)
	c.next = make(chan struct{})
	c.saved.Judged, c.saved.Objects, c.saved.Goods = true, all, nil
	for _, g := range c.judged.goods {
		c.saved.Goods = append(c.saved.Goods, g)
	}
	c.saveLocked()
}

// saveLocked writes the copy. That it can't be written is no harm now.
func (c *Cluster) saveLocked() {
	if err := c.saved.save(c.cfg.Copy); err != nil {
		c.cfg.Log.Warn("copy of the desired state not written", "err", err)
	}
}

// followNodes gives the fleet what is known of the nodes whenever it has changed.
func (c *Cluster) followNodes(ctx context.Context, f Fleet) error {
	if !c.synced(ctx, nodeKinds()...) {
		return nil
	}
	for {
		nodes, pods, err := c.listNodes(ctx)
		if err != nil {
			return err
		}
		f.Post(ctx, fleet.ClusterObserved{Nodes: clusterNodes(nodes, pods)})
		select {
		case <-ctx.Done():
			return nil
		case <-c.nodes:
			if !wait(ctx, gather) {
				return nil
			}
		}
	}
}

// Conditions returns what is wrong with the way to the cluster. xds is as ready as ever.
func (c *Cluster) Conditions() []obs.Condition {
	var all []obs.Condition
	if last := time.Unix(0, c.answered.Load()); time.Since(last) >= awayAfter {
		all = append(all, obs.Condition{
			Code: "api-server-away", Text: fmt.Sprintf("the API server has not answered since %s", last.UTC().Format(time.TimeOnly)),
			Next: "check that the API server runs, and that the ServiceAccount may get and update the Lease; routing continues meanwhile",
		})
	}
	c.mu.Lock()
	stale := c.judged.published.State == nil || c.judged.published.Stale != ""
	c.mu.Unlock()
	if why := c.unread.Load(); why != nil && stale {
		all = append(all, obs.Condition{
			Code: "objects-not-read", Text: "Models, Policies and Endpoints were not read: " + *why,
			Next: "install the CRDs, and give the account of xds the rights of its Role",
		})
	}
	return all
}

// missed takes in why something could not be listed or watched. It is tried again.
func (c *Cluster) missed(err error) {
	why := err.Error()
	if before := c.unread.Swap(&why); before == nil || *before != why {
		c.cfg.Log.Warn("not listed or watched", "err", err)
	}
}

// wait returns whether d has passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// errEnded is for reads that ctx has ended.
func errEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
