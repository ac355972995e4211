package fleet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/obs"
	headers "millrace.dev/millrace/internal/weights"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/auto"
)

const (
	// tick is how often the fleet reads its clock.
	tick = 100 * time.Millisecond
	// decideEvery bounds how often the fleet is thought through: reports that
	// come faster share one snapshot. A fleet so large that a thought takes long
	// is thought through so seldom that it costs a tenth of a core.
	decideEvery = 10 * time.Millisecond
	decideShare = 10
	// stalled is how late a thought must be to show that xds itself was stopped or
	// starved: the fleet is thought through every tick, or ten thoughts later.
	stalled = time.Second
	// MostNodes bounds the streams, of which one more is refused, and the nodes that are
	// remembered.
	MostNodes = 10_000
	// viewEvery and viewLatest bound how often a watcher gets a view.
	viewEvery  = 250 * time.Millisecond
	viewLatest = 2 * time.Second
)

// Service is the fleet's edge: it takes the nodes' reports, sends them their
// directives, and publishes snapshots.
type Service struct {
	fleetpb.UnimplementedFleetServer

	// Constant after NewService.
	log     *slog.Logger
	metrics *metrics
	events  chan Event
	ended   chan struct{} // closed when Run has ended
	// plane returns the number of ADS clients and what is wrong with the control
	// plane itself.
	plane func() (clients int, conditions []obs.Condition)
	// plans holds what a plan of layouts is to be made for, the newest.
	plans chan *auto.Input
	// decided takes decisions; nil: nobody does.
	decided func(*fleetpb.Decision)

	// Atomic.
	latest   atomic.Pointer[published]
	demands  atomic.Int64  // open streams of demand
	demanded atomic.Uint64 // those ever opened
	deciders atomic.Int64  // open streams of decisions

	// mu guards the fields below.
	mu      sync.Mutex
	streams uint64            // streams ever opened
	nodes   map[string]*inbox // open streams, by node name
}

// published is a snapshot and the channel that is closed when the next one is there.
type published struct {
	*Snapshot
	next chan struct{}
}

// inbox is where a node's stream gets its directives from.
type inbox struct {
	stream uint64
	// directives holds the latest one that has not been sent.
	directives chan *fleetpb.Directive
	// term is the one last named to the node. Guarded by Service.mu.
	term uint64
	// replaced is closed when a newer stream of the node has come.
	replaced chan struct{}
}

// NewService returns the service around a fleet. plane is asked for each view.
func NewService(log *slog.Logger, reg prometheus.Registerer, plane func() (int, []obs.Condition)) *Service {
	s := &Service{
		log:     log,
		metrics: newMetrics(reg),
		events:  make(chan Event),
		ended:   make(chan struct{}),
		plans:   make(chan *auto.Input, 1),
		plane:   plane,
		nodes:   make(map[string]*inbox),
	}
	s.latest.Store(&published{Snapshot: &Snapshot{At: time.Now()}, next: make(chan struct{})})
	return s
}

// Latest returns the last snapshot and a channel that is closed when there is a
// newer one.
func (s *Service) Latest() (*Snapshot, <-chan struct{}) {
	p := s.latest.Load()
	return p.Snapshot, p.next
}

// Alive returns that the fleet does not decide any more, once it has begun to.
func (s *Service) Alive() error {
	p := s.latest.Load()
	if silent := time.Since(p.At); !p.At.IsZero() && silent > obs.StuckAfter {
		return fmt.Errorf("nothing was decided for %s", silent.Round(time.Second))
	}
	return nil
}

// Run drives the fleet until ctx ends. Called once.
func (s *Service) Run(ctx context.Context, f *Fleet) error {
	var planning sync.WaitGroup
	defer planning.Wait()
	defer close(s.ended)
	planning.Go(func() { s.planAll(ctx) })
	clock := time.NewTicker(tick)
	defer clock.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	last, pause, waiting := time.Time{}, decideEvery, true
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-s.events:
			f.Step(time.Now(), ev)
			if !waiting {
				waiting = true
				due.Reset(pause - time.Since(last))
			}
		case <-clock.C:
			if !waiting {
				waiting = true
				due.Reset(pause - time.Since(last))
			}
		case <-due.C:
			if slept := time.Since(last); slept > stalled+pause && !last.IsZero() {
				f.Excuse(time.Now(), slept)
			}
			last, waiting = time.Now(), false
			s.publish(f.Decide(last))
			pause = max(decideEvery, decideShare*time.Since(last))
		}
	}
}

// planAll makes the plans that snapshots ask for, one at a time, until ctx ends. They take as
// long as they take, and weights may be on a disk that hangs: nothing waits for them.
func (s *Service) planAll(ctx context.Context) {
	var read headers.Shapes
	for {
		select {
		case <-ctx.Done():
			return
		case in := <-s.plans:
			began := time.Now()
			out := auto.Make(*in, read.Of)
			s.metrics.planned(time.Since(began))
			s.Post(ctx, Planned{Input: in, Output: out})
		}
	}
}

// Post gives the fleet an event, and waits until it has taken it or ctx ends.
func (s *Service) Post(ctx context.Context, ev Event) {
	select {
	case s.events <- ev:
	case <-s.ended:
	case <-ctx.Done():
	}
}

// publish makes the snapshot known and sends its directives.
func (s *Service) publish(snap *Snapshot) {
	old := s.latest.Swap(&published{Snapshot: snap, next: make(chan struct{})})
	close(old.next)
	s.metrics.observe(snap)
	s.logChanges(old.Snapshot, snap)
	if snap.Plan != nil {
		select {
		case <-s.plans: // nobody waits for it any more
		default:
		}
		s.plans <- snap.Plan // has room: only Run puts
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, in := range s.nodes {
		a := snap.Directives[name]
		if a != nil || snap.Term != in.term {
			in.put(&fleetpb.Directive{Assignment: a, Term: snap.Term})
		}
	}
}

// put leaves a directive, in place of one that has not been sent yet.
func (in *inbox) put(d *fleetpb.Directive) {
	in.term = d.GetTerm()
	select {
	case <-in.directives: // what it assigns is assigned again in a second, if it still holds
	default:
	}
	in.directives <- d // has room: only publish and enter put
}

// logChanges logs the endpoints that have come to another state.
func (s *Service) logChanges(old, now *Snapshot) {
	before := make(map[string]Endpoint, len(old.Endpoints))
	for _, e := range old.Endpoints {
		before[e.Replica] = e
	}
	for _, e := range now.Endpoints {
		if b := before[e.Replica]; b.State != e.State || b.Address != e.Address {
			s.log.Info("replica changed", "replica", e.Replica, "state", e.State, "reason", e.Reason,
				"address", e.Address, "weight", e.Weight, "was", b.State)
		}
	}
	if now.Term != old.Term {
		s.log.Info("leadership changed", "term", now.Term, "was", old.Term)
	}
	if now.Settled && !old.Settled {
		s.log.Info("settled", "nodes", len(now.Nodes), "replicas", len(now.Endpoints))
	}
}

// Report takes the reports of one node.
func (s *Service) Report(stream grpc.BidiStreamingServer[fleetpb.NodeReport, fleetpb.Directive]) error {
	first, err := receive(stream, &fleetpb.NodeReport{})
	if err != nil {
		return s.refuse(err)
	}
	in, err := s.enter(first.GetNode())
	if err != nil {
		return err
	}
	s.log.Info("node connected", "node", first.GetNode(), "stream", in.stream)
	defer s.leave(first.GetNode(), in)

	ended := make(chan error, 1)
	go func() { ended <- s.readAll(stream, in.stream, first) }() // ends with the stream, which ends when we return
	for {
		select {
		case d := <-in.directives:
			a := d.GetAssignment()
			s.log.Info("directive sent", "node", first.GetNode(), "replica", a.GetReplica(), "stage", a.GetStage(), "generation", a.GetGeneration(), "term", d.GetTerm())
			if err := stream.Send(d); err != nil {
				return err
			}
		case <-in.replaced:
			return status.Error(codes.Aborted, "a newer stream of this node has replaced this one")
		case err := <-ended:
			return s.refuse(err)
		}
	}
}

// refuse counts and logs what ends a stream that is not merely the client's leaving.
func (s *Service) refuse(err error) error {
	if status.Code(err) == codes.InvalidArgument {
		s.metrics.refused.Inc()
		s.log.Warn("report refused", "err", err)
	}
	return err
}

// enter makes the stream the node's own and ends an older one.
func (s *Service) enter(node string) (*inbox, error) {
	in := &inbox{directives: make(chan *fleetpb.Directive, 1), replaced: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams++
	in.stream = s.streams
	if old := s.nodes[node]; old != nil {
		close(old.replaced)
	} else if len(s.nodes) >= MostNodes {
		return nil, status.Errorf(codes.ResourceExhausted, "%d nodes are connected; no more are taken", MostNodes)
	}
	s.nodes[node] = in
	if snap, _ := s.Latest(); snap.Term > 0 {
		in.put(&fleetpb.Directive{Term: snap.Term})
	}
	return in, nil
}

// leave reports to the fleet that the stream has ended.
func (s *Service) leave(node string, in *inbox) {
	s.mu.Lock()
	current := s.nodes[node] == in
	if current {
		delete(s.nodes, node)
	}
	s.mu.Unlock()
	s.log.Info("node disconnected", "node", node, "stream", in.stream, "replaced", !current)
	select {
	case s.events <- Closed{Node: node, Stream: in.stream}:
	case <-s.ended:
	}
}

// readAll hands the reports of one stream to the fleet until the stream ends. It
// returns nil when the node has closed it.
func (s *Service) readAll(stream grpc.BidiStreamingServer[fleetpb.NodeReport, fleetpb.Directive], id uint64, r *fleetpb.NodeReport) error {
	var cache *enginepb.Cache
	charge, posted := new(blocks.Charge), false // it is the fleet's with the first report
	defer func() {
		if !posted {
			charge.Free()
		}
	}()
	for {
		s.metrics.reports.Inc()
		if e := r.GetEngine(); e != nil {
			cache = cache.Add(e.GetCache())
			if e.Cache = nil; !charge.Resize(cache.Bytes()) {
				cache = nil
				charge.Resize(0)
				s.metrics.forgotten.Inc()
			}
		}
		select {
		case s.events <- Reported{Stream: id, Report: r, Cache: cache, Charge: charge}:
			posted = true
		case <-s.ended:
			return status.Error(codes.Unavailable, "xds is ending")
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		next, err := receive(stream, r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		r = next
	}
}

// receive returns the next report, completed by the one before, once it has passed
// all rules.
func receive(stream grpc.BidiStreamingServer[fleetpb.NodeReport, fleetpb.Directive], before *fleetpb.NodeReport) (*fleetpb.NodeReport, error) {
	r, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	fleetpb.Whole(before, r)
	if err := check(r, before); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return r, nil
}

// View returns the fleet as people see it, and a channel that is closed when it has changed.
func (s *Service) View() (*fleetpb.FleetView, <-chan struct{}) {
	snap, next := s.Latest()
	clients, conditions := s.plane()
	return snap.View(clients, conditions), next
}

// Watch streams the fleet for people.
func (s *Service) Watch(_ *fleetpb.WatchRequest, stream grpc.ServerStreamingServer[fleetpb.FleetView]) error {
	for {
		view, next := s.View()
		if err := stream.Send(view); err != nil {
			return err
		}
		sent := time.Now()
		if err := wait(stream.Context(), next, viewLatest); err != nil {
			return err
		}
		if err := wait(stream.Context(), nil, viewEvery-time.Since(sent)); err != nil {
			return err
		}
	}
}

// wait returns nil once c is closed or d is over, and an error when ctx ends.
func wait(ctx context.Context, c <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c:
		return nil
	case <-t.C:
		return nil
	}
}
