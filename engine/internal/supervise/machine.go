package supervise

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/proc"
)

// Part is what is true of one process at one moment.
type Part struct {
	// Run numbers its starts; larger than in any earlier life of this engine. 0:
	// never started.
	Run uint64
	// Up says whether the process exists.
	Up bool
	// Serving says whether the shard listens, or the backend answers.
	Serving bool
	// Hung says whether it exists but can't run.
	Hung bool
	// Idle is for how long it has used no CPU time.
	Idle time.Duration
	// Exit says how the last run ended, for a person.
	Exit string
	// Opaque is whether Idle does not show whether it makes progress.
	Opaque bool
	// Missing says what an external server lacks to serve.
	Missing string
}

// Peer is what is known of another engine of the replica.
type Peer struct {
	// Why says what keeps its stage from working; empty: it is ready.
	Why string
	// Epoch is the run of its shard.
	Epoch uint64
	// Idle is for how long its shard has used no CPU time.
	Idle time.Duration
}

// World is everything outside that a decision depends on.
type World struct {
	Now   time.Time
	Parts [backend.Roles]Part
	// Peers are the stages of the assignment in force, without our own.
	Peers []Peer
	// Running counts the requests in the backend, Waiting those that wait to be let in, Taken
	// all that were ever let in.
	Running, Waiting int
	Taken            uint64
	// Settling is whether what requests have left in the backend is still being saved.
	Settling bool
	// Shut is whether none is let in: the backend may be ended without harm.
	Shut bool
	// Served is when the backend last gave somebody a token.
	Served time.Time
	// Probed is the last probe that ended, ProbeErr how; 0: none.
	Probed   uint64
	ProbeErr string
}

// Verb is what a Command does.
type Verb int

// The commands of a Machine.
const (
	Start Verb = iota
	Kill
	Probe
	// Shut lets no request in from now on, unless one is in the backend or waits; Open
	// lets them in again.
	Shut
	Open
)

// Command is what a Machine wants done now. Start and Kill concern Role; Probe
// is number Probe. Assignment is what to start or to probe.
type Command struct {
	Do         Verb
	Role       backend.Role
	Probe      uint64
	Assignment *enginepb.Assignment
}

// The patience of a Machine.
const (
	// killHung is how long a process that hangs may come back by itself.
	killHung = 20 * time.Second
	// killLoading is how long a process may start without using CPU.
	killLoading = 30 * time.Second
	// stallAfter is how long requests may run without a token from a replica none
	// of whose processes has used the CPU for stallIdle.
	stallAfter = 10 * time.Second
	stallIdle  = 2 * time.Second
	// stallOpaque is how long a backend whose use of the CPU shows nothing may be
	// without a token before it is probed.
	stallOpaque = time.Minute
	// drainFor bounds how long running requests keep a drained backend alive, where
	// the assignment in force does not say it.
	drainFor = 10 * time.Second
	// healthyAfter is how long a process must have run for its next death to count
	// as the first one.
	healthyAfter = 5 * time.Second
	// probeFails is how many probes in a row may fail before a restart.
	probeFails = 2
)

// Machine decides what an engine does next. It does no I/O: Step takes the world
// and returns commands.
type Machine struct {
	// Constant after NewMachine. leave is how long requests are still taken after it has
	// been reported that the backend drains, grace how long running ones may last beyond
	// that when the engine ends.
	leave, grace time.Duration

	have *enginepb.Assignment // in force, perhaps a release; nil: none
	next *enginepb.Assignment // waits for the drain
	quit bool

	state  enginepb.State
	reason string
	since  time.Time
	drain  time.Time // when draining began; zero: not draining
	busy   time.Time // since when requests run; zero: none does

	parts [backend.Roles]part
	// group is what the running backend was started upon: the run of our own
	// shard and the epochs of the peers.
	group []uint64

	// proven is the backend's run that gave a token after doubt. A backend that
	// is not proven is probed; blame says why it is doubted, if it once worked.
	proven uint64
	doubt  time.Time
	blame  string
	probe  uint64 // the last one asked for
	open   bool   // whether it is still awaited
	fails  int

	rest rest

	out []Command
}

// part is what a Machine remembers of one process.
type part struct {
	run     uint64
	up      bool
	started time.Time
	hung    time.Time // since when; zero: it does not
	retry   time.Time // not to be started before
	backoff proc.Backoff
	key     string // what it was started with
	fault   string // why we killed it
	wanted  bool   // whether we killed it for no fault of its own
	asked   bool   // whether a start is under way
}

// NewMachine returns a machine without an assignment. A grace of 0 is drainFor.
func NewMachine(now time.Time, leave, grace time.Duration) *Machine {
	m := &Machine{leave: leave, grace: cmp.Or(grace, drainFor), state: enginepb.State_IDLE, reason: idle, since: now}
	for r := range m.parts {
		m.parts[r].backoff = proc.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second, Reset: healthyAfter}
	}
	return m
}

const idle = "no model is assigned"

// Assign takes a new assignment, which has been validated. One that differs only
// in its version, or in what concerns admission, changes no process. What is on its way
// here longer than its successor is refused; no version is so high that nothing comes
// after it.
func (m *Machine) Assign(a *enginepb.Assignment) error {
	last := m.have
	if m.next != nil {
		last = m.next
	}
	switch {
	case last.Version().After(a.Version()):
		return fmt.Errorf("%s is older than %s, which is in force: assign a later one, or one of another control epoch", named(a), named(last))
	case a.Version() == last.Version() && !proto.Equal(a, last):
		return fmt.Errorf("%s is in force with another content: assign another version", named(a))
	}
	m.next = a
	return nil
}

// named names a version for a person.
func named(a *enginepb.Assignment) string {
	return fmt.Sprintf("generation %d of control epoch %d", a.GetGeneration(), a.GetControlEpoch())
}

// Quit makes the machine drain and never start anything again.
func (m *Machine) Quit() {
	m.quit, m.drain = true, time.Time{} // the end has a patience of its own
}

// Idle reports whether nothing runs and nothing is wanted: after Quit, the end.
func (m *Machine) Idle() bool {
	gone := func(p part) bool { return !p.up && !p.asked }
	return m.quit && m.have == nil && gone(m.parts[backend.Shard]) && gone(m.parts[backend.Head])
}

// Step takes in the world, moves the state and returns what is to be done.
func (m *Machine) Step(w World) []Command {
	m.out = nil
	for r := range m.parts {
		m.observe(backend.Role(r), w)
	}
	switch {
	case w.Running == 0:
		m.busy = time.Time{}
	case m.busy.IsZero():
		m.busy = w.Now
	}
	state, reason := m.resting(w)
	if state != m.state {
		m.since = w.Now
	}
	m.state, m.reason = state, reason
	return m.out
}

// observe remembers starts and deaths.
func (m *Machine) observe(r backend.Role, w World) {
	p, now := &m.parts[r], w.Parts[r]
	if now.Run != p.run {
		p.run, p.asked, p.started, p.fault, p.wanted = now.Run, false, w.Now, "", false
		p.up = true
	}
	if p.up && !now.Up {
		p.up, p.hung = false, time.Time{}
		if !p.wanted {
			p.retry = w.Now.Add(p.backoff.Next(w.Now.Sub(p.started)))
		}
		if p.fault == "" {
			p.fault = r.String() + " " + now.Exit
		}
	}
	switch {
	case !now.Hung:
		p.hung = time.Time{}
	case p.hung.IsZero():
		p.hung = w.Now
	}
}

func (m *Machine) judge(w World) (enginepb.State, string) {
	if state, reason, draining := m.drained(w); draining {
		return state, reason
	}
	if m.have.Releases() {
		return enginepb.State_IDLE, idle
	}
	if sharded(m.have) {
		if state, reason := m.part(backend.Shard, w); state != enginepb.State_READY {
			m.doubted("", w)
			return m.started(state, reason, w)
		}
	}
	if m.have.GetStage() > 0 {
		return enginepb.State_READY, ""
	}
	return m.replica(w)
}

// drained waits for running requests where an end or a new assignment stops the
// backend, then lets go of what is no longer wanted.
func (m *Machine) drained(w World) (enginepb.State, string, bool) {
	why := "the engine ends"
	switch {
	case m.quit:
	case m.next != nil && m.keeps(m.next):
		m.have, m.next, m.drain = m.next, nil, time.Time{}
		m.release(w)
		return 0, "", false
	case m.next != nil:
		why = "a new assignment waits"
	default:
		return 0, "", false
	}
	if m.drain.IsZero() {
		m.drain = w.Now
	}
	if m.awaits(w) {
		return enginepb.State_DRAINING, why + " for running requests", true
	}
	m.have, m.next, m.drain = m.next, nil, time.Time{}
	if m.quit {
		m.have = nil
		m.drain = w.Now
	}
	m.release(w)
	return enginepb.State_DRAINING, why, m.quit
}

// awaits reports whether what drains is kept alive: requests run, or may still come, or what they
// leave is being saved. A
// shard that is not the head's own does not know; it is used as long as it uses the CPU.
func (m *Machine) awaits(w World) bool {
	passed := w.Now.Sub(m.drain) - m.leave
	switch {
	case w.Parts[backend.Head].Up:
		return (passed < 0 || (w.Running > 0 || w.Settling) && passed < m.patience()) && !m.wedged(w)
	case m.have.GetStage() > 0 && m.leave > 0 && w.Parts[backend.Shard].Up:
		return passed < 0 || w.Parts[backend.Shard].Idle < stallIdle && passed < m.patience()
	}
	return false
}

// leaving reports whether the backend drains and still takes requests: of who sends
// them, some don't know yet.
func (m *Machine) leaving(now time.Time) bool {
	return m.state == enginepb.State_DRAINING && m.parts[backend.Head].up && m.have != nil && now.Sub(m.drain) < m.leave
}

// patience is how long running requests may last. That of the assignment in force
// counts: the requests were sent under its rules.
func (m *Machine) patience() time.Duration {
	if m.quit {
		return m.grace
	}
	if d := m.have.GetBackend().GetDrain(); d != nil {
		return d.AsDuration()
	}
	return drainFor
}

// wedged reports whether the running requests will get no answer from this backend,
// so that waiting for them is of no use.
func (m *Machine) wedged(w World) bool {
	hung := w.Parts[backend.Head].Hung && w.Now.Sub(m.parts[backend.Head].hung) >= killHung
	shard := sharded(m.have) && !w.Parts[backend.Shard].Up
	group := append([]uint64{w.Parts[backend.Shard].Run}, epochs(w.Peers)...)
	return hung || shard || !slices.Equal(group, m.group) || m.stalled(w)
}

// keeps reports whether the running backend serves a as it is.
func (m *Machine) keeps(a *enginepb.Assignment) bool {
	return !m.parts[backend.Head].up || key(backend.Head, a) == m.parts[backend.Head].key
}

// release kills the processes that the assignment in force has no use for.
func (m *Machine) release(w World) {
	for r := range m.parts {
		if p := &m.parts[r]; w.Parts[r].Up && key(backend.Role(r), m.have) != p.key {
			m.replace(backend.Role(r), "serves something else")
		}
	}
}

// key says with what a process of role r is started; empty: a has none.
func key(r backend.Role, a *enginepb.Assignment) string {
	b := a.GetBackend()
	switch {
	case r == backend.Shard && !sharded(a), r == backend.Head && a.GetStage() > 0:
		return ""
	case r == backend.Shard:
		return fmt.Sprint(b.GetKind(), b.GetThreads())
	}
	return a.ProcessKey()
}

func sharded(a *enginepb.Assignment) bool { return len(a.GetStages()) > 1 }

// part brings the process of role r up and reports READY when it serves.
func (m *Machine) part(r backend.Role, w World) (enginepb.State, string) {
	p, now := &m.parts[r], w.Parts[r]
	switch {
	case now.Up && p.key != key(r, m.have):
		return m.replace(r, "serves something else")
	case !now.Up:
		return m.start(r, w)
	case now.Hung:
		if w.Now.Sub(p.hung) >= killHung {
			m.kill(r, fmt.Sprintf("hung for %v", killHung))
		}
		return enginepb.State_BROKEN, r.String() + " stopped"
	case !now.Serving && now.Idle >= killLoading:
		m.kill(r, fmt.Sprintf("did nothing for %v while starting", killLoading))
		return enginepb.State_BROKEN, p.fault
	case !now.Serving && now.Missing != "":
		return enginepb.State_STARTING, r.String() + " is awaited: " + now.Missing
	case !now.Serving:
		return enginepb.State_STARTING, r.String() + " is starting"
	}
	return enginepb.State_READY, ""
}

func (m *Machine) start(r backend.Role, w World) (enginepb.State, string) {
	p := &m.parts[r]
	if w.Now.Before(p.retry) || r == backend.Head && m.unwanted(w) {
		return enginepb.State_BROKEN, p.fault
	}
	if !p.asked {
		p.asked, p.key = true, key(r, m.have)
		m.out = append(m.out, Command{Do: Start, Role: r, Assignment: m.have})
	}
	return enginepb.State_STARTING, r.String() + " is starting"
}

// replace kills a process that did nothing wrong: its next start does not wait.
func (m *Machine) replace(r backend.Role, why string) (enginepb.State, string) {
	m.kill(r, why)
	m.parts[r].wanted = true
	return enginepb.State_STARTING, m.parts[r].fault
}

func (m *Machine) kill(r backend.Role, fault string) {
	p := &m.parts[r]
	p.fault, p.wanted = r.String()+" "+fault, false
	if c := (Command{Do: Kill, Role: r}); !slices.Contains(m.out, c) {
		m.out = append(m.out, c)
	}
}

// replica judges the head, whose own shard works.
func (m *Machine) replica(w World) (enginepb.State, string) {
	group := append([]uint64{w.Parts[backend.Shard].Run}, epochs(w.Peers)...)
	if w.Parts[backend.Head].Up && !slices.Equal(group, m.group) {
		m.doubted("", w)
		return m.replace(backend.Head, "lost a shard, which was restarted")
	}
	for i, p := range w.Peers {
		if p.Why != "" {
			m.doubted("", w)
			return m.started(enginepb.State_STARTING, "waits for "+m.node(i)+": "+p.Why, w)
		}
	}
	if !w.Parts[backend.Head].Up {
		m.group, m.blame = group, ""
	}
	switch unasked := m.unasked(w); {
	case m.asleep():
		return enginepb.State_READY, ""
	case unasked:
		return enginepb.State_STARTING, "waits until those have left who wait for what was before"
	}
	if state, reason := m.part(backend.Head, w); state != enginepb.State_READY {
		m.doubted("", w)
		return state, reason
	}
	return m.token(w)
}

// started turns STARTING into BROKEN where the backend is up: a replica that
// worked is not starting.
func (m *Machine) started(state enginepb.State, reason string, w World) (enginepb.State, string) {
	if state == enginepb.State_STARTING && m.have.GetStage() == 0 && w.Parts[backend.Head].Serving {
		return enginepb.State_BROKEN, reason
	}
	return state, reason
}

// node returns the name of the i-th peer.
func (m *Machine) node(i int) string {
	if uint32(i) >= m.have.GetStage() {
		i++
	}
	return m.have.GetStages()[i].GetNode()
}

func epochs(peers []Peer) []uint64 {
	var e []uint64
	for _, p := range peers {
		e = append(e, p.Epoch)
	}
	return e
}

// doubted makes the backend prove itself by a token later than now.
func (m *Machine) doubted(blame string, w World) {
	m.proven, m.doubt, m.blame, m.open, m.fails = 0, w.Now, blame, false, 0
}

// token reports READY while the backend, which answers, gives tokens.
func (m *Machine) token(w World) (enginepb.State, string) {
	run := w.Parts[backend.Head].Run
	if m.proven == run {
		if why := m.lapsed(w); why != "" {
			m.doubted(why, w)
		}
	}
	if m.proven != run && w.Served.After(m.doubt) {
		m.proven, m.blame, m.open = run, "", false
	}
	if m.proven == run {
		return enginepb.State_READY, ""
	}
	m.ask(w)
	if m.blame != "" {
		return enginepb.State_BROKEN, m.blame
	}
	return enginepb.State_WARMING, "the first token is awaited"
}

// lapsed returns why a proven backend is doubted; empty: it is not. The silence of an
// opaque one may be that of a long answer that is not streamed: it is probed first, and
// serves meanwhile.
func (m *Machine) lapsed(w World) string {
	quiet := m.quiet(w)
	switch {
	case m.stalled(w):
		return "the backend makes no progress"
	case !w.Parts[backend.Head].Opaque || quiet < stallOpaque:
		m.open = false
	case m.open && w.Probed == m.probe:
		return w.ProbeErr // after a token it would not be quiet
	case !m.open:
		m.askOnce()
	}
	return ""
}

// quiet is for how long requests have run without a token; 0: none runs.
func (m *Machine) quiet(w World) time.Duration {
	if w.Running == 0 {
		return 0
	}
	return min(w.Now.Sub(w.Served), w.Now.Sub(m.busy), w.Now.Sub(m.doubt))
}

// stalled reports whether requests wait for a replica that does nothing. A long
// prompt keeps one of its shards busy, on a loaded machine for minutes.
func (m *Machine) stalled(w World) bool {
	idle := w.Parts[backend.Head].Idle
	if sharded(m.have) {
		idle = min(idle, w.Parts[backend.Shard].Idle)
	}
	for _, p := range w.Peers {
		idle = min(idle, p.Idle)
	}
	return !w.Parts[backend.Head].Opaque && m.quiet(w) >= stallAfter && idle >= stallIdle
}

// ask keeps one probe under way, and gives the backend up after a few.
func (m *Machine) ask(w World) {
	if m.open && w.Probed == m.probe {
		m.open = false
		m.fails++
		m.blame = w.ProbeErr
	}
	if m.fails >= probeFails {
		m.kill(backend.Head, "gives no token: "+m.blame)
		return
	}
	if !m.open {
		m.askOnce()
	}
}

// askOnce begins a probe.
func (m *Machine) askOnce() {
	m.open = true
	m.probe++
	m.out = append(m.out, Command{Do: Probe, Probe: m.probe, Assignment: m.have})
}
