package peer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/peerpb"
)

// placed is what a replica takes in.
type placed struct {
	Address string
	What    prefix.Placement
}

// replica is Peers that run, and what they take in.
type replica struct {
	*Peers
	got chan placed
}

// start has a replica of its own service, or another one, listen at an address of loopback
// and a port; 0: any. It returns the port.
func start(t *testing.T, ip string, port int, service peerpb.PeersServer) (*replica, int) {
	t.Helper()
	ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", ip, port))
	if err != nil {
		t.Fatal(err)
	}
	port = ln.Addr().(*net.TCPAddr).Port
	r := &replica{got: make(chan placed, 100)}
	r.Peers = New(Options{
		Port: port, Dial: grpc.WithTransportCredentials(insecure.NewCredentials()),
		Placed: func(n int, placement func(int) (string, prefix.Placement)) {
			for i := range n {
				address, what := placement(i)
				r.got <- placed{address, what}
			}
		},
	}, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewPedanticRegistry())
	if service == nil {
		service = r.Peers
	}
	server := grpc.NewServer()
	peerpb.RegisterPeersServer(server, service)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- server.Serve(ln) }()
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		server.GracefulStop() // which waits for those who follow
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return r, port
}

// next is what a replica takes in next.
func (r *replica) next(t *testing.T) placed {
	t.Helper()
	select {
	case p := <-r.got:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		return placed{}
	}
}

// awaitFollower waits until somebody follows the replica, or nobody does.
func (r *replica) awaitFollower(t *testing.T, want bool) {
	t.Helper()
	limit, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for r.followed.Load() != want {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("followed is not %v", want)
		}
	}
}

// TestReplicasKnowOfEachOther has two replicas follow each other, and one of them go.
func TestReplicasKnowOfEachOther(t *testing.T) {
	a, port := start(t, "127.0.0.1", 0, nil)
	b, _ := start(t, "127.0.0.2", port, nil)
	a.Place("10.0.0.9:80", prefix.Placement{Name: 1}) // nobody is there yet
	a.Set([]string{"127.0.0.2"})
	b.Set([]string{"127.0.0.1"})
	a.awaitFollower(t, true)
	b.awaitFollower(t, true)

	chain := []prefix.Link{{Key: 1<<63 + 1, Tokens: 100}, {Key: 2, Tokens: 200}}
	a.Place("10.0.0.1:80", prefix.Placement{Chain: chain, Name: 7, Tokens: 210})
	a.Place("10.0.0.1:80", prefix.Placement{Chain: chain, Name: 7, Tokens: 250, Answered: true, Fresh: 40})
	b.Place("10.0.0.2:80", prefix.Placement{Tokens: 1 << 30, Name: 8})
	want := []placed{
		{"10.0.0.1:80", prefix.Placement{Chain: chain, Name: 7, Tokens: 210}},
		{"10.0.0.1:80", prefix.Placement{Chain: chain[1:], Name: 7, Tokens: 250, Answered: true, Fresh: 40}},
	}
	if diff := cmp.Diff(want, []placed{b.next(t), b.next(t)}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(placed{"10.0.0.2:80", prefix.Placement{Chain: []prefix.Link{}, Tokens: mostTokens, Name: 8}}, a.next(t)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	b.Set(nil)
	a.awaitFollower(t, false)
	a.Place("10.0.0.1:80", prefix.Placement{Name: 9})
	if n := testutil.ToFloat64(a.metrics.dropped) + float64(len(a.queue)); n != 0 {
		t.Errorf("%v placements for nobody", n)
	}
}

// TestPlaceWaitsForNobody drops what does not fit.
func TestPlaceWaitsForNobody(t *testing.T) {
	p := New(Options{}, slog.Default(), prometheus.NewPedanticRegistry())
	slow := make(chan *peerpb.Placements, 1)
	if !p.join(slow) {
		t.Fatal("nobody may follow")
	}
	for range waiting + 10 {
		p.Place("10.0.0.1:80", prefix.Placement{Name: 1})
	}
	if n := testutil.ToFloat64(p.metrics.dropped); n != 10 {
		t.Errorf("%v dropped", n)
	}
	m := &peerpb.Placements{Placements: make([]*peerpb.Placement, 3)}
	p.hand(m)
	p.hand(m)
	if n := testutil.ToFloat64(p.metrics.dropped); n != 13 {
		t.Errorf("%v dropped with those for one that is slow", n)
	}
	for range most {
		p.join(make(chan *peerpb.Placements))
	}
	if p.join(make(chan *peerpb.Placements)) {
		t.Error("any number may follow")
	}
}

// sends is a replica that sends what it is given.
type sends struct {
	peerpb.UnimplementedPeersServer
	all []*peerpb.Placements
}

func (s *sends) Follow(_ *peerpb.FollowRequest, st grpc.ServerStreamingServer[peerpb.Placements]) error {
	for _, m := range s.all {
		if err := st.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// TestBrokenPlacementsAreRefused takes in what follows one that breaks the contract.
func TestBrokenPlacementsAreRefused(t *testing.T) {
	one := func(m *peerpb.Placement) *peerpb.Placements {
		return &peerpb.Placements{Placements: []*peerpb.Placement{m}}
	}
	_, port := start(t, "127.0.0.1", 0, &sends{all: []*peerpb.Placements{
		one(&peerpb.Placement{Address: "", Name: 1}),
		one(&peerpb.Placement{Address: "a:1", Fresh: 1 << 24}),
		one(&peerpb.Placement{Address: "a:1", Keys: make([]uint64, 65)}),
		one(&peerpb.Placement{Address: "a:1", Keys: []uint64{1, 2}, Tokens: []uint32{3}}),
	}})
	b, _ := start(t, "127.0.0.2", port, nil)
	b.Set([]string{"127.0.0.1"})
	if diff := cmp.Diff(placed{"a:1", prefix.Placement{Chain: []prefix.Link{{Key: 1, Tokens: 3}}}}, b.next(t)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	newMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// FuzzDecode takes in whatever the contract allows.
func FuzzDecode(f *testing.F) {
	seed, err := proto.Marshal(encode("a:1", prefix.Placement{Chain: []prefix.Link{{Key: 1, Tokens: 2}}, Name: 3, Tokens: 4}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	index := prefix.New(1000, time.Hour)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m peerpb.Placement
		if proto.Unmarshal(b, &m) != nil || m.Validate() != nil {
			return
		}
		address, what := decode(&m)
		index.Record(what, prefix.NewCache(1, 1000), time.Now())
		if again, same := decode(encode(address, what)); again != address || !what.Answered && !cmp.Equal(what, same) {
			t.Errorf("%+v became %+v", what, same)
		}
	})
}
