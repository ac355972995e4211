package ads

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// segment returns a resource of the caches' type.
func segment(engine, id, tokens int) (string, proto.Message) {
	m := &fleetpb.CacheState{
		Address: fmt.Sprintf("127.1.%d.%d:80", engine>>8, engine&255), Epoch: 1,
		Segment: &enginepb.CacheSegment{Id: uint64(id), Keys: []uint64{1, 2}, Tokens: []uint32{1, uint32(tokens)}},
	}
	return fmt.Sprintf("%s/%d", m.Address, id), m
}

// BenchmarkCaches is one push to one client of a hundred changed segments, of all that
// so many engines have. There are ten a second.
func BenchmarkCaches(b *testing.B) {
	for _, engines := range []int{100, 1000} {
		b.Run(fmt.Sprintf("engines=%d", engines), func(b *testing.B) {
			s := New(b.Context(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			s.Release()
			all := map[string]proto.Message{}
			for i := range engines * enginepb.MaxSegments {
				name, m := segment(i/enginepb.MaxSegments, i%enginepb.MaxSegments+1, 0)
				all[name] = m
			}
			if err := s.UpdateCaches(all, nil); err != nil {
				b.Fatal(err)
			}
			ack := follow(b, s, len(all))
			b.ReportAllocs()
			for n := 1; b.Loop(); n++ {
				changed := map[string]proto.Message{}
				for i := range 100 {
					name, m := segment(i, 1+n%enginepb.MaxSegments, n)
					changed[name] = m
				}
				if err := s.UpdateCaches(changed, nil); err != nil {
					b.Fatal(err)
				}
				ack(len(changed))
			}
		})
	}
}

// follow subscribes to all caches, and returns what waits for so many resources and
// accepts them.
func follow(b *testing.B, s *Server, first int) (ack func(want int)) {
	ln := bufconn.Listen(1 << 20)
	srv := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, s)
	go func() { _ = srv.Serve(ln) }()
	b.Cleanup(srv.Stop)
	conn, err := grpc.NewClient("passthrough:///ads", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	send := func(r *discoveryv3.DeltaDiscoveryRequest) {
		r.TypeUrl = wire.CacheType
		if err := stream.Send(r); err != nil {
			b.Fatal(err)
		}
	}
	ack = func(want int) {
		for got := 0; got < want; {
			r, err := stream.Recv()
			if err != nil {
				b.Fatal(err)
			}
			got += len(r.GetResources())
			send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: r.GetNonce()})
		}
	}
	send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}})
	ack(first)
	return ack
}
