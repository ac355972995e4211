//go:build kube

package control

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/xds/fleetpb"
)

// replica is one xds, a process of this machine.
type replica struct {
	t             *testing.T
	name          string
	args          []string
	env           []string
	grpc, metrics string
	cmd           *exec.Cmd
	ended         chan error
}

// newReplica starts an xds on ports that stay its own over restarts.
func newReplica(t *testing.T, name string, env []string, args ...string) *replica {
	t.Helper()
	ports, err := proc.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	x := &replica{t: t, name: name, env: env, grpc: fmt.Sprint("127.0.0.1:", ports[0]), metrics: fmt.Sprint("127.0.0.1:", ports[1])}
	x.args = append([]string{"-listen", x.grpc, "-metrics", x.metrics, "-kube-identity", name}, args...)
	x.start()
	t.Cleanup(func() { x.end(syscall.SIGTERM) })
	return x
}

func (x *replica) start() {
	x.t.Helper()
	x.cmd = exec.Command(filepath.Join("..", "..", "bin", "xds"), x.args...)
	x.cmd.Env = x.env
	stderr, err := x.cmd.StderrPipe()
	if err != nil {
		x.t.Fatal(err)
	}
	if err := x.cmd.Start(); err != nil {
		x.t.Fatalf("%v: run make build first", err)
	}
	x.ended = make(chan error, 1)
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintf(x.t.Output(), "%s %s\n", x.name, lines.Text())
		}
		x.ended <- x.cmd.Wait()
	}()
}

// end sends a signal and waits until the process has ended.
func (x *replica) end(s os.Signal) {
	if x.cmd == nil {
		return
	}
	_ = x.cmd.Process.Signal(s) // of one that has ended already
	<-x.ended
	x.cmd = nil
}

// readyz returns the answer of /readyz; empty: none.
func (x *replica) readyz() (code int, body string) {
	resp, err := http.Get("http://" + x.metrics + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// fakeNode is a nodeagent with an engine that do what directives ask for, at once.
type fakeNode struct {
	name string
	at   int // makes its addresses

	mu       sync.Mutex
	status   *enginepb.Status
	term     uint64
	starts   int // processes that were started
	draining bool
}

func newFakeNode(name string, at int) *fakeNode {
	n := &fakeNode{name: name, at: at}
	n.status = n.idle(enginepb.Version{})
	return n
}

func (n *fakeNode) idle(v enginepb.Version) *enginepb.Status {
	address := func(port int) string { return fmt.Sprintf("198.51.100.%d:%d", n.at, port) }
	return &enginepb.Status{
		Node: n.name, State: enginepb.State_IDLE, Generation: v.Generation, ControlEpoch: v.Epoch, Since: timestamppb.Now(),
		HttpAddress: address(8000), GrpcAddress: address(8001), ShardAddress: address(8002),
	}
}

// report reports to the xds at an address until ctx ends.
func (n *fakeNode) report(ctx context.Context, address string) {
	for ctx.Err() == nil {
		n.reportOnce(ctx, address)
		pause(ctx, 200*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (n *fakeNode) reportOnce(ctx context.Context, address string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return
	}
	defer conn.Close()
	stream, err := fleetpb.NewFleetClient(conn).Report(ctx)
	if err != nil {
		return
	}
	go func() {
		defer cancel()
		for {
			d, err := stream.Recv()
			if err != nil {
				return
			}
			n.obey(d)
		}
	}()
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		n.mu.Lock()
		r := &fleetpb.NodeReport{
			Node: n.name, Seq: seq, Sent: timestamppb.Now(), Engine: n.status, Term: n.term,
			Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 2, Capacity: 10},
		}
		n.mu.Unlock()
		if stream.Send(r) != nil {
			return
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (n *fakeNode) obey(d *fleetpb.Directive) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.term = max(n.term, d.GetTerm())
	a := d.GetAssignment()
	if d.GetTerm() < n.term || a == nil || n.status.Version() == a.Version() || n.status.Version().After(a.Version()) {
		return
	}
	had := n.status.GetAssignment()
	n.status = n.idle(a.Version())
	if a.Releases() {
		return
	}
	if had == nil || !enginepb.SameProcess(had, a) {
		n.starts++
	}
	n.status.State, n.status.Assignment, n.status.Epoch = enginepb.State_READY, a, uint64(n.starts)
}

func (n *fakeNode) started() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}

// subscriber is a gateway as far as xds knows: it keeps the endpoints of one model.
type subscriber struct {
	mu      sync.Mutex
	hosts   []string
	known   bool
	version map[string]string // of the endpoints, by name, as the last xds had it
	least   int               // the fewest hosts since reset
}

// follow subscribes at an address until ctx ends.
func (s *subscriber) follow(ctx context.Context, address, model string) {
	for ctx.Err() == nil {
		s.followOnce(ctx, address, model)
		pause(ctx, 200*time.Millisecond)
	}
}

func (s *subscriber) followOnce(ctx context.Context, address, model string) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return
	}
	const typ = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	s.mu.Lock()
	version := maps.Clone(s.version)
	s.mu.Unlock()
	err = stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "test"}, TypeUrl: typ, ResourceNamesSubscribe: []string{"engines/" + model}, InitialResourceVersions: version,
	})
	for err == nil {
		var r *discoveryv3.DeltaDiscoveryResponse
		if r, err = stream.Recv(); err != nil {
			return
		}
		s.take(r)
		err = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ, ResponseNonce: r.GetNonce()})
	}
}

func (s *subscriber) take(r *discoveryv3.DeltaDiscoveryResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, res := range r.GetResources() {
		var a endpointv3.ClusterLoadAssignment
		if res.GetResource().UnmarshalTo(&a) != nil {
			continue
		}
		s.hosts, s.known, s.version = nil, true, map[string]string{res.GetName(): res.GetVersion()}
		for _, l := range a.GetEndpoints() {
			for _, e := range l.GetLbEndpoints() {
				s.hosts = append(s.hosts, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
			}
		}
		slices.Sort(s.hosts)
		s.least = min(s.least, len(s.hosts))
	}
	if len(r.GetRemovedResources()) > 0 {
		s.hosts, s.least, s.version = nil, 0, nil
	}
}

// served returns the hosts, in order.
func (s *subscriber) served() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.hosts, " ")
}

func (s *subscriber) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.least = len(s.hosts)
}

func (s *subscriber) fewest() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.least
}
