package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// resource packs a message as ADS has it.
func resource(name, version string, m proto.Message) *discovery.Resource {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return &discovery.Resource{Name: name, Version: version, Resource: a}
}

func endpointState(address string, edit ...func(*fleetpb.EndpointState)) *fleetpb.EndpointState {
	m := &fleetpb.EndpointState{
		Address: address, Node: "node-a", Model: "m", Replica: "m-0", State: fleetpb.EndpointState_READY, Health: 1, Epoch: 1,
		Load: &enginepb.Load{Slots: 4, Running: 1, Waiting: 2, TokensInFlight: 300, CachedTokens: 70}, Speed: &enginepb.Speed{Prefill: 500, Decode: 50},
	}
	for _, f := range edit {
		f(m)
	}
	return m
}

var somePolicy = &fleetpb.PolicyState{
	SessionHeader: "X-Session-Id", Candidates: 3, CandidatesCritical: 5, DefaultPriority: "standard", MaxBodyBytes: 1000,
	SessionCookie: "c", CookieKeys: [][]byte{[]byte("a key of 16 bytes")},
}

// say returns a response.
func say(typ string, rs ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: "n", Resources: rs}
}

// apply takes responses in that must be good.
func apply(t *testing.T, s *state, rs ...*discovery.DeltaDiscoveryResponse) {
	t.Helper()
	for _, r := range rs {
		if err := s.apply(r, time.Now()); err != nil {
			t.Fatalf("apply(%v) = %v", r, err)
		}
	}
}

func full(t *testing.T) *state {
	s := newState(true)
	apply(t, s,
		say(wire.EndpointType, resource("127.0.0.1:1", "1", endpointState("127.0.0.1:1"))),
		say(wire.ModelType, resource("m", "1", &fleetpb.ModelState{Name: "m", Tokenizer: "t.gguf", Default: true})),
		say(wire.PolicyType, resource("default", "1", somePolicy)))
	return s
}

func TestTable(t *testing.T) {
	s := newState(true)
	apply(t, s, say(wire.ModelType), say(wire.PolicyType))
	if s.table() != nil {
		t.Fatal("a table before xds has answered for endpoints")
	}
	tb := full(t).table()
	m := tb.Models["m"]
	if m == nil || tb.Default != m || len(m.Endpoints) != 1 {
		t.Fatalf("table %+v", tb)
	}
	e := m.Endpoints[0]
	if e.State != pick.Ready || e.Slots != 4 || e.Prior.Prefill != 2 || e.Prior.Decode != 20 || e.KV == nil || !slices.Equal(e.Nodes, []string{"node-a"}) {
		t.Errorf("endpoint %+v", e)
	}
	p := tb.Policy
	if p.SessionHeader != "x-session-id" || p.Candidates != 3 || p.Critical != 5 || p.Sheddable != 2 || p.MaxBody != 1000 || p.Cookies == nil {
		t.Errorf("policy %+v", p)
	}
}

func TestNumbersThatAreNoneAreRefusedByName(t *testing.T) {
	nan := math.NaN()
	endpoint := func(edit func(*fleetpb.EndpointState)) *discovery.DeltaDiscoveryResponse {
		return say(wire.EndpointType, resource("127.0.0.1:1", "2", endpointState("127.0.0.1:1", edit)))
	}
	policy := proto.CloneOf(somePolicy)
	policy.Flow = &fleetpb.Flow{Reserve: nan}
	tests := map[string]*discovery.DeltaDiscoveryResponse{
		"health: NaN":              endpoint(func(m *fleetpb.EndpointState) { m.Health = nan }),
		"speed.prefill: NaN":       endpoint(func(m *fleetpb.EndpointState) { m.Speed.Prefill = nan }),
		"work.output_tokens: NaN":  endpoint(func(m *fleetpb.EndpointState) { m.Work = &fleetpb.EndpointState_Work{OutputTokens: nan} }),
		"work.decode_seconds: NaN": endpoint(func(m *fleetpb.EndpointState) { m.Work = &fleetpb.EndpointState_Work{DecodeSeconds: nan} }),
		"flow.reserve: NaN":        say(wire.PolicyType, resource("default", "2", policy)),
	}
	for want, r := range tests {
		s := full(t)
		before, reserve := s.table().Models["m"].Endpoints[0], s.table().Policy.Flow.Reserve
		if err := s.apply(r, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("apply() = %v, want %s", err, want)
		}
		after := s.table().Models["m"].Endpoints[0]
		if after.Health != before.Health || after.Prior != before.Prior || s.table().Policy.Flow.Reserve != reserve {
			t.Errorf("%s: what was there before does not stay", want)
		}
	}
}

func TestWhatLivesOn(t *testing.T) {
	s := full(t)
	first := s.table().Models["m"].Endpoints[0]
	change := func(edit func(*fleetpb.EndpointState)) *pick.Endpoint {
		apply(t, s, say(wire.EndpointType, resource("127.0.0.1:1", "2", endpointState("127.0.0.1:1", edit))))
		return s.table().Models["m"].Endpoints[0]
	}
	slower := change(func(m *fleetpb.EndpointState) { m.Health = 0.5 })
	if slower.Live != first.Live || slower.KV != first.KV || slower.Health != 0.5 || first.Health != 1 {
		t.Error("a change of health makes another endpoint, or changes the published one")
	}
	restarted := change(func(m *fleetpb.EndpointState) { m.Epoch = 2 })
	if restarted.Live != first.Live || restarted.KV == first.KV {
		t.Error("a new epoch does not forget what was cached, or forgets what is in flight")
	}
	apply(t, s, &discovery.DeltaDiscoveryResponse{TypeUrl: wire.EndpointType, RemovedResources: []string{"127.0.0.1:1"}})
	if n := len(s.table().Models["m"].Endpoints); n != 0 {
		t.Errorf("%d endpoints after the removal", n)
	}
	if len(s.versions[wire.EndpointType]) != 0 {
		t.Error("the version of a removed endpoint is kept")
	}
	sessions := s.table().Policy.Prefixes
	apply(t, s, say(wire.PolicyType, resource("default", "2", &fleetpb.PolicyState{
		SessionHeader: "x", Candidates: 1, CandidatesCritical: 1, DefaultPriority: "critical",
	})))
	if s.table().Policy.Prefixes != sessions {
		t.Error("a change of policy forgets the sessions")
	}
}

func TestRefuses(t *testing.T) {
	tests := []struct {
		name string
		r    *discovery.DeltaDiscoveryResponse
		want string
	}{
		{"a broken rule", say(wire.EndpointType, resource("127.0.0.1:1", "9", endpointState("127.0.0.1:1", func(m *fleetpb.EndpointState) { m.Health = 2 }))), "127.0.0.1:1: invalid EndpointState.Health"},
		{"another name", say(wire.EndpointType, resource("127.0.0.1:9", "9", endpointState("127.0.0.1:1"))), `the resource inside is of "127.0.0.1:1"`},
		{"nothing inside", say(wire.ModelType, &discovery.Resource{Name: "m"}), "m: no resource inside"},
		{"another type inside", say(wire.ModelType, resource("m", "9", endpointState("m"))), "mismatched message type"},
		{"a type that was not asked for", say("type.googleapis.com/x"), `"type.googleapis.com/x" was not asked for`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := full(t)
			good := resource("127.0.0.1:2", "1", endpointState("127.0.0.1:2"))
			if tt.r.GetTypeUrl() == wire.EndpointType {
				tt.r.Resources = append(tt.r.Resources, good)
			}
			err := s.apply(tt.r, time.Now())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("apply() = %v, want %q", err, tt.want)
			}
			if e := s.table().Models["m"].Endpoints; e[0].Health != 1 {
				t.Error("what was refused is in the table")
			}
			if tt.r.GetTypeUrl() == wire.EndpointType && len(s.table().Models["m"].Endpoints) != 2 {
				t.Error("what was good beside it is not in the table")
			}
			if s.versions[wire.EndpointType]["127.0.0.1:1"] != "1" {
				t.Error("the version of what was refused is kept")
			}
		})
	}
}

// fakeXDS speaks delta ADS: it sends what the test says and gives it what the
// client says.
type fakeXDS struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	received chan *discovery.DeltaDiscoveryRequest
	say      chan *discovery.DeltaDiscoveryResponse
	cut      chan struct{}
}

func (f *fakeXDS) DeltaAggregatedResources(st grpc.BidiStreamingServer[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]) error {
	errs := make(chan error, 1)
	go func() {
		for {
			r, err := st.Recv()
			if err != nil {
				errs <- err
				return
			}
			f.received <- r
		}
	}()
	for {
		select {
		case r := <-f.say:
			if err := st.Send(r); err != nil {
				return err
			}
		case <-f.cut:
			return errors.New("cut")
		case err := <-errs:
			return err
		}
	}
}

type fixed int

func (f fixed) Count(*openai.Request) (int, string) { return int(f), pick.Certain }

func TestClient(t *testing.T) {
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
	loads := make(chan string, 10)
	c := New(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), tablesTo(tables), func(path string) (pick.Counter, error) {
		loads <- path
		return fixed(7), nil
	}, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()

	for i, typ := range types {
		r := <-fake.received
		if r.GetTypeUrl() != typ || !slices.Equal(r.GetResourceNamesSubscribe(), []string{"*"}) || (i == 0) != (r.GetNode().GetId() == "extproc") {
			t.Errorf("subscription %v", r)
		}
	}
	if got := c.Conditions(); len(got) != 1 || got[0].Code != "no-fleet" {
		t.Errorf("Conditions() = %v", got)
	}
	fake.say <- say(wire.PolicyType, resource("default", "1", somePolicy))
	fake.say <- say(wire.ModelType, resource("m", "1", &fleetpb.ModelState{Name: "m", Tokenizer: "t.gguf"}))
	fake.say <- say(wire.EndpointType, resource("127.0.0.1:1", "5", endpointState("127.0.0.1:1")))
	if got := <-loads; got != "t.gguf" {
		t.Errorf("tokenizer %q is read", got)
	}
	if tb := <-tables; len(tb.Models["m"].Endpoints) != 1 {
		t.Errorf("table %+v", tb)
	}
	fake.say <- say(wire.CacheType)
	for range types {
		if r := <-fake.received; r.GetResponseNonce() != "n" || r.GetErrorDetail() != nil {
			t.Errorf("want an ACK, got %v", r)
		}
	}
	if got := testutil.ToFloat64(c.metrics.cached); got != 70 {
		t.Errorf("%v tokens are cached, want what the engine says", got)
	}
	fake.say <- say(wire.EndpointType, resource("127.0.0.1:1", "6", endpointState("127.0.0.1:1", func(m *fleetpb.EndpointState) { m.State = 77 })))
	if r := <-fake.received; !strings.Contains(r.GetErrorDetail().GetMessage(), "EndpointState.State") {
		t.Errorf("want a NACK that names the field, got %v", r)
	}
	<-tables

	fake.cut <- struct{}{}
	var again []*discovery.DeltaDiscoveryRequest
	for range types {
		again = append(again, <-fake.received)
	}
	if v := again[2].GetInitialResourceVersions(); v["127.0.0.1:1"] != "5" {
		t.Errorf("resumed with versions %v, want what was taken last", v)
	}
	if got := c.Conditions(); len(got) != 1 || got[0].Code != "xds-away" {
		t.Errorf("Conditions() = %v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
}

// TestContextIsThatOfTheEngines where the configuration says nothing of it.
func TestContextIsThatOfTheEngines(t *testing.T) {
	tests := []struct {
		name       string
		configured uint32
		engines    []uint32
		want       int
	}{
		{"nobody says", 0, []uint32{0, 0}, 0},
		{"all say", 0, []uint32{4096, 4096}, 4096},
		{"the longest: only who has it may refuse", 0, []uint32{4096, 8192}, 8192},
		{"one does not", 0, []uint32{4096, 0}, 0},
		{"the configuration counts for more", 2048, []uint32{4096, 8192}, 2048},
		{"there are no engines", 0, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newState(false)
			apply(t, s, say(wire.PolicyType), say(wire.EndpointType),
				say(wire.ModelType, resource("m", "1", &fleetpb.ModelState{Name: "m", ContextTokens: tt.configured})))
			for i, n := range tt.engines {
				address := fmt.Sprintf("127.0.0.1:%d", i+1)
				apply(t, s, say(wire.EndpointType, resource(address, "1", endpointState(address, func(m *fleetpb.EndpointState) { m.ContextTokens = n }))))
			}
			if got := s.table().Models["m"].Context; got != tt.want {
				t.Errorf("context %d, want %d", got, tt.want)
			}
		})
	}
}

// TestAccountsReachWhoWantsThem from the reports of engines, and not kept.
func TestAccountsReachWhoWantsThem(t *testing.T) {
	c := New("xds", grpc.WithTransportCredentials(insecure.NewCredentials()), make(tablesTo, 9), nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	got := map[uint64]uint64{}
	c.OnAccount(func(request, generated uint64, _ time.Time) { got[request] += generated })
	c.take(say(wire.EndpointType, resource("127.0.0.1:1", "1", endpointState("127.0.0.1:1", func(m *fleetpb.EndpointState) {
		m.Accounts = []*enginepb.Account{{Request: 5, GeneratedTokens: 40}, {Request: 6}}
	}))))
	c.take(say(wire.ModelType, resource("m", "1", &fleetpb.ModelState{Name: "m"})))
	if want := (map[uint64]uint64{5: 40, 6: 0}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUnreadableTokenizer(t *testing.T) {
	l := newLoader(func(string) (pick.Counter, error) { return nil, errors.New("t: no such file") }, slog.New(slog.NewTextHandler(io.Discard, nil)))
	l.want(full(t).tokenizers())
	if !l.pass(t.Context(), map[string]pick.Counter{}) {
		t.Error("pass() finds nothing wrong")
	}
	if got := l.conditions(); len(got) != 1 || !strings.Contains(got[0].Text, "no such file") {
		t.Errorf("conditions() = %v", got)
	}
	l.want(nil)
	if got := l.conditions(); len(got) != 0 {
		t.Errorf("conditions() = %v after the model has gone", got)
	}
}

// doubting is a counter whose model has a template that isn't rendered here.
type doubting struct{ fixed }

func (doubting) Caveats() []pick.Caveat {
	return []pick.Caveat{{Reason: "template", Text: "chat template: tag include"}}
}

func TestTemplateThatIsNotRendered(t *testing.T) {
	l := newLoader(func(string) (pick.Counter, error) { return doubting{7}, nil }, slog.New(slog.NewTextHandler(io.Discard, nil)))
	l.want(full(t).tokenizers())
	if l.pass(t.Context(), map[string]pick.Counter{}) {
		t.Error("pass() did not read it")
	}
	got := l.conditions()
	if len(got) != 1 || got[0].Code != "template" || !strings.Contains(got[0].Text, "tag include") || !strings.Contains(got[0].Next, "chat_template.jinja") {
		t.Errorf("conditions() = %v", got)
	}
	l.want(nil)
	if got := l.conditions(); len(got) != 0 {
		t.Errorf("conditions() = %v after the model has gone", got)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("GatherAndLint() = %v, %v", problems, err)
	}
}

func FuzzApply(f *testing.F) {
	good, _ := proto.Marshal(say(wire.EndpointType, resource("127.0.0.1:1", "1", endpointState("127.0.0.1:1"))))
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r discovery.DeltaDiscoveryResponse
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		s := full(t)
		_ = s.apply(&r, time.Now())
		_ = s.table()
	})
}

// tablesTo is a Picker that hands tables on.
type tablesTo chan *pick.Table

func (c tablesTo) Publish(t *pick.Table) { c <- t }

func (tablesTo) Measured(*pick.Model, *pick.Endpoint, pick.Usage, float64, float64, time.Time) {}
