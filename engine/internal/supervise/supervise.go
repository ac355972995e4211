// Package supervise keeps one replica's processes alive: it starts, warms, probes,
// drains and restarts them, the shards of a replica as one gang.
//
// Called by engine's main (Run), status (Assign, Watch) and api (Serving). Its one
// rule: Machine decides and does no I/O; Supervisor does the I/O and decides nothing.
package supervise

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// Launcher starts and asks the inference engine that is supervised.
type Launcher interface {
	// Process returns a process of the replica, not yet started.
	Process(backend.Role, *enginepb.Assignment) (backend.Process, error)
	// Prove has the whole replica generate a few tokens.
	Prove(context.Context, *enginepb.Assignment) error
}

// Config is what a Supervisor needs.
type Config struct {
	// Node is this engine's node.
	Node string
	// Logs is the folder of the processes' log files.
	Logs     string
	Launcher Launcher
	// Running counts the requests in the backend; Served is when it last gave a
	// token to one of them.
	Running func() int
	Served  func() time.Time
	// Settling reports whether what requests have left in the backend is still being saved, which
	// a drain waits for; nil: nothing is.
	Settling func() bool
	// Door is where requests are let in; nil: backends are kept without any, too.
	Door Door
	Log  *slog.Logger
	// Leave is how long requests are still taken after it was reported that no more are to
	// come, Grace how long running ones may last beyond that when the engine ends; 0: 10 s.
	Leave, Grace time.Duration
	// Security returns how the engine of another node is connected to; nil: in plain text.
	Security func(node string) grpc.DialOption
}

func (c Config) security(node string) grpc.DialOption {
	if c.Security == nil {
		return grpc.WithTransportCredentials(insecure.NewCredentials())
	}
	return c.Security(node)
}

// Door is where requests wait until they are let in.
type Door interface {
	// Demand returns how many wait, how many were ever let in, and whether the door is shut.
	Demand() (waiting int, taken uint64, shut bool)
	// Shut shuts it, unless a request is in the backend or waits. Open lets them in again.
	Shut()
	Open()
}

// ErrEnds is why Serving.Alive is cancelled when the replica stops being ready.
var ErrEnds = errors.New("the replica is not ready any more")

// Serving is a replica that is ready.
type Serving struct {
	Assignment *enginepb.Assignment
	// Open ends when no request may start any more, Alive when those that have
	// not been answered can't be by this backend.
	Open, Alive context.Context

	close, kill context.CancelCauseFunc
}

// Process is one process, for the status.
type Process struct {
	Role     backend.Role
	PID      int // 0: down
	Restarts uint32
	Since    time.Time
	RSS      uint64        // bytes
	CPU      time.Duration // used, user and system
}

// Snapshot is the observed state of one moment. It is never changed once published.
type Snapshot struct {
	State  enginepb.State
	Reason string
	Since  time.Time
	// Version is that of the assignment in force, also of a release.
	Version    enginepb.Version
	Assignment *enginepb.Assignment // nil: none, or released
	Epoch      uint64
	Processes  []Process
	// Dormant is whether the backend of a READY replica is ended until somebody asks for it, or
	// being loaded again; Wake is how long a request would wait for that.
	Dormant bool
	Wake    time.Duration
}

// Supervisor runs a Machine.
type Supervisor struct {
	// Constant after New.
	cfg Config
	// wake makes the loop step at once; it holds one call.
	wake chan struct{}

	// Atomic.
	snapshot atomic.Pointer[Snapshot]
	serving  atomic.Pointer[Serving] // nil: not ready
	proved   atomic.Int64            // when a probe last succeeded, ns since the epoch
	probed   atomic.Pointer[probed]

	// mu guards the fields below.
	mu      sync.Mutex
	machine *Machine
	changed chan struct{} // closed and replaced when the snapshot changes

	// Of the loop only.
	children    [backend.Roles]*child
	starts      [backend.Roles]uint32
	born        [backend.Roles]time.Time
	firstRun    uint64
	peers       []*peer
	peersOf     *enginepb.Assignment
	tasks       sync.WaitGroup
	trimmed     time.Time
	checked     time.Time // when the world was last observed
	draining    *Serving  // its requests are being finished
	servedEpoch uint64
}

type probed struct {
	number uint64
	err    string
}

// New returns a supervisor without an assignment; Run makes it work.
func New(cfg Config) *Supervisor {
	now := time.Now()
	s := &Supervisor{
		cfg: cfg, wake: make(chan struct{}, 1), machine: NewMachine(now, cfg.Leave, cfg.Grace), changed: make(chan struct{}),
		// Runs grow over restarts of the engine.
		firstRun: uint64(now.UnixMilli()),
	}
	s.snapshot.Store(&Snapshot{State: enginepb.State_IDLE, Reason: idle, Since: now})
	s.probed.Store(&probed{})
	return s
}

// Snapshot returns the present truth and a channel that is closed at its next
// change of state, reason, epoch, generation or processes.
func (s *Supervisor) Snapshot() (*Snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot.Load(), s.changed
}

// Serving returns the ready replica, or nil and why there is none.
func (s *Supervisor) Serving() (*Serving, string) {
	if v := s.serving.Load(); v != nil {
		return v, ""
	}
	snap := s.snapshot.Load()
	if snap.Reason == "" {
		return nil, "this node holds a shard of " + snap.Assignment.GetReplica() + "; its first node answers"
	}
	return nil, snap.Reason
}

// Assign takes a new assignment. It returns the version in force.
func (s *Supervisor) Assign(a *enginepb.Assignment) (enginepb.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.machine.Assign(proto.CloneOf(a))
	s.Wake()
	if err != nil {
		return s.snapshot.Load().Version, err
	}
	return a.Version(), nil
}

// Wake makes the loop step at once.
func (s *Supervisor) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Ticks of the loop: slow where nothing is expected.
const (
	slowTick = 200 * time.Millisecond
	fastTick = 50 * time.Millisecond
)

// Run supervises until ctx ends; then it drains, ends the processes and returns.
func (s *Supervisor) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		s.watchPeers(inner, nil)
		cancel()
		s.tasks.Wait()
	}()
	tick := time.NewTicker(fastTick)
	defer tick.Stop()
	done := ctx.Done()
	for {
		if s.step(inner) {
			return nil
		}
		tick.Reset(s.pace())
		select {
		case <-done:
			done = nil
			s.mu.Lock()
			s.machine.Quit()
			s.mu.Unlock()
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// Alive takes the lock of the machine. It returns as soon as it has had it.
func (s *Supervisor) Alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil
}

func (s *Supervisor) pace() time.Duration {
	snap := s.snapshot.Load()
	if (snap.State == enginepb.State_READY || snap.State == enginepb.State_IDLE) && !snap.Dormant {
		return slowTick
	}
	return fastTick
}

// step lets the machine look once and does what it wants. It reports the end.
func (s *Supervisor) step(ctx context.Context) (end bool) {
	now := time.Now()
	s.mu.Lock()
	s.watchPeers(ctx, s.machine.have)
	commands := s.machine.Step(s.world(now))
	end = s.machine.Idle()
	s.mu.Unlock()
	for _, c := range commands {
		s.do(ctx, c)
	}
	s.publish(ctx)
	s.trim(now)
	return end
}

func (s *Supervisor) world(now time.Time) World {
	p := s.probed.Load()
	w := World{Now: now, Running: s.cfg.Running(), Settling: s.cfg.Settling != nil && s.cfg.Settling(), Served: s.cfg.Served(), Probed: p.number, ProbeErr: p.err}
	if s.cfg.Door != nil {
		w.Waiting, w.Taken, w.Shut = s.cfg.Door.Demand()
	}
	if proved := time.Unix(0, s.proved.Load()); proved.After(w.Served) {
		w.Served = proved
	}
	for r := range s.children {
		w.Parts[r] = s.children[r].part(now)
	}
	paused := now.Sub(s.checked) > peerSilent/2
	s.checked = now
	for _, p := range s.peers {
		if paused {
			p.forgive(now)
		}
		w.Peers = append(w.Peers, p.view(now))
	}
	return w
}

func (s *Supervisor) do(ctx context.Context, c Command) {
	switch c.Do {
	case Start:
		s.start(ctx, c.Role, c.Assignment)
	case Kill:
		if child := s.children[c.Role]; child.up() {
			s.cfg.Log.Info("process killed", "role", c.Role.String(), "pid", child.pid())
			child.kill()
		}
	case Probe:
		s.probe(ctx, c.Probe, c.Assignment)
	case Shut, Open:
		if s.cfg.Door == nil {
			return
		}
		if c.Do == Shut {
			s.cfg.Door.Shut()
		} else {
			s.cfg.Door.Open()
		}
	}
}

func (s *Supervisor) start(ctx context.Context, r backend.Role, a *enginepb.Assignment) {
	run := s.firstRun + uint64(s.starts[r]) + 1
	s.starts[r]++
	s.born[r] = time.Now()
	p, err := s.cfg.Launcher.Process(r, a)
	if err != nil {
		s.children[r] = &child{run: run, exit: "does not start: " + err.Error()}
		return
	}
	if p.Cmd == nil {
		s.follow(ctx, r, attach(run, p, s.born[r]))
		return
	}
	c, beats := spawn(run, p, s.logPath(r), s.born[r])
	if c.proc == nil {
		s.children[r] = c
		s.cfg.Log.Warn("process not started", "role", r.String(), "err", c.exit)
		s.Wake()
		return
	}
	s.cfg.Log.Info("process started", "role", r.String(), "pid", c.pid())
	s.tasks.Go(func() { c.readBeats(beats) })
	s.follow(ctx, r, c)
}

// follow does what is to be done beside a process until it has ended.
func (s *Supervisor) follow(ctx context.Context, r backend.Role, c *child) {
	s.children[r] = c
	ctx, cancel := context.WithCancel(ctx)
	s.tasks.Go(func() {
		if c.await(ctx) {
			s.Wake()
		}
		if c.remote {
			c.watch(ctx)
		}
	})
	if c.spec.Beside != nil {
		s.tasks.Go(func() { c.spec.Beside(ctx) })
	}
	s.tasks.Go(func() {
		defer cancel()
		select {
		case <-c.done:
			if c.output != nil {
				c.output.Close()
			}
			s.Wake()
		case <-ctx.Done():
		}
	})
}

// probeFor bounds one probe: a loaded machine may need long for a few tokens.
const probeFor = 20 * time.Second

func (s *Supervisor) probe(ctx context.Context, number uint64, a *enginepb.Assignment) {
	s.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, probeFor)
		defer cancel()
		p := &probed{number: number}
		if err := s.cfg.Launcher.Prove(ctx, a); err != nil {
			p.err = err.Error()
		} else {
			s.proved.Store(time.Now().UnixNano())
		}
		s.probed.Store(p)
		s.Wake()
	})
}

// watchPeers watches the other engines of a's replica, if this is its head.
func (s *Supervisor) watchPeers(ctx context.Context, a *enginepb.Assignment) {
	if a == s.peersOf {
		return
	}
	s.peersOf = a
	for _, p := range s.peers {
		p.stop()
	}
	for _, p := range s.peers {
		<-p.done
	}
	s.peers = nil
	if a.GetStage() > 0 {
		return
	}
	for i, stage := range a.GetStages() {
		if i == 0 {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		p := &peer{stage: uint32(i), replica: a.GetReplica(), stop: cancel, done: make(chan struct{})}
		s.peers = append(s.peers, p)
		go p.watch(ctx, stage.GetEngineAddress(), s.cfg.security(stage.GetNode()), s.Wake)
	}
}

func (s *Supervisor) logPath(r backend.Role) string {
	return filepath.Join(s.cfg.Logs, r.String()+"@"+s.cfg.Node+".log")
}
