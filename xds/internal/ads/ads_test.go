package ads

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/translate"
)

// client speaks delta ADS as extproc and Envoy do.
type client struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	// got has the responses that have come.
	got chan *discoveryv3.DeltaDiscoveryResponse
}

// dial runs s for the duration of a test and returns how to connect to it.
func dial(t *testing.T, s *Server) func() *client {
	t.Helper()
	ln := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(grpc.WaitForHandlers(true))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:///ads", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); srv.Stop(); <-served })
	return func() *client {
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		c := &client{t: t, stream: stream, got: make(chan *discoveryv3.DeltaDiscoveryResponse, 16)}
		go func() {
			for {
				r, err := stream.Recv()
				if err != nil {
					return
				}
				c.got <- r
			}
		}()
		return c
	}
}

func (c *client) send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	if r.Node == nil {
		r.Node = &corev3.Node{Id: "test"}
	}
	if r.TypeUrl == "" {
		r.TypeUrl = wire.EndpointType
	}
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// none says that nothing comes while nothing happens.
func (c *client) none() {
	c.t.Helper()
	synctest.Wait()
	if len(c.got) > 0 {
		c.t.Fatalf("unexpected response %v", <-c.got)
	}
}

// next returns the response that has come.
func (c *client) next() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	synctest.Wait()
	select {
	case r := <-c.got:
		return r
	default:
		c.t.Fatal("no response")
		return nil
	}
}

func (c *client) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func names(r *discoveryv3.DeltaDiscoveryResponse) string {
	var all []string
	for _, res := range r.GetResources() {
		all = append(all, res.GetName())
	}
	slices.Sort(all)
	for _, name := range r.GetRemovedResources() {
		all = append(all, "-"+name)
	}
	return strings.Join(all, " ")
}

// endpoints returns resources of one type, each with a weight.
func endpoints(weights map[string]uint32) translate.Resources {
	byName := map[string]proto.Message{}
	for name, w := range weights {
		byName[name] = &fleetpb.EndpointState{Address: name, Weight: w}
	}
	return translate.Resources{wire.EndpointType: byName}
}

func publish(t *testing.T, s *Server, all translate.Resources) {
	t.Helper()
	if _, err := s.Publish(all); err != nil {
		t.Fatal(err)
	}
}

// bubble runs f with a server in fake time.
func bubble(t *testing.T, f func(t *testing.T, s *Server)) {
	synctest.Test(t, func(t *testing.T) {
		f(t, New(t.Context(), slog.New(slog.DiscardHandler), prometheus.NewRegistry()))
	})
}

func TestStreamsWaitForRelease(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		c := dial(t, s)()
		c.send(&discoveryv3.DeltaDiscoveryRequest{})
		publish(t, s, endpoints(map[string]uint32{"a": 1}))
		time.Sleep(time.Minute)
		c.none()
		if s.Clients() != 1 {
			t.Errorf("%d clients, want the waiting one", s.Clients())
		}
		s.Release()
		s.Release()
		if got := names(c.next()); got != "a" {
			t.Errorf("got %q", got)
		}
	})
}

func TestOnlyChangesAreSent(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		publish(t, s, endpoints(map[string]uint32{"a": 1, "b": 1}))
		s.Release()
		c := dial(t, s)()
		c.send(&discoveryv3.DeltaDiscoveryRequest{})
		first := c.next()
		if names(first) != "a b" {
			t.Fatalf("first response %q", names(first))
		}
		c.ack(first)
		publish(t, s, endpoints(map[string]uint32{"a": 1, "b": 1}))
		c.none()
		publish(t, s, endpoints(map[string]uint32{"a": 2, "c": 1}))
		second := c.next()
		if names(second) != "a c -b" {
			t.Errorf("second response %q", names(second))
		}
		c.ack(second)
		c.none()
	})
}

// TestRestartSendsNothingKnown is what a restarted xds must not disturb: a client
// that says which versions it has gets only what is different.
func TestRestartSendsNothingKnown(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		known := map[string]string{}
		publish(t, s, endpoints(map[string]uint32{"a": 1, "b": 1, "c": 1}))
		s.Release()
		c := dial(t, s)()
		c.send(&discoveryv3.DeltaDiscoveryRequest{})
		for _, r := range c.next().GetResources() {
			known[r.GetName()] = r.GetVersion()
		}

		again := New(t.Context(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		publish(t, again, endpoints(map[string]uint32{"a": 1, "b": 2}))
		again.Release()
		d := dial(t, again)()
		d.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: known})
		if got := names(d.next()); got != "b -c" {
			t.Errorf("the restarted server sent %q, want what has changed", got)
		}
	})
}

func TestRefusedPushIsACondition(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		publish(t, s, endpoints(map[string]uint32{"a": 1}))
		s.Release()
		c := dial(t, s)()
		c.send(&discoveryv3.DeltaDiscoveryRequest{})
		r := c.next()
		time.Sleep(100 * time.Millisecond)
		c.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Message: "no such thing"}})
		c.none()
		if got := s.Conditions(); len(got) != 1 || got[0].Text != "test refuses its endpoint_state: no such thing" {
			t.Errorf("conditions %v", got)
		}
		publish(t, s, endpoints(map[string]uint32{"a": 2}))
		c.ack(c.next())
		c.none()
		if got := s.Conditions(); len(got) != 0 {
			t.Errorf("conditions %v after a push that was taken", got)
		}
		m := s.watching.metrics
		acks, nacks := testutil.ToFloat64(m.acks.WithLabelValues("endpoint_state")), testutil.ToFloat64(m.nacks.WithLabelValues("endpoint_state"))
		if acks != 1 || nacks != 1 {
			t.Errorf("%v acks and %v nacks, want one each", acks, nacks)
		}
	})
}

// TestLongReasonsAreCut has a client refuse a push of many resources with a long text, which
// is kept once for each of them.
func TestLongReasonsAreCut(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		publish(t, s, endpoints(map[string]uint32{"a": 1}))
		s.Release()
		c := dial(t, s)()
		c.send(&discoveryv3.DeltaDiscoveryRequest{})
		c.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: c.next().GetNonce(), ErrorDetail: &status.Status{Message: strings.Repeat("a", 1<<20)}})
		c.none()
		all := s.Refusals()
		if len(all) != 1 || len(all[0].Text) != maxReason {
			t.Errorf("%d refusals, the first of %d bytes", len(all), len(all[0].Text))
		}
	})
}

func TestOldProtocolIsRefused(t *testing.T) {
	s := New(t.Context(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err := s.StreamAggregatedResources(nil); grpcstatus.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DELTA_GRPC") {
		t.Errorf("StreamAggregatedResources() = %v", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(reg, "millrace_xds_pushes_total"); err != nil || n != len(translate.Types())+1 {
		t.Errorf("%d series (%v), want every type from the start", n, err)
	}
}
