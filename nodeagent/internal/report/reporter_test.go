package report

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
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

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// network is one of our own: servers by address, in memory.
type network struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener // nil or absent: connection refused
}

func (w *network) dial(addr string, _ grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			w.mu.Lock()
			ln := w.listeners[addr]
			w.mu.Unlock()
			if ln == nil {
				return nil, &net.OpError{Op: "dial", Err: io.ErrUnexpectedEOF}
			}
			return ln.DialContext(ctx)
		}))
}

// serve puts a server at an address, and returns what kills it.
func (w *network) serve(addr string, register func(*grpc.Server)) (kill func()) {
	ln := bufconn.Listen(1 << 16)
	srv := grpc.NewServer()
	register(srv)
	w.mu.Lock()
	w.listeners[addr] = ln
	w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	return func() {
		w.mu.Lock()
		w.listeners[addr] = nil
		w.mu.Unlock()
		srv.Stop()
		<-done
	}
}

// engine is a fake of an engine's service: it reports what the test sets, at once
// and whenever the interval has passed.
type engine struct {
	enginepb.UnimplementedEngineServer
	mu       sync.Mutex
	status   *enginepb.Status
	changed  chan struct{} // closed when status changes
	mute     bool          // whether it says nothing
	assigned []uint64      // generations assigned
}

func newEngine() *engine {
	return &engine{status: engineIs(enginepb.State_READY, 1, 1).Status, changed: make(chan struct{})}
}

func (e *engine) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *engine) Watch(req *enginepb.WatchRequest, stream enginepb.Engine_WatchServer) error {
	for {
		e.mu.Lock()
		s, changed, mute := e.status, e.changed, e.mute
		e.mu.Unlock()
		if !mute {
			if err := stream.Send(s); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-time.After(req.GetInterval().AsDuration()):
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (e *engine) Assign(_ context.Context, a *enginepb.Assignment) (*enginepb.AssignReply, error) {
	e.set(func() {
		e.assigned = append(e.assigned, a.GetGeneration())
		e.status = engineIs(enginepb.State_STARTING, a.GetGeneration(), 2).Status
	})
	return &enginepb.AssignReply{Generation: a.GetGeneration()}, nil
}

// control is a fake xds: it keeps what it receives.
type control struct {
	fleetpb.UnimplementedFleetServer
	mu         sync.Mutex
	reports    []*fleetpb.NodeReport
	at         []time.Time
	streams    int
	directives chan *fleetpb.Directive
	refuse     bool // whether every stream is ended at its first report
}

func (c *control) Report(stream fleetpb.Fleet_ReportServer) error {
	c.mu.Lock()
	c.streams++
	c.mu.Unlock()
	go func() {
		for {
			select {
			case d := <-c.directives:
				_ = stream.Send(d)
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var before *fleetpb.NodeReport
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		fleetpb.Whole(before, r)
		before = r
		c.mu.Lock()
		c.reports, c.at = append(c.reports, r), append(c.at, time.Now())
		refuse := c.refuse
		c.mu.Unlock()
		if refuse {
			return status.Error(codes.InvalidArgument, "node: no")
		}
	}
}

// last returns what the last report said of the engine, and how long ago.
func (c *control) last() (said string, ago time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reports) == 0 {
		return "", 0
	}
	r := c.reports[len(c.reports)-1]
	said = r.GetEngineError()
	if r.GetEngine() != nil {
		said = r.GetEngine().GetState().String()
	}
	return said, time.Since(c.at[len(c.at)-1])
}

func (c *control) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.reports)
}

type fixed struct{}

func (fixed) Telemetry(time.Time) *fleetpb.Telemetry { return telemetry() }

// node is a reporter with an engine and an xds, all in one bubble of fake time.
type node struct {
	*network
	engine     *engine
	control    *control
	reporter   *Reporter
	reg        *prometheus.Registry
	killEngine func()
	killXDS    func()
}

// inNode runs f beside a reporter that runs since five seconds, and sees that
// nothing is left behind.
func inNode(t *testing.T, f func(t *testing.T, n *node)) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{
			network: &network{listeners: map[string]*bufconn.Listener{}},
			engine:  newEngine(),
			control: &control{directives: make(chan *fleetpb.Directive)},
			reg:     prometheus.NewRegistry(),
		}
		n.startEngine()
		n.startXDS()
		cfg := Config{Node: "node-a", Engine: "engine", XDS: "xds", Interval: beat, Timeout: 1500 * time.Millisecond}
		n.reporter = New(cfg, fixed{}, slog.New(slog.DiscardHandler), n.reg)
		n.reporter.dial = n.network.dial
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.reporter.Run(ctx) }()
		sleep(5 * time.Second)
		f(t, n)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
		n.killEngine()
		n.killXDS()
	})
}

// sleep lets fake time pass, and then everything happen that is due.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (n *node) startEngine() {
	n.killEngine = n.serve("engine", func(s *grpc.Server) { enginepb.RegisterEngineServer(s, n.engine) })
}

func (n *node) startXDS() {
	n.killXDS = n.serve("xds", func(s *grpc.Server) { fleetpb.RegisterFleetServer(s, n.control) })
}

func (n *node) says(t *testing.T, want string, within time.Duration) {
	t.Helper()
	if said, ago := n.control.last(); said != want || ago > within {
		t.Errorf("last report %s ago says %q, want %q within %s", ago, said, want, within)
	}
}

func TestHeartbeats(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		before := n.control.count()
		sleep(10 * time.Second)
		if got := n.control.count() - before; got != 20 {
			t.Errorf("%d reports in 10 s, want 20", got)
		}
		n.control.mu.Lock()
		defer n.control.mu.Unlock()
		for i, r := range n.control.reports {
			if err := r.ValidateAll(); err != nil || r.GetSeq() != uint64(i+1) {
				t.Errorf("report %d: seq %d, %v", i, r.GetSeq(), err)
			}
		}
		if n.control.streams != 1 || len(n.reporter.Conditions()) != 0 {
			t.Errorf("%d streams, conditions %v", n.control.streams, n.reporter.Conditions())
		}
	})
}

func TestEngineStateGoesUpAtOnce(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		sleep(20 * time.Millisecond) // off the heartbeat
		n.engine.set(func() { n.engine.status = engineIs(enginepb.State_BROKEN, 1, 1).Status })
		synctest.Wait()
		n.says(t, "BROKEN", 0)
	})
}

func TestSilentEngineAndBack(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		n.engine.set(func() { n.engine.mute = true })
		sleep(700 * time.Millisecond)
		n.says(t, "READY", beat)
		sleep(300 * time.Millisecond)
		n.says(t, "silent: no status for 1s", 300*time.Millisecond)
		sleep(2 * time.Minute) // streams are made anew meanwhile
		n.says(t, "silent: no status for 1s", beat)
		n.engine.set(func() { n.engine.mute = false })
		sleep(time.Second)
		n.says(t, "READY", beat)
	})
}

func TestEngineAwayAndBack(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		n.killEngine()
		synctest.Wait()
		if said, ago := n.control.last(); said[:13] != "unreachable: " || ago != 0 {
			t.Errorf("last report %s ago says %q", ago, said)
		}
		sleep(2 * time.Minute)
		if said, ago := n.control.last(); said[:13] != "unreachable: " || ago > beat {
			t.Errorf("last report %s ago says %q", ago, said)
		}
		n.startEngine()
		sleep(time.Second)
		n.says(t, "READY", beat)
	})
}

func TestXDSAwayAndBack(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		n.killXDS()
		sleep(2 * time.Minute)
		if c := n.reporter.Conditions(); len(c) != 1 || c[0].Code != "xds_unreachable" {
			t.Errorf("conditions %v", c)
		}
		before := n.control.count()
		n.startXDS()
		sleep(time.Second)
		if n.control.count() == before || n.control.reports[before].GetSeq() != 1 {
			t.Errorf("%d reports within a second of xds' return", n.control.count()-before)
		}
		if c := n.reporter.Conditions(); len(c) != 0 {
			t.Errorf("conditions %v", c)
		}
	})
}

func TestXDSThatRefusesIsTriedForEverButNotFast(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		n.control.mu.Lock()
		n.control.refuse = true
		before := n.control.streams
		n.control.mu.Unlock()
		sleep(time.Minute)
		if got := n.control.streams - before; got < 55 || got > 70 {
			t.Errorf("%d streams in a minute, want about one a second", got)
		}
	})
}

func TestDirectiveReachesTheEngineAlsoAfterItsRestart(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		n.control.directives <- directed(7).Directive
		synctest.Wait()
		n.says(t, "STARTING", 0)
		n.killEngine()
		n.engine.set(func() { n.engine.status = engineIs(enginepb.State_IDLE, 0, 0).Status })
		n.startEngine()
		sleep(2 * time.Second)
		n.says(t, "STARTING", beat)
		if n.engine.assigned[0] != 7 || len(n.engine.assigned) != 2 {
			t.Errorf("the engine was assigned %v, want 7 once a start", n.engine.assigned)
		}
	})
}

func TestSlowXDSGetsTheNewestReport(t *testing.T) {
	r := New(Config{Node: "node-a"}, fixed{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	out := &outbox{reports: make(chan outgoing, 1), left: make(chan struct{})}
	r.streams["a"] = out
	a := ready(t)
	for range 5 {
		r.apply(start, a, Tick{}, Effects{Report: true}, telemetry())
	}
	if got := <-out.reports; got.GetSeq() != 5 {
		t.Errorf("report %d waits, want the newest", got.GetSeq())
	}
}

func TestMetrics(t *testing.T) {
	inNode(t, func(t *testing.T, n *node) {
		with := telemetry()
		with.Source = fleetpb.Telemetry_NVML
		with.Gpus = []*fleetpb.Gpu{{Uuid: "GPU-a", Name: "Fake", Utilization: 0.5, Missing: []string{"power"}}}
		v := *n.reporter.view.Load()
		v.telemetry = with
		n.reporter.view.Store(&v)
		problems, err := testutil.GatherAndLint(n.reg)
		if err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
		for name, want := range map[string]int{
			"millrace_nodeagent_gpu_utilization_ratio": 1,
			"millrace_nodeagent_gpu_power_watts":       0, // missing is not 0
			"millrace_nodeagent_engine_state":          6,
			"millrace_nodeagent_assignments_total":     2,
			"millrace_nodeagent_xds_connected":         1,
		} {
			if got, err := testutil.GatherAndCount(n.reg, name); err != nil || got != want {
				t.Errorf("%s: %d series, %v; want %d", name, got, err, want)
			}
		}
	})
}
