package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/internal/ads"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/kube"
)

// cluster is the flags of an xds in a Kubernetes cluster, and what they name.
type cluster struct {
	kube.Config
	// leave is how long it serves on when it is to end.
	leave time.Duration
	*kube.Cluster
}

// settleInCluster is the default of -settle there: nodes find a restarted xds by its name.
const settleInCluster = 10 * time.Second

func (c *cluster) flags(f *program.Flags) {
	name, err := os.Hostname()
	if err != nil {
		name = "xds"
	}
	f.StringVar(&c.Namespace, "kube", "", "Kubernetes `namespace` whose Models, Policies and Endpoints are the configuration, instead of -config")
	f.StringVar(&c.Lease, "kube-lease", "millrace-xds", "`name` of the Lease in that namespace; of several xds the one that holds it directs the nodes and writes statuses")
	f.StringVar(&c.Identity, "kube-identity", name, "`name` of this xds in the Lease; no other xds may have it")
	f.StringVar(&c.Engines, "kube-engines", "app.kubernetes.io/name=millrace,app.kubernetes.io/component=engine", "label `selector` of the engines' Pods")
	f.StringVar(&c.Copy, "kube-copy", "", "`file` to keep a copy of the configuration in, for a start without API server; if empty, no copy is kept")
	f.StringVar(&c.Address, "kube-address", "", "`URL` of the OpenAI API, shown in the statuses of Models")
	f.StringVar(&c.Models, "models", "/models", "`folder` on the nodes that relative paths in objects start at")
	f.StringVar(&c.CookieKey, "cookie-key", "", "`file` with the key that signs session cookies, unless the policy names one; if empty, each xds makes its own")
	f.DurationVar(&c.leave, "leave", 0, "how long it continues to serve after SIGTERM, while /readyz reports that it is not ready")
}

func (c *cluster) validate(o *options) error {
	var errs []error
	if c.leave < 0 {
		errs = append(errs, errors.New("-leave; must be ≥ 0"))
	}
	if c.Namespace == "" {
		if c.CookieKey != "" {
			errs = append(errs, errors.New("-cookie-key; needs -kube, too: in a file, the policy names the key"))
		}
		return errors.Join(errs...)
	}
	if o.config != "" {
		errs = append(errs, errors.New("-config, -kube; give one of them only"))
	}
	if c.Lease == "" || c.Identity == "" {
		errs = append(errs, errors.New("-kube-lease and -kube-identity; must not be empty"))
	}
	if !o.flags.Given("settle") {
		o.settle = settleInCluster
	}
	return errors.Join(errs...)
}

// open makes the cluster the source, if there is one.
func (c *cluster) open(o *options) (err error) {
	c.Admit, c.Unmet, c.Log = o.admit, o.mesh.conditions, o.log
	c.Cluster, err = kube.Open(c.Config)
	return err
}

// fleet returns the fleet, which leads at once where there is no cluster.
func (c *cluster) fleet(settle time.Duration) *fleet.Fleet {
	if c.Cluster == nil {
		return fleet.New(settle, time.Now())
	}
	return fleet.Follower(settle, time.Now())
}

// serve runs what a cluster has more, until ctx ends; leading ends before it.
func (c *cluster) serve(ctx, leading context.Context, g *errgroup.Group, nodes *fleet.Service) {
	if c.Cluster != nil {
		g.Go(func() error { return c.Serve(ctx, leading, nodes) })
	}
}

// conditions returns what is wrong with xds, and with what it directs: nodes, replicas,
// endpoints and objects, which keep it from nothing.
func (c *cluster) conditions(leading context.Context, nodes *fleet.Service, resources *ads.Server) []obs.Condition {
	all := resources.Conditions()
	if c.Cluster != nil {
		all = append(all, c.Conditions()...)
	}
	if leading.Err() != nil {
		all = append(all, obs.Condition{Code: "ending", Text: "xds is shutting down; other replicas of it serve", Next: "wait", Severity: obs.Blocking})
	}
	snap, _ := nodes.Latest()
	if !snap.Settled {
		all = append(all, obs.Condition{
			Code: "not-settled",
			Text: "waiting for the nodes to report; nothing is pushed yet",
			Next: "wait for -settle at most", Severity: obs.Blocking,
		})
	}
	return slices.Concat(all, snap.ObjectConditions(), snap.Conditions)
}
