package gateway

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"millrace.dev/millrace/e2e/rig"
)

// collector receives spans.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans map[string]*tracev1.Span // by id
}

// Export takes spans.
func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans[hex.EncodeToString(s.GetSpanId())] = s
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{spans: map[string]*tracev1.Span{}}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { s.Stop(); wg.Wait() })
	return c, ln.Addr().String()
}

// up returns the names of the spans from the one with that id to the root.
func (c *collector) up(id string) (names []string, root *tracev1.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := c.spans[id]; s != nil; s = c.spans[id] {
		names, root = append(names, s.GetName()), s
		id = hex.EncodeToString(s.GetParentSpanId())
	}
	return names, root
}

// TestGatewayTraces shows that engine and extproc find the parent of their spans
// in what they get, and that each attempt has a span of its own.
func TestGatewayTraces(t *testing.T) {
	spans, addr := startCollector(t)
	p, picker := startPicker(t)
	p.order("")
	g := newGateway(t, picker, "-traces", "otlp://"+addr)
	if err := rig.Poll(5*time.Second, func() error { return g.picked(p) }); err != nil {
		t.Fatal(err)
	}
	a, c := g.nodes["node-a"], g.nodes["node-c"]
	p.order(c.ln.Addr().String() + "," + a.ln.Addr().String())
	c.code.Store(503)
	g.must(t, 200)
	var chains []string
	for _, n := range []*fakeNode{c, a} {
		id := parent(n.seen.Load().Get("traceparent"))
		err := rig.Poll(8*time.Second, func() error { // Envoy sends spans every 5 s
			if names, root := spans.up(id); len(names) < 2 || len(root.GetParentSpanId()) > 0 {
				return fmt.Errorf("span %s leads to %v", id, names)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		names, root := spans.up(id)
		chains = append(chains, fmt.Sprintf("%x %s", root.GetSpanId(), strings.Join(names, " < ")), id)
	}
	t.Log(chains)
	if chains[0] != chains[2] || chains[1] == chains[3] {
		t.Errorf("two attempts of one request have the spans %v, want two below one root", chains)
	}
}

// parent returns the id of the span in a traceparent header.
func parent(header string) string {
	if parts := strings.Split(header, "-"); len(parts) == 4 {
		return parts[2]
	}
	return header
}
