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
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// recorder notes what it is told.
type recorder []string

func (r *recorder) Segment(cache uint32, id uint64, keys []uint64, tokens []uint32) {
	*r = append(*r, fmt.Sprint("cache ", cache, " segment ", id, ": ", keys, " ", tokens))
}

func (r *recorder) Dropped(cache uint32, id uint64) {
	*r = append(*r, fmt.Sprint("cache ", cache, " dropped ", id))
}

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

func TestCachesThatEnginesTell(t *testing.T) {
	endpoint := func(epoch uint64) *discovery.DeltaDiscoveryResponse {
		return say(wire.EndpointType, resource("127.0.0.1:1", "1", endpointState("127.0.0.1:1", func(m *fleetpb.EndpointState) { m.Epoch = epoch })))
	}
	tests := []struct {
		name string
		said []*discovery.DeltaDiscoveryResponse
		want recorder
	}{
		{
			name: "in the order of the log, whatever that of the response",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 3, 7), cached(1, 2, 5, 6))},
			want: recorder{"cache 1 segment 2: [5 6] [10 10]", "cache 1 segment 3: [7] [10]"},
		},
		{
			name: "before the endpoint is known",
			said: []*discovery.DeltaDiscoveryResponse{say(wire.CacheType, cached(1, 2, 5)), endpoint(1)},
			want: recorder{"cache 1 segment 2: [5] [10]"},
		},
		{
			name: "more of a segment",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 2, 5)), say(wire.CacheType, cached(1, 2, 5, 6)), endpoint(1)},
			want: recorder{"cache 1 segment 2: [5] [10]", "cache 1 segment 2: [6] [10]"},
		},
		{
			name: "a segment that is dropped",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 2, 5)), dropped("127.0.0.1:1/2", "127.0.0.1:1/2", "127.0.0.1:9/1", "x")},
			want: recorder{"cache 1 segment 2: [5] [10]", "cache 1 dropped 2"},
		},
		{
			name: "the next epoch's segments wait for the endpoint, and the last one's drop nothing of it",
			said: []*discovery.DeltaDiscoveryResponse{
				endpoint(1), say(wire.CacheType, cached(1, 2, 5), cached(1, 3, 6)),
				say(wire.CacheType, cached(2, 1, 8)), endpoint(2), dropped("127.0.0.1:1/2", "127.0.0.1:1/3"),
			},
			want: recorder{"cache 1 segment 2: [5] [10]", "cache 1 segment 3: [6] [10]", "cache 2 segment 1: [8] [10]"},
		},
		{
			name: "an id that comes again in the next epoch",
			said: []*discovery.DeltaDiscoveryResponse{endpoint(1), say(wire.CacheType, cached(1, 2, 5, 6)), endpoint(2), say(wire.CacheType, cached(2, 2, 8))},
			want: recorder{"cache 1 segment 2: [5 6] [10 10]", "cache 2 segment 2: [8] [10]"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got recorder
			s := newState(true)
			s.into = &got
			apply(t, s, tt.said...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
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
	fake := &fakeXDS{heard: make(chan *discovery.DeltaDiscoveryRequest, 10), say: make(chan *discovery.DeltaDiscoveryResponse), cut: make(chan struct{})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, fake)
	go g.Serve(ln)
	defer g.Stop()
	tables := make(chan *pick.Table, 10)
	c := New(ln.Addr().String(), func(tb *pick.Table) { tables <- tb }, nil, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	go c.Run(t.Context())
	for range types {
		<-fake.heard
	}
	fake.say <- say(wire.PolicyType, resource("default", "1", somePolicy))
	fake.say <- say(wire.ModelType)
	fake.say <- say(wire.EndpointType)
	<-tables
	for range 3 {
		<-fake.heard // that it has taken them
	}
	fake.cut <- struct{}{}
	for _, typ := range types[:3] {
		if r := <-fake.heard; r.GetTypeUrl() != typ {
			t.Errorf("asked for %s, want %s", r.GetTypeUrl(), typ)
		}
	}
	fake.say <- say(wire.ModelType)
	if r := <-fake.heard; r.GetTypeUrl() != wire.ModelType || r.GetResponseNonce() != "n" {
		t.Errorf("got %v, want that the model type is taken", r)
	}
}
