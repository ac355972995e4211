package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/envoy"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
)

// fakeNode is a nodeagent and an engine in one: it reports over the real stream,
// follows directives, and answers HTTP.
type fakeNode struct {
	name     string
	capacity float64
	ln       net.Listener
	// code is the status of answers to requests.
	code atomic.Int32
	// sick is whether health checks fail.
	sick atomic.Bool
	// served counts the requests that came.
	served atomic.Int64
	// seen is the header of the last one.
	seen atomic.Pointer[http.Header]

	mu     sync.Mutex
	hung   chan struct{} // not nil: nothing that comes is noticed until it is closed
	status *enginepb.Status
	mute   string        // engine_error to be sent instead of the status
	change chan struct{} // wakes the reporter
}

func newFakeNode(t *testing.T, name string, capacity float64) *fakeNode {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{name: name, capacity: capacity, ln: ln, change: make(chan struct{}, 1)}
	n.code.Store(http.StatusOK)
	n.status = &enginepb.Status{
		Node: name, State: enginepb.State_IDLE, HttpAddress: ln.Addr().String(),
		GrpcAddress: "127.0.0.1:1", ShardAddress: "127.0.0.1:2",
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = obs.Serve(ctx, listener{ln, n}, n) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return n
}

// listener gives connections that hang when their node does.
type listener struct {
	net.Listener
	node *fakeNode
}

// Accept waits for the next connection.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return conn{c, l.node}, err
}

type conn struct {
	net.Conn
	node *fakeNode
}

// Read keeps what has come to itself while the node hangs.
func (c conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.node.mu.Lock()
	hung := c.node.hung
	c.node.mu.Unlock()
	if hung != nil {
		<-hung
	}
	return n, err
}

// ServeHTTP answers as an engine does.
func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/health" {
		if n.sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return
	}
	h := r.Header.Clone()
	h.Set(":path", r.URL.Path)
	n.seen.Store(&h)
	n.served.Add(1)
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("x-millrace-node", n.name)
	w.Header().Set("endpoint-load-metrics", "TEXT rps_fractional=1")
	w.WriteHeader(int(n.code.Load()))
	_, _ = io.WriteString(w, `{"node":"`+n.name+`"}`)
}

// set changes what is reported, at once.
func (n *fakeNode) set(f func(s *enginepb.Status)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n.status)
	n.wake()
}

func (n *fakeNode) wake() {
	select {
	case n.change <- struct{}{}:
	default:
	}
}

func (n *fakeNode) report(seq uint64) *fleetpb.NodeReport {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &fleetpb.NodeReport{
		Node: n.name, Seq: seq, Sent: timestamppb.Now(), EngineError: n.mute,
		Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 1, Capacity: n.capacity},
	}
	if n.mute == "" {
		s := n.status
		r.Engine = &enginepb.Status{
			Node: s.Node, Generation: s.Generation, State: s.State, Reason: s.Reason, HttpAddress: s.HttpAddress,
			GrpcAddress: s.GrpcAddress, ShardAddress: s.ShardAddress, Assignment: s.Assignment,
		}
	}
	return r
}

// run reports to xds until ctx ends, over as many streams as it takes.
func (n *fakeNode) run(ctx context.Context, xds string) error {
	conn, err := grpc.NewClient(xds, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, MaxDelay: 200 * time.Millisecond, Multiplier: 2}}))
	if err != nil {
		return err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		_ = n.stream(ctx, fleetpb.NewFleetClient(conn)) // xds may be away
	}
	return nil
}

func (n *fakeNode) stream(ctx context.Context, c fleetpb.FleetClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Report(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	go func() {
		defer cancel()
		for {
			d, err := s.Recv()
			if err != nil {
				return
			}
			n.set(func(s *enginepb.Status) {
				s.Assignment, s.Generation, s.State = d.GetAssignment(), d.GetAssignment().GetGeneration(), enginepb.State_READY
			})
		}
	}()
	beat := time.NewTicker(500 * time.Millisecond)
	defer beat.Stop()
	for seq := uint64(1); ; seq++ {
		if err := s.Send(n.report(seq)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
		case <-n.change:
		}
	}
}

// gateway is xds and Envoy, real, over fake nodes.
type gateway struct {
	listen, admin, xdsAddr, metrics string
	dir                             string
	xdsArgs                         []string
	xds                             *rig.Process
	nodes                           map[string]*fakeNode
}

// newGateway starts xds, Envoy and three nodes: node-a and node-b share a replica
// worth 100 tokens/s, node-c has one worth 50. more are further flags of xds.
func newGateway(t *testing.T, extproc string, more ...string) *gateway {
	t.Helper()
	at := rig.MustAddresses(t, 4)
	g := &gateway{listen: at[0], admin: at[1], xdsAddr: at[2], metrics: at[3], dir: t.TempDir(), nodes: map[string]*fakeNode{}}
	config := rig.Write(t, filepath.Join(g.dir, "config.yaml"), gatewayConfig)
	g.xdsArgs = append([]string{"-listen", g.xdsAddr, "-metrics", g.metrics, "-gateway", g.listen, "-config", config,
		"-access-log", filepath.Join(g.dir, "access.log"), "-extproc", extproc}, more...)
	g.startXDS(t)
	g.startEnvoy(t)
	for name, capacity := range map[string]float64{"node-a": 100, "node-b": 0, "node-c": 50} {
		g.nodes[name] = newFakeNode(t, name, capacity)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.nodes[name].run(ctx, g.xdsAddr) })
		t.Cleanup(func() { cancel(); wg.Wait() })
	}
	ready := func() error {
		if _, err := rig.Get(g.url("/v1/models")); err != nil {
			return err
		}
		return g.has(2)
	}
	rig.Wait(t, 20*time.Second, "Envoy serves both replicas", ready)
	return g
}

const gatewayConfig = `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec:
  weights: /models/any.gguf
  replicas: 2
  layout: [{stages: 2, shares: [1, 1]}, {stages: 1}]
---
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: other}
spec:
  weights: /models/other.gguf
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec:
  cors: {origins: ["https://chat.example.com"], maxAge: 5m}
`

func (g *gateway) startXDS(t *testing.T) {
	t.Helper()
	g.xds = rig.StartProgram(t, "xds", g.xdsArgs...)
}

func (g *gateway) startEnvoy(t *testing.T) {
	t.Helper()
	b, err := envoy.Bootstrap(envoy.Options{Admin: g.admin, XDS: g.xdsAddr})
	if err != nil {
		t.Fatal(err)
	}
	rig.StartEnvoy(t, rig.Write(t, filepath.Join(g.dir, "envoy.json"), string(b)), 1)
}

// has says why Envoy doesn't have n healthy hosts for the model.
func (g *gateway) has(n int) error {
	b, err := rig.Get("http://" + g.admin + "/clusters?filter=" + "engines/smollm2")
	if err != nil {
		return err
	}
	if got := strings.Count(string(b), "health_flags::healthy"); got != n {
		return fmt.Errorf("%d healthy hosts, want %d:\n%s", got, n, b)
	}
	return nil
}

// stat returns one of Envoy's counters.
func (g *gateway) stat(t *testing.T, name string) float64 {
	t.Helper()
	v, err := rig.EnvoyStat(g.admin, name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// url returns an address on the gateway.
func (g *gateway) url(path string) string { return "http://" + g.listen + path }

// served returns how many of the requests made by f each node served.
func (g *gateway) served(f func()) map[string]int {
	before := map[string]int64{}
	for name, n := range g.nodes {
		before[name] = n.served.Load()
	}
	f()
	counts := map[string]int{}
	for name, n := range g.nodes {
		counts[name] = int(n.served.Load() - before[name])
	}
	return counts
}
