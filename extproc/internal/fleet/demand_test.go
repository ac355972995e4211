package fleet

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// places is an xds that takes what is waited for.
type places struct {
	fleetpb.UnimplementedFleetServer
	got chan *fleetpb.DemandReport
}

func (p *places) Demand(st grpc.ClientStreamingServer[fleetpb.DemandReport, fleetpb.DemandReply]) error {
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		if err := trust.Message(r); err != nil {
			return err
		}
		p.got <- r
	}
}

// reporting returns a client that is not run, and the address of an xds to which it may report.
func reporting(t *testing.T, xds fleetpb.FleetServer) (*Client, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	fleetpb.RegisterFleetServer(s, xds)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	c := New("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()), make(tablesTo, 9), nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	return c, ln.Addr().String()
}

// TestXDSLearnsWhatIsWaitedFor of models that are loaded on demand, and that nothing is any more.
func TestXDSLearnsWhatIsWaitedFor(t *testing.T) {
	p := &places{got: make(chan *fleetpb.DemandReport, 16)}
	c, addr := reporting(t, p)
	c.table.Store(&pick.Table{Models: map[string]*pick.Model{"a": {Awaited: true}, "b": {Awaited: true}, "always": {}}})
	waiting := make(chan map[string]int, 1)
	waiting <- map[string]int{"b": 2, "a": 1, "always": 3, "gone": 1}
	c.OnDemand(func(each func(string, int, time.Time)) {
		now := <-waiting
		for model, n := range now {
			each(model, n, time.Now().Add(-time.Minute))
		}
		waiting <- now
	}, addr)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.demand(ctx) }()
	first := <-p.got
	if q := first.GetQueued(); len(q) != 1 || q[0].GetModel() != "always" || q[0].GetWaiting() != 3 {
		t.Errorf("reported as queued: %v", q)
	}
	all := first.GetModels()
	if len(all) != 2 || all[0].GetModel() != "a" || all[1].GetModel() != "b" || all[1].GetWaiting() != 2 || all[1].GetOldest().AsDuration() < 59*time.Second {
		t.Errorf("reported %v", all)
	}
	<-waiting
	waiting <- nil
	for r := range p.got {
		if len(r.GetModels()) == 0 {
			break
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestModelIsAwaited while xds says so, and it says that xds does not answer.
func TestModelIsAwaited(t *testing.T) {
	s := newState(true)
	for _, typ := range types {
		s.answered[typ] = true
	}
	s.setModel(&fleetpb.ModelState{Name: "m", Asleep: "asleep: its place is held by b"})
	s.setModel(&fleetpb.ModelState{Name: "n"})
	table := s.table()
	if m := table.Models["m"]; !m.Awaited || m.Why() != "asleep: its place is held by b" || !m.Awaits(time.Now()) {
		t.Errorf("m: awaited %t, %s", m.Awaited, m.Why())
	}
	if m := table.Models["n"]; m.Awaited || m.Awaits(time.Now()) {
		t.Error("n is awaited")
	}
	s.away = true
	if why := s.table().Models["m"].Why(); why != "asleep: its place is held by b; xds, which gives places, does not answer" {
		t.Error(why)
	}
}
