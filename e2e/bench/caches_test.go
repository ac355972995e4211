package main

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// TestFakeLog adds up what a fake engine reports: its log is always full, and each
// report changes next to nothing of it.
func TestFakeLog(t *testing.T) {
	var l fakeLog
	var known *enginepb.Cache
	for i := range 50 {
		r := l.report()
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		if n := len(r.GetSegments()); i > 0 && n != 1 {
			t.Errorf("report %d changes %d segments", i, n)
		}
		known = known.Add(r)
		entries := 0
		for _, s := range known.Segments {
			entries += len(s.GetKeys())
		}
		last := known.Segments[len(known.Segments)-1]
		if len(known.Segments) != enginepb.MaxSegments || entries != logEntries*enginepb.MaxSegments-(logEntries-len(last.GetKeys())) {
			t.Fatalf("report %d: %d segments with %d entries", i, len(known.Segments), entries)
		}
	}
}

// fakePlane takes reports as xds does, and gives every node an assignment.
type fakePlane struct {
	fleetpb.UnimplementedFleetServer
	caches chan *enginepb.Cache // after each report that has one
}

func (p *fakePlane) Report(st grpc.BidiStreamingServer[fleetpb.NodeReport, fleetpb.Directive]) error {
	var before *fleetpb.NodeReport
	var cache *enginepb.Cache
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		if before == nil {
			a := &enginepb.Assignment{
				Generation: 1, Model: modelName, Replica: modelName + "-0",
				Stages:  []*enginepb.Stage{{Node: "node-000", EngineAddress: "127.1.0.0:1", Share: 1}},
				Backend: &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, Weights: "w", ContextTokens: 4096, Slots: 4, Threads: 1, MaxBodyBytes: 1 << 20},
			}
			if err := st.Send(&fleetpb.Directive{Assignment: a}); err != nil {
				return err
			}
		}
		fleetpb.Whole(before, r)
		if err := r.Validate(); err != nil {
			return err
		}
		before = r
		if news := r.GetEngine().GetCache(); news != nil {
			cache = cache.Add(news)
			p.caches <- cache
		}
	}
}

// TestFakeFleetReports lets one fake node report over a real stream.
func TestFakeFleetReports(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plane := &fakePlane{caches: make(chan *enginepb.Cache, 8)}
	srv := grpc.NewServer()
	fleetpb.RegisterFleetServer(srv, plane)
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	f := fakeFleet{xds: ln.Addr().String(), engines: []string{"127.1.0.0:8000"}, beat: 100 * time.Millisecond, logs: true}
	go func() { ended <- f.run(ctx) }()
	for i := range 3 {
		select {
		case c := <-plane.caches:
			if len(c.Segments) != enginepb.MaxSegments {
				t.Errorf("report %d: %d segments", i, len(c.Segments))
			}
		case err := <-ended:
			t.Fatalf("the fleet ended: %v", err)
		}
	}
	end()
	<-ended
}
