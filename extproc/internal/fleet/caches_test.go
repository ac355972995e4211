package fleet

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// cached is the resource of a segment whose keys have ten tokens each.
func cached(epoch, id uint64, keys ...uint64) *discovery.Resource {
	s := &enginepb.CacheSegment{Id: id, Keys: keys}
	for range keys {
		s.Tokens = append(s.Tokens, 10)
	}
	return resource(fmt.Sprint("127.0.0.1:1/", id), fmt.Sprint(id, keys), &fleetpb.CacheState{Address: "127.0.0.1:1", Epoch: epoch, Segment: s})
}

func dropped(names ...string) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: wire.CacheType, RemovedResources: names}
}

// cachedBlocks is the resource of a segment of a log of blocks; a key below 0 is evicted.
func cachedBlocks(epoch, id uint64, complete bool, keys ...int64) *discovery.Resource {
	s := &enginepb.CacheSegment{Id: id}
	for _, k := range keys {
		s.Keys, s.Tokens = append(s.Keys, uint64(max(k, -k))), append(s.Tokens, uint32(16*min(1, max(0, k))))
	}
	return resource(fmt.Sprint("127.0.0.1:1/", id), fmt.Sprint(id, keys), &fleetpb.CacheState{
		Address: "127.0.0.1:1", Epoch: epoch, Segment: s, BlockTokens: 16, Complete: complete,
	})
}

func TestCachesThatEnginesReport(t *testing.T) {
	endpoint := func(epoch uint64) *discovery.DeltaDiscoveryResponse {
		return say(wire.EndpointType, resource("127.0.0.1:1", "1", endpointState("127.0.0.1:1", func(m *fleetpb.EndpointState) { m.Epoch = epoch })))
	}
	tests := []struct {
		name string
		said []*discovery.DeltaDiscoveryResponse
		// want are the keys of what is cached.
		want []int
	}{
		{
			name: "in the order of the log, whatever that of the response",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 3, 7), cached(1, 2, 5, 6))},
			want: []int{5, 6, 7},
		},
		{
			name: "before the endpoint is known",
			said: []*discovery.DeltaDiscoveryResponse{say(wire.CacheType, cached(1, 2, 5)), endpoint(1)},
			want: []int{5},
		},
		{
			name: "more of a segment",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 2, 5)), say(wire.CacheType, cached(1, 2, 5, 6)), endpoint(1)},
			want: []int{5, 6},
		},
		{
			name: "a segment that is dropped",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 2, 5)), dropped("127.0.0.1:1/2", "127.0.0.1:1/2", "127.0.0.1:9/1", "x")},
			want: nil,
		},
		{
			name: "the next epoch's segments wait for the endpoint, and the last one's drop nothing of it",
			said: []*discovery.DeltaDiscoveryResponse{
				endpoint(1), say(wire.CacheType, cached(1, 2, 5), cached(1, 3, 6)),
				say(wire.CacheType, cached(2, 1, 8)), endpoint(2), dropped("127.0.0.1:1/2", "127.0.0.1:1/3"),
			},
			want: []int{8},
		},
		{
			name: "an id that comes again in the next epoch",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 2, 5, 6)), endpoint(2), say(wire.CacheType, cached(2, 2, 8))},
			want: []int{8},
		},
		{
			name: "a log of blocks, in whatever order",
			said: []*discovery.DeltaDiscoveryResponse{
				say(wire.CacheType, cachedBlocks(1, 9, true, -6, 8)), endpoint(1), say(wire.CacheType, cachedBlocks(1, 7, true, 5, 6, 7), cachedBlocks(1, 8, true, -5)),
			},
			want: []int{7, 8},
		},
		{
			name: "a segment of a log of blocks that is dropped",
			said: []*discovery.DeltaDiscoveryResponse{
				endpoint(1), say(wire.CacheType, cachedBlocks(1, 7, true, 5, 6, 7), cachedBlocks(1, 8, true, 6)), dropped("127.0.0.1:1/7", "127.0.0.1:1/7"),
			},
			want: []int{6},
		},
		{
			name: "a log of blocks of another epoch",
			said: []*discovery.DeltaDiscoveryResponse{
				endpoint(1), say(wire.CacheType, cachedBlocks(1, 7, true, 5, 6, 7)), say(wire.CacheType, cachedBlocks(2, 7, true, 4, 6)), endpoint(2),
			},
			want: []int{4, 6},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newState(true)
			apply(t, s, tt.said...)
			e := s.endpoints["127.0.0.1:1"]
			var got []int
			for k := range 10 {
				m, ok := s.policy.Prefixes.Get(session.Key(k), time.Now())
				if ok && e.kv.Has(m) || e.blocks != nil && k > 0 && e.blocks.Count([]blocks.Key{blocks.Key(k)}) > 0 {
					got = append(got, k)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestLogsOfBlocks says by the newest segment how much is known, and lets a table say that
// there is one as soon as it comes.
func TestLogsOfBlocks(t *testing.T) {
	s := full(t)
	if s.stale || s.table().Models["m"].Endpoints[0].Blocks != nil {
		t.Fatal("there are blocks, though nothing was reported")
	}
	apply(t, s, say(wire.CacheType, cachedBlocks(1, 7, false, 5)))
	e := s.table().Models["m"].Endpoints[0]
	if !s.stale || e.Blocks == nil || len(s.table().Models["m"].WithBlocks) != 1 {
		t.Fatalf("stale %v, endpoint %+v", s.stale, e)
	}
	if k, size := e.Blocks.Knowledge(); k != blocks.Parts || size != 16 {
		t.Errorf("knowledge %d, blocks of %d tokens", k, size)
	}
	apply(t, s, say(wire.CacheType, cachedBlocks(1, 8, true)))
	if k, _ := e.Blocks.Knowledge(); k != blocks.Whole {
		t.Errorf("knowledge %d, though the newest segment says that this is all", k)
	}
	apply(t, s, dropped("127.0.0.1:1/7", "127.0.0.1:1/8"))
	if k, _ := e.Blocks.Knowledge(); k != blocks.Nothing || e.Blocks.Len() != 0 {
		t.Errorf("knowledge %d of %d blocks after all is dropped", k, e.Blocks.Len())
	}
}

// TestAnotherPolicyForgetsNoCache changes how many sessions are remembered.
func TestAnotherPolicyForgetsNoCache(t *testing.T) {
	s := newState(true)
	apply(t, s, say(wire.PolicyType, resource("default", "1", somePolicy)), say(wire.ModelType), say(wire.EndpointType, resource("127.0.0.1:1", "1", endpointState("127.0.0.1:1"))),
		say(wire.CacheType, cached(1, 2, 5, 6)))
	other := proto.CloneOf(somePolicy)
	other.MaxSessions = 7 + somePolicy.GetMaxSessions()
	apply(t, s, say(wire.PolicyType, resource("default", "2", other)))
	for _, key := range []session.Key{5, 6} {
		if p, ok := s.policy.Prefixes.Get(key, time.Now()); !ok || p.Tokens != 10 {
			t.Errorf("key %d: %+v, %v", key, p, ok)
		}
	}
}

func TestCachesThatBreakTheRules(t *testing.T) {
	s := newState(true)
	bad := cached(1, 2, 5)
	bad.Name = "127.0.0.1:1/9"
	short := resource("127.0.0.1:1/3", "1", &fleetpb.CacheState{Address: "127.0.0.1:1", Segment: &enginepb.CacheSegment{Id: 3, Keys: []uint64{1}}})
	for _, r := range []*discovery.Resource{bad, short, resource("127.0.0.1:1/0", "1", &fleetpb.CacheState{Address: "127.0.0.1:1"})} {
		if err := s.apply(say(wire.CacheType, r), time.Now()); err == nil {
			t.Errorf("%s is taken", r.GetName())
		}
	}
}

// TestOlderXDS: one that ends the stream at a type that it doesn't know is asked for
// the others alone, and no table waits for what it does not say.
func TestOlderXDS(t *testing.T) {
	fake := &fakeXDS{received: make(chan *discovery.DeltaDiscoveryRequest, 10), say: make(chan *discovery.DeltaDiscoveryResponse), cut: make(chan struct{})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, fake)
	go g.Serve(ln)
	defer g.Stop()
	tables := make(chan *pick.Table, 10)
	c := New(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), tablesTo(tables), nil, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	go c.Run(t.Context())
	for range types {
		<-fake.received
	}
	fake.say <- say(wire.PolicyType, resource("default", "1", somePolicy))
	fake.say <- say(wire.ModelType)
	fake.say <- say(wire.EndpointType)
	<-tables
	for range 3 {
		<-fake.received // that it has taken them
	}
	fake.cut <- struct{}{}
	for _, typ := range types[:3] {
		if r := <-fake.received; r.GetTypeUrl() != typ {
			t.Errorf("asked for %s, want %s", r.GetTypeUrl(), typ)
		}
	}
	fake.say <- say(wire.ModelType)
	if r := <-fake.received; r.GetTypeUrl() != wire.ModelType || r.GetResponseNonce() != "n" {
		t.Errorf("got %v, want that the model type is taken", r)
	}
}
