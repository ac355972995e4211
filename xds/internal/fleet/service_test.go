package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
)

// dialService runs a service for the duration of a test and returns a client.
func dialService(t *testing.T) (*Service, fleetpb.FleetClient) {
	t.Helper()
	s := NewService(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), func() (int, []obs.Condition) { return 1, nil })
	ln := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(grpc.WaitForHandlers(true))
	fleetpb.RegisterFleetServer(srv, s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Run(ctx, New(2*time.Second, time.Now())) }()
	f, err := config.Parse("mesh.yaml", []byte(two))
	if err != nil {
		t.Fatal(err)
	}
	s.Post(ctx, Desired{desired.Published{State: desired.Next(nil, f, nil)}})
	go func() { done <- srv.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:///fleet", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		cancel()
		<-done
		<-done
	})
	return s, fleetpb.NewFleetClient(conn)
}

func good(node string, seq uint64) *fleetpb.NodeReport {
	return &fleetpb.NodeReport{
		Node: node, Seq: seq, Sent: timestamppb.Now(),
		Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 1},
		Engine: &enginepb.Status{
			Node: node, State: enginepb.State_IDLE, HttpAddress: address(node, 80),
			GrpcAddress: address(node, 81), ShardAddress: address(node, 82),
		},
	}
}

// assigned is what an engine may say that it serves.
func assigned() *enginepb.Assignment {
	return &enginepb.Assignment{
		Generation: 7, Model: "m", Replica: "m-0",
		Stages:  []*enginepb.Stage{{Node: "node-a", EngineAddress: "10.0.0.1:81", Share: 1}},
		Backend: &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, Weights: "/m.gguf", Slots: 1, Threads: 1, MaxBodyBytes: 1024},
	}
}

func open(t *testing.T, c fleetpb.FleetClient) fleetpb.Fleet_ReportClient {
	t.Helper()
	stream, err := c.Report(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestReportsThatBreakARule(t *testing.T) {
	edit := func(f func(r *fleetpb.NodeReport)) []*fleetpb.NodeReport {
		r := good("node-a", 2)
		f(r)
		return []*fleetpb.NodeReport{good("node-a", 1), r}
	}
	tests := []struct {
		name    string
		reports []*fleetpb.NodeReport
		want    string
	}{
		{name: "seq doesn't grow", reports: edit(func(r *fleetpb.NodeReport) { r.Seq = 1 }), want: "seq: 1 after 1; must grow"},
		{name: "another node", reports: []*fleetpb.NodeReport{good("node-a", 1), good("node-b", 2)}, want: `node: "node-b" after "node-a"`},
		{name: "bad name", reports: []*fleetpb.NodeReport{good("Node A", 1)}, want: "NodeReport.Node"},
		{name: "no telemetry", reports: edit(func(r *fleetpb.NodeReport) { r.Telemetry = nil }), want: "NodeReport.Telemetry"},
		{name: "a nested rule", reports: edit(func(r *fleetpb.NodeReport) { r.Telemetry.CpuUtilization = 7 }), want: "CpuUtilization"},
		{name: "another's engine", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.Node = "node-b" }), want: "engine.node"},
		{name: "a host name", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.HttpAddress = "localhost:80" }), want: `engine.http_address: "localhost:80"; must be ip:port`},
		{name: "port 0", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.GrpcAddress = "10.0.0.1:0" }), want: "engine.grpc_address"},
		{name: "a speed that is none", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.Speed = &enginepb.Speed{Decode: math.NaN()} }), want: "engine.speed.decode: NaN; must be a finite number"},
		{name: "an infinite one", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.Speed = &enginepb.Speed{Prefill: math.Inf(1)} }), want: "Prefill"},
		{name: "one so small that its inverse is infinite", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.Speed = &enginepb.Speed{Decode: 5e-324} }), want: "Decode"},
		{name: "a capacity that is none", reports: edit(func(r *fleetpb.NodeReport) { r.Telemetry.Capacity = math.NaN() }), want: "telemetry.capacity: NaN"},
		{name: "a figure of a GPU", reports: edit(func(r *fleetpb.NodeReport) {
			r.Telemetry.Gpus = []*fleetpb.Gpu{{Uuid: "a"}, {Uuid: "b", ClockRatio: math.NaN()}}
		}), want: "telemetry.gpus[1].clock_ratio: NaN"},
		{name: "a share of an assignment", reports: edit(func(r *fleetpb.NodeReport) {
			r.Engine.Assignment = assigned()
			r.Engine.Assignment.Stages[0].Share = float32(math.NaN())
		}), want: "engine.assignment.stages[0].share: NaN"},
		{name: "a time that is none", reports: edit(func(r *fleetpb.NodeReport) { r.Sent.Seconds = math.MaxInt64 }), want: "sent: "},
		{name: "a duration that is none", reports: edit(func(r *fleetpb.NodeReport) {
			r.Engine.Processes = []*enginepb.Process{{Role: "shard", Cpu: &durationpb.Duration{Seconds: math.MaxInt64}}}
		}), want: "engine.processes[0].cpu: "},
		{name: "an unspecified address", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.HttpAddress = "0.0.0.0:80" }), want: "engine.http_address: \"0.0.0.0:80\"; must be the ip:port of one host, and this is an unspecified one"},
		{name: "a link-local address", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.HttpAddress = "169.254.169.254:80" }), want: "a link-local one"},
		{name: "a multicast shard", reports: edit(func(r *fleetpb.NodeReport) { r.Engine.ShardAddress = "[ff02::1]:80" }), want: "engine.shard_address: \"[ff02::1]:80\"; must be the ip:port of one host, and this is a multicast one"},
		{name: "a stage at a link-local address", reports: edit(func(r *fleetpb.NodeReport) {
			r.Engine.Assignment = assigned()
			r.Engine.Assignment.Stages[0].EngineAddress = "[::ffff:169.254.169.254]:80"
		}), want: "engine.assignment.stages[0].engine_address: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, c := dialService(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				stream, err := c.Report(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range tt.reports {
					if err := stream.Send(r); err != nil {
						t.Fatal(err)
					}
				}
				_, err = stream.Recv()
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("stream ended with %v, want INVALID_ARGUMENT …%s…", err, tt.want)
				}
			})
		})
	}
}

func TestStreamsLiveAndAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := dialService(t)
		streams := map[string]fleetpb.Fleet_ReportClient{}
		for _, name := range []string{"node-a", "node-b", "node-c"} {
			streams[name] = open(t, c)
			if err := streams[name].Send(good(name, 1)); err != nil {
				t.Fatal(err)
			}
		}
		d, err := streams["node-b"].Recv()
		if a := d.GetAssignment(); err != nil || a.GetReplica() != "m-0" || a.GetStage() != 1 || a.ValidateAll() != nil {
			t.Fatalf("directive %v, %v", d, err)
		}
		second := open(t, c)
		if err := second.Send(good("node-b", 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := drain(streams["node-b"]); status.Code(err) != codes.Aborted {
			t.Errorf("the replaced stream ended with %v, want ABORTED", err)
		}
		if err := streams["node-c"].CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := drain(streams["node-c"]); !errors.Is(err, io.EOF) {
			t.Errorf("the closed stream ended with %v, want EOF", err)
		}
		time.Sleep(time.Second)
		snap, _ := s.Latest()
		var silent []string
		for _, c := range snap.Conditions {
			if c.Code == "node-silent" {
				silent = append(silent, c.Text)
			}
		}
		if len(silent) != 1 || !strings.HasPrefix(silent[0], "node-c silent for ") {
			t.Errorf("silent nodes: %q, want node-c alone", silent)
		}
	})
}

// drain reads a stream to its end.
func drain(s fleetpb.Fleet_ReportClient) (n int, err error) {
	for ; err == nil; n++ {
		_, err = s.Recv()
	}
	return n, err
}

func TestWatchIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := dialService(t)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		stream, err := c.Watch(ctx, &fleetpb.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for range 9 {
			v, err := stream.Recv()
			if err != nil || v.GetAdsClients() != 1 {
				t.Fatalf("view %v, %v", v, err)
			}
		}
		if took := time.Since(begin); took < 2*time.Second || took > 4*time.Second {
			t.Errorf("8 further views took %v, want four a second at most", took)
		}
	})
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(reg, "millrace_xds_nodes", "millrace_xds_endpoints"); err != nil || n != 6 {
		t.Errorf("%d series (%v), want every state from the start", n, err)
	}
}

// FuzzEvents lets anything happen in any order. Whatever it was, a node has one
// part at most, weights fit the memberships, and nobody in EDS is known not to
// serve.
func FuzzEvents(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 40, 80, 120, 160, 200, 240})
	f.Add([]byte{0, 10, 20, 250, 251, 252, 253, 254, 255, 1, 2, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWorld(t)
		names := []string{"node-a", "node-b", "node-c", "node-d"}
		for _, b := range script {
			w.act(names[b%4], b/4)
			checkSnapshot(t, w)
		}
	})
}

// act lets one thing happen to a node.
func (w *world) act(name string, what byte) {
	w.now = w.now.Add(time.Duration(what%8) * 300 * time.Millisecond)
	n := w.nodes[name]
	switch {
	case n == nil || what%9 == 0:
		w.join(name)
	case what%9 == 1 && n.stream != 0:
		w.leave(name)
	case what%9 == 2:
		n.status = clone(n.status, enginepb.State(1+what%6), "why not")
	case what%9 == 3:
		n.mute = []string{"", "silent: x", "unreachable: y"}[what%3]
	case what%9 == 4:
		w.now = w.now.Add(20 * time.Second)
	case what%9 == 5:
		n.capacity = float64(what)
	case what%9 == 6:
		w.now = w.now.Add(2 * time.Minute)
	}
	w.report(name)
	w.decide()
}

func checkSnapshot(t *testing.T, w *world) {
	t.Helper()
	part := map[string]string{}
	for _, e := range w.snap.Endpoints {
		for _, name := range e.Nodes {
			if part[name] != "" {
				t.Fatalf("%s has a part in %s and in %s", name, part[name], e.Replica)
			}
			part[name] = e.Replica
		}
		if (e.Membership == Absent) != (e.Weight == 0) || e.Weight > 1000 {
			t.Fatalf("%s: membership %v with weight %d", e.Replica, e.Membership, e.Weight)
		}
		if (e.State == notReady) == (e.Membership == Healthy) || (e.State == ready) != (e.Reason == "") {
			t.Fatalf("%s: state %v, membership %v, reason %q", e.Replica, e.State, e.Membership, e.Reason)
		}
		head := w.nodes[e.Nodes[0]]
		if e.State == ready && head.status.GetState() != enginepb.State_READY {
			t.Fatalf("%s is READY, its head is %v", e.Replica, head.status.GetState())
		}
	}
}

// TestThinReports: a report that leaves out what has not changed counts like a whole
// one, and increments of the cache add up.
func TestThinReports(t *testing.T) {
	s, client := dialService(t)
	stream := open(t, client)
	var before *fleetpb.NodeReport
	for seq := range uint64(3) {
		r := good("node-a", seq+1)
		thin := fleetpb.Thin(before, r)
		thin.Engine.Cache = &enginepb.CacheReport{Epoch: 5, Oldest: 1, Segments: []*enginepb.CacheSegment{
			{Id: 1, From: uint32(seq), Keys: []uint64{seq}, Tokens: []uint32{10}},
		}}
		if err := stream.Send(thin); err != nil {
			t.Fatal(err)
		}
		before = r
	}
	for {
		snap, next := s.Latest()
		if len(snap.Nodes) == 1 && snap.Nodes[0].Report.GetSeq() == 3 {
			if got := snap.Nodes[0].Report.GetEngine(); got.GetHttpAddress() != address("node-a", 80) || got.GetCache() != nil {
				t.Errorf("engine %v", got)
			}
			break
		}
		<-next
	}
}

// TestCachesOfNodesTakeNoMoreMemoryThanAllowed has nodes report as much of their caches as
// they may: all of it together is bounded, what has no room is counted, and a node that is
// forgotten makes room.
func TestCachesOfNodesTakeNoMoreMemoryThanAllowed(t *testing.T) {
	const most = 16 << 20
	_, was, _ := blocks.Memory()
	before, _, _ := blocks.Memory()
	blocks.SetMemory(before + most)
	t.Cleanup(func() { blocks.SetMemory(was) })
	s, c := dialService(t)
	r := &enginepb.CacheReport{Epoch: 1, Oldest: 1, BlockTokens: 16}
	for id := range uint64(enginepb.MaxBlockSegments / 2) {
		seg := &enginepb.CacheSegment{Id: id + 1}
		for i := range uint64(enginepb.MaxEntries) {
			seg.Keys, seg.Tokens = append(seg.Keys, id<<8|i|1<<60), append(seg.Tokens, 16)
		}
		r.Segments = append(r.Segments, seg)
	}
	for i := range 8 {
		st := open(t, c)
		report := good(fmt.Sprintf("node-%d", i), 1)
		report.Engine.Cache = r
		if err := st.Send(report); err != nil {
			t.Fatal(err)
		}
	}
	for snap, next := s.Latest(); len(snap.Nodes) < 8; snap, next = s.Latest() {
		<-next
	}
	taken, _, _ := blocks.Memory()
	if taken -= before; taken > most || taken < most/2 {
		t.Errorf("caches take %d bytes of %d", taken, most)
	}
	if n := testutil.ToFloat64(s.metrics.forgotten); n < 4 || n > 7 {
		t.Errorf("%v of 8 caches had no room", n)
	}
}

// TestRememberedNodesAreBounded has more nodes come and go than are remembered: those that
// went first are forgotten, and one that stays is not.
func TestRememberedNodesAreBounded(t *testing.T) {
	now := time.Now()
	f := New(time.Second, now)
	charges := make([]*blocks.Charge, MostNodes+10)
	before, _, _ := blocks.Memory()
	for i := range charges {
		charges[i] = new(blocks.Charge)
		if !charges[i].Resize(100) {
			t.Fatal("no room for a charge")
		}
		name := fmt.Sprintf("node-%d", i)
		f.Step(now, Reported{Stream: uint64(i + 1), Report: good(name, 1), Charge: charges[i]})
		if now = now.Add(time.Millisecond); i > 0 {
			f.Step(now, Closed{Node: name, Stream: uint64(i + 1)})
		}
	}
	if len(f.nodes) != MostNodes || f.nodes["node-0"] == nil || f.nodes["node-1"] != nil {
		t.Errorf("%d nodes are remembered, the one that stayed: %t, that went first: %t", len(f.nodes), f.nodes["node-0"] != nil, f.nodes["node-1"] != nil)
	}
	if taken, _, _ := blocks.Memory(); taken-before != 100*MostNodes {
		t.Errorf("%d bytes are taken for %d nodes", taken-before, MostNodes)
	}
	for _, c := range charges {
		c.Free()
	}
	if taken, _, _ := blocks.Memory(); taken != before {
		t.Errorf("%d bytes are left", taken-before)
	}
}
