// Package cluster brings up Kubernetes on this machine for tests and for `make
// kube`: etcd, the API server, the controllers, and nodes whose Pods are real
// containers, in network namespaces of their own that nothing leaves. Istio's
// control plane and Gateway API are an option.
//
// The control plane and each node are "machines": a process of ours that is PID 1
// of new namespaces (mount, network, process ids, host name). What runs on a
// machine ends with that process, and so do its mounts and interfaces. The
// control plane's machine is the router between the nodes:
//
//	this machine ── loopback forwards ── control plane 192.0.2.1 ──┬── node1 192.0.2.11, Pods 198.18.1.0/24
//	                                     Services 198.19.0.0/16    └── node2 192.0.2.12, Pods 198.18.2.0/24
//
// Called by e2e/kubernetes, e2e/cluster/kube and tests that need an API server. Its
// one rule: after Down, or after its process was killed, nothing is left.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Options say what a cluster is to have.
type Options struct {
	// Dir holds the cluster's files until Down, which removes it. "" is a new
	// folder for temporary files.
	Dir string
	// Nodes is how many nodes there are. With none there are etcd and the API
	// server alone, on loopback, which needs no root; with one or more also the
	// controllers and DNS.
	Nodes int
	// Istio is whether istiod runs, with Istio's, Gateway API's and the inference
	// extension's resources. It needs a node.
	Istio bool
	// Images are archives (docker or OCI) that every node has.
	Images []string
	// Log gets a line for each step; nil is nowhere.
	Log *slog.Logger
}

// Cluster is a running cluster.
type Cluster struct {
	// Constant after Up.
	dir      string
	lock     *os.File // of dir, as long as this process lives
	programs string   // folder with what Build has made
	log      *slog.Logger
	pki      *authority
	host     *machine // this machine: kubectl and helm run here
	control  *machine // where etcd and the API server run; host without nodes
	server   string   // address of the API server as control's neighbours see it
	etcd     string   // address of etcd
	peer     string   // address of etcd for other members
	nodes    []*Node
	client   *http.Client // of the API server, as admin

	kubeconfig string
	forwards   sync.WaitGroup
	closing    context.Context // done when Down begins
	close      context.CancelFunc

	downOnce sync.Once
	downErr  error // set by downOnce
}

// readyLimit bounds the wait for one part of a cluster. A healthy one needs a tenth.
const readyLimit = 2 * time.Minute

// Up brings a cluster up and returns when the API server answers, every node is
// Ready, and DNS and Istio serve. It leaves nothing behind when it fails.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	programs, err := Programs()
	if err != nil {
		return nil, err
	}
	c := &Cluster{programs: programs, log: o.Log, dir: o.Dir}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	if c.lock, err = lockFolder(&c.dir); err != nil {
		return nil, err
	}
	c.closing, c.close = context.WithCancel(context.Background())
	if err := c.up(ctx, o); err != nil {
		err = errors.Join(err, c.logTails())
		return nil, errors.Join(err, c.Down())
	}
	return c, nil
}

func (o Options) check() error {
	switch {
	case o.Nodes < 0 || o.Nodes > 9:
		return fmt.Errorf("nodes: %d; must be 0 to 9", o.Nodes)
	case o.Istio && o.Nodes == 0:
		return errors.New("istio needs a node")
	case o.Nodes > 0:
		return needs()
	}
	return nil
}

func (c *Cluster) up(ctx context.Context, o Options) error {
	began := time.Now()
	step := func(text string, args ...any) {
		c.log.Info(text, append(args, "after", time.Since(began).Round(100*time.Millisecond).String())...)
	}
	for _, d := range []string{"log", "pki"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			return err
		}
	}
	c.host = &machine{name: "host", logs: c.logs()}
	var err error
	if c.pki, err = newAuthority(filepath.Join(c.dir, "pki")); err != nil {
		return err
	}
	if err := c.makeControl(o.Nodes); err != nil {
		return err
	}
	for i := range o.Nodes {
		n := c.newNode(i)
		c.nodes = append(c.nodes, n) // Down ends what it has made, done or not
		if err := n.make(); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startControl(gctx, o.Nodes > 0) })
	for _, n := range c.nodes {
		g.Go(func() error { return n.startContainerd(gctx, o.images(c.programs)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	step("API server answers", "kubeconfig", c.kubeconfig)
	if o.Nodes == 0 {
		return nil
	}
	return c.upNodes(ctx, o, step)
}

// upNodes joins the nodes, and starts what runs on them.
func (c *Cluster) upNodes(ctx context.Context, o Options, step func(string, ...any)) error {
	for _, n := range c.nodes {
		if err := n.startAgents(); err != nil {
			return err
		}
	}
	c.forwards.Go(func() { c.balance(c.closing) })
	if err := c.applyDNS(ctx); err != nil {
		return err
	}
	if o.Istio {
		if err := c.applyIstio(ctx); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	step("nodes are ready", "nodes", o.Nodes)
	if err := c.Rollout(ctx, "kube-system", "daemonset/coredns"); err != nil {
		return err
	}
	if o.Istio {
		if err := c.Rollout(ctx, "istio-system", "deployment/istiod"); err != nil {
			return err
		}
		step("istiod is ready")
	}
	return nil
}

// Down ends everything and removes the cluster's folder. It may be called again.
func (c *Cluster) Down() error {
	c.downOnce.Do(func() { c.downErr = c.down() })
	return c.downErr
}

func (c *Cluster) down() error {
	c.close()
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.end())
	}
	if c.control != nil {
		c.control.end()
	}
	if c.host != nil {
		c.host.end()
	}
	c.forwards.Wait()
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir), c.lock.Close())...)
}

// Dir returns the folder of the cluster's files.
func (c *Cluster) Dir() string { return c.dir }

func (c *Cluster) logs() string { return filepath.Join(c.dir, "log") }

// AuditLog returns the path of the API server's audit log: one JSON event a line, of
// level Metadata, for every request.
func (c *Cluster) AuditLog() string { return filepath.Join(c.logs(), "audit.log") }

// Nodes returns how many nodes the cluster was made with.
func (c *Cluster) Nodes() int { return len(c.nodes) }

// Node returns the i-th node, from 0.
func (c *Cluster) Node(i int) *Node { return c.nodes[i] }

// tailBytes bounds what is shown of each log.
const tailBytes = 2000

// logTails returns the ends of the logs of all parts as an error, for one that is
// about to be returned.
func (c *Cluster) logTails() error {
	files, _ := filepath.Glob(filepath.Join(c.logs(), "*.log"))
	var errs []error
	for _, path := range files {
		if path == c.AuditLog() {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if size, err := f.Seek(0, io.SeekEnd); err == nil && size > tailBytes {
			_, _ = f.Seek(-tailBytes, io.SeekEnd)
		} else {
			_, _ = f.Seek(0, io.SeekStart)
		}
		b, _ := io.ReadAll(f)
		_ = f.Close()
		errs = append(errs, fmt.Errorf("--- %s\n%s", filepath.Base(path), b))
	}
	return errors.Join(errs...)
}
