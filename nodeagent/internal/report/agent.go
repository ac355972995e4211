// Package report reports one node: it watches the node's engine, streams the state of
// the engine and of the node's sensors to each xds, and hands the directives of the
// leading xds to the engine.
//
// nodeagent runs one Reporter. The rule: a report has nothing that is not known at that
// moment. An engine that does not answer is reported as such, and an xds that does not
// answer is tried again for ever.
package report

import (
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

const (
	// silence is how long an engine may say nothing while its stream is open.
	// It says something four times in this time.
	silence = time.Second
	// stall is how late a Tick may be before the agent itself was held up.
	stall = 100 * time.Millisecond
	// assignAgain is how long after an Assign the next one may be.
	assignAgain = 500 * time.Millisecond
	// maxReason bounds what is reported for a person, in bytes.
	maxReason = 1024
)

// Event is what happens to an agent: one of the types below.
type Event any

type (
	// Received is a status from the engine.
	Received struct{ Status *enginepb.Status }
	// Lost is the end of the engine's stream, or that it could not be had.
	Lost struct{ Err error }
	// Up is a new stream to the xds at that address.
	Up struct{ XDS string }
	// Down is the end of the stream to an xds, or that it could not be had.
	Down struct {
		XDS string
		Err error
	}
	// Gone is that nobody tries to reach an xds any more: its name stands for others.
	Gone struct{ XDS string }
	// Resolved is whether the addresses of every xds could be found out; nil: they could.
	Resolved struct{ Err error }
	// Directed is a directive from an xds.
	Directed struct {
		XDS       string
		Directive *fleetpb.Directive
	}
	// Assigned is the engine's answer to an assignment.
	Assigned struct {
		Version enginepb.Version
		Err     error
	}
	// Tick is that the time of Wake has come.
	Tick struct{}
)

// Effects is what is to be done after an event.
type Effects struct {
	// Read is whether the sensors are to be read anew.
	Read bool
	// Report is whether a report is to be sent now, after the reading.
	Report bool
	// Assign is what the engine is to be assigned; nil: nothing.
	Assign *enginepb.Assignment
	// Log is what changed, for the log; empty: nothing.
	Log []Change
}

// Change is one line of the log.
type Change struct {
	// Text is constant for its kind of change.
	Text string
	// Wrong is whether it is worth a warning.
	Wrong bool
	// Facts are slog attributes.
	Facts []any
}

// Agent is the decisions of one node's reporter: what it knows, and what
// follows from it. It does no I/O and reads no clock.
type Agent struct {
	// Constant after NewAgent.
	node     string
	zone     string
	interval time.Duration // between heartbeats
	timeout  time.Duration // announced to xds

	// Of the engine.
	status   *enginepb.Status // the last one; nil: none yet
	received time.Time        // when, or when the agent began to listen
	lost     string           // why it can't be had; empty: its stream is open
	reported observed         // what the last report was about, and the log
	cache    *enginepb.Cache  // what its KV cache holds; nil: not known
	news     bool             // whether that has changed since the last report

	// Of xds.
	leaders leaders
	unnamed string    // why the addresses of every xds are not known; empty: they are
	seq     uint64    // of the last report, to any xds
	beat    time.Time // of the next heartbeat
	soon    time.Time // earliest next report of the cache alone

	// Of directives.
	want    *enginepb.Assignment // nil: nothing
	refused *fleetpb.Refusal     // the last directive, if it is refused for good; nil: it is not
	asking  bool                 // whether an Assign is on its way
	askFrom time.Time            // earliest next Assign

	due time.Time // of the Tick that Wake asked for last
}

// observed is what makes a report urgent when it changes.
type observed struct {
	known   bool
	state   enginepb.State
	version enginepb.Version
	epoch   uint64
	wrong   string           // prefix of engine_error; empty: a status is had
	refused enginepb.Version // of the directive that is refused; zero: none
}

// NewAgent returns an agent that knows nothing yet.
func NewAgent(node, zone string, interval, timeout time.Duration, now time.Time) *Agent {
	return &Agent{node: node, zone: zone, interval: interval, timeout: timeout, received: now, beat: now, due: now, leaders: newLeaders()}
}

// Step advances the agent by one event.
func (a *Agent) Step(now time.Time, ev Event) Effects {
	var fx Effects
	a.excuse(now)
	a.leaders.pass(now)
	switch ev := ev.(type) {
	case Received:
		a.receive(now, ev.Status)
	case Lost:
		a.lost = clip(wire.EngineUnreachable + cause(ev.Err))
		a.refused = nil // what comes next may be another release of it
	case Up:
		if !a.leaders.connected() {
			a.seq = 0
		}
		a.leaders.join(ev.XDS)
		fx.log("xds connected", false, "xds", ev.XDS)
		fx.Report = a.observe(now).known
	case Down:
		if a.leaders.leave(ev.XDS, cause(ev.Err)) {
			fx.log("xds lost", true, "xds", ev.XDS, "err", cause(ev.Err))
		}
	case Gone:
		a.leaders.forget(ev.XDS)
	case Resolved:
		a.resolved(ev.Err, &fx)
	case Directed:
		a.direct(now, ev, &fx)
	case Assigned:
		a.assigned(now, ev, &fx)
	case Tick:
	default:
		panic(fmt.Sprintf("report: event %T", ev)) // events are made in this package alone
	}
	a.notice(now, &fx)
	a.ask(now, &fx)
	return fx
}

// excuse gives the engine the time back in which this agent itself could not
// run: on an overloaded machine, or stopped and continued, it would otherwise
// call an engine silent whose statuses it has only not read yet.
func (a *Agent) excuse(now time.Time) {
	if late := now.Sub(a.due); late > stall {
		a.received = a.received.Add(late)
		a.due = now
	}
}

// receive takes a status from the engine, unless a report with it would be refused.
func (a *Agent) receive(now time.Time, s *enginepb.Status) {
	a.received = now
	if err := trust.Message(s); err != nil {
		a.lost = clip(wire.EngineInvalid + err.Error())
		return
	}
	if s.GetNode() != a.node {
		a.lost = clip(wire.EngineInvalid + fmt.Sprintf("it is the engine of node %q", s.GetNode()))
		return
	}
	a.news = a.news || len(s.GetCache().GetSegments()) > 0
	a.cache = a.cache.Add(s.GetCache())
	s.Cache = nil // said to xds in increments of its own
	a.status, a.lost = s, ""
}

// Cache returns what the engine's KV cache holds; nil: not known.
func (a *Agent) Cache() *enginepb.Cache { return a.cache }

func (a *Agent) resolved(err error, fx *Effects) {
	before := a.unnamed
	if a.unnamed = ""; err != nil {
		a.unnamed = clip(err.Error())
	}
	if before == "" && err != nil {
		fx.log("addresses of xds not found, the known ones stay", true, "err", err)
	}
}

// direct takes what the leading xds wants of the engine. What was wanted before is
// forgotten: xds knows best. Who has been replaced as the leader is not obeyed.
func (a *Agent) direct(now time.Time, ev Directed, fx *Effects) {
	d := ev.Directive
	err := trust.Message(d)
	if err != nil && d.GetTerm() > math.MaxInt64 {
		fx.log("directive refused", true, "err", err)
		return // nobody could ever lead after that one
	}
	obeyed, news := a.leaders.named(now, ev.XDS, d.GetTerm())
	if news {
		fx.log("xds leads", !obeyed, "xds", ev.XDS, "term", d.GetTerm(), "obeyed", obeyed)
	}
	if !obeyed || d.GetAssignment() == nil {
		return
	}
	if err != nil {
		a.refuse(d.GetAssignment().Version(), err)
		fx.log("directive refused", true, "err", err)
		return
	}
	if a.refused.Version() != d.GetAssignment().Version() {
		a.refused = nil
	}
	if !proto.Equal(a.want, d.GetAssignment()) {
		fx.log("directive", false, "generation", d.GetAssignment().GetGeneration(), "control_epoch", d.GetAssignment().GetControlEpoch(), "model", d.GetAssignment().GetModel(),
			"replica", d.GetAssignment().GetReplica(), "stage", d.GetAssignment().GetStage())
	}
	a.want, a.askFrom = d.GetAssignment(), time.Time{}
}

func (a *Agent) assigned(now time.Time, ev Assigned, fx *Effects) {
	a.asking = false
	if a.want.Version() != ev.Version {
		return // something newer is wanted by now
	}
	a.askFrom = now.Add(assignAgain)
	if ev.Err == nil {
		return
	}
	fx.log("assignment not taken", true, "generation", ev.Version.Generation, "control_epoch", ev.Version.Epoch, "err", cause(ev.Err))
	switch status.Code(ev.Err) {
	case codes.InvalidArgument:
		a.refuse(ev.Version, ev.Err)
		a.want = nil // the engine will never take it
	case codes.FailedPrecondition:
		a.want = nil // xds sees what the engine has, and gives another version
	}
}

// refuse notes that a directive will never be followed, for xds to know.
func (a *Agent) refuse(v enginepb.Version, err error) {
	if v.Generation > 0 {
		a.refused = &fleetpb.Refusal{Generation: v.Generation, ControlEpoch: v.Epoch, Reason: clip(cause(err))}
	}
}

// ask assigns to the engine what is desired, if it doesn't do that already. It is
// asked again after its restart without waiting for xds.
func (a *Agent) ask(now time.Time, fx *Effects) {
	if a.owed() && !a.asking && !now.Before(a.askFrom) {
		a.asking = true
		fx.Assign = a.want
	}
}

// owed is whether the engine answers and does not do yet what is wanted, or is about to
// leave it for something else, which may have been on its way for long.
func (a *Agent) owed() bool {
	return a.want != nil && a.lost == "" && a.status != nil &&
		(a.status.Version() != a.want.Version() || a.status.GetState() == enginepb.State_DRAINING)
}

// notice asks for a report when what is observed of the engine changed or the time
// of a heartbeat has come.
func (a *Agent) notice(now time.Time, fx *Effects) {
	t := a.observe(now)
	if t != a.reported {
		fx.Report = t.known
		fx.engineChanged(t, a.reported, a.reason(now))
		a.reported = t
	}
	if !now.Before(a.beat) {
		fx.Read = true
		fx.Report = t.known
		a.beat = now.Add(a.interval)
	}
	if a.news && !now.Before(a.soon) {
		fx.Report = t.known
	}
	fx.Report = fx.Report && a.leaders.connected()
	if fx.Report {
		a.news, a.soon = false, now.Add(cacheEvery)
	}
}

// observe returns what is to be reported of the engine. While nothing came yet
// and nothing is wrong, there is nothing to say: the node of a restarted agent
// must not look broken for a moment.
func (a *Agent) observe(now time.Time) observed {
	wrong := a.wrong(now)
	if wrong == wire.EngineStarting {
		return observed{}
	}
	refused := a.refused.Version()
	if wrong != "" {
		prefix, _, _ := strings.Cut(wrong, " ")
		return observed{known: true, wrong: prefix, refused: refused}
	}
	return observed{known: true, refused: refused, state: a.status.GetState(), version: a.status.Version(), epoch: a.status.GetEpoch()}
}

// wrong returns why there is no status to report; empty if there is one.
func (a *Agent) wrong(now time.Time) string {
	switch {
	case a.lost != "":
		return a.lost
	case now.Sub(a.received) >= silence:
		return wire.EngineSilent + "no status for " + silence.String()
	case a.status == nil:
		return wire.EngineStarting
	default:
		return ""
	}
}

// reason returns what a person should know of the engine's state.
func (a *Agent) reason(now time.Time) string {
	if w := a.wrong(now); w != "" {
		return w
	}
	return a.status.GetReason()
}

// Wake returns when the agent is to be stepped with a Tick unless something
// happens before, and remembers it.
func (a *Agent) Wake(now time.Time) time.Time {
	wake := a.beat
	if a.lost == "" && a.reported.wrong == "" {
		wake = earlier(wake, a.received.Add(silence))
	}
	if a.owed() && !a.asking {
		wake = earlier(wake, a.askFrom)
	}
	if a.news && a.leaders.connected() {
		wake = earlier(wake, a.soon)
	}
	if wake.Before(now) {
		wake = now
	}
	a.due = wake
	return wake
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Report returns the next report, for every xds, with these readings. Its error
// says which rule of the contract it would break; it must not be sent then.
func (a *Agent) Report(now time.Time, t *fleetpb.Telemetry) (*fleetpb.NodeReport, error) {
	a.seq++
	r := &fleetpb.NodeReport{
		Node:      a.node,
		Seq:       a.seq,
		Sent:      timestamppb.New(now),
		Zone:      a.zone,
		Timeout:   durationpb.New(a.timeout),
		Telemetry: t,
		Refused:   a.refused,
		Term:      a.leaders.fence(),
	}
	if r.EngineError = a.wrong(now); r.EngineError == "" {
		r.Engine = a.status
	}
	return r, trust.Message(r)
}

// Conditions returns what is wrong now, for /readyz.
func (a *Agent) Conditions(now time.Time, t *fleetpb.Telemetry) []obs.Condition {
	var list []obs.Condition
	list = append(list, a.leaders.conditions()...)
	if a.unnamed != "" {
		list = append(list, obs.Condition{Code: "xds_not_found", Text: "xds: " + a.unnamed,
			Next: "see whether its name can be resolved; the addresses that were known stay"})
	}
	if wrong := a.wrong(now); wrong != "" {
		code, _, _ := strings.Cut(wrong, ":")
		list = append(list, obs.Condition{Code: "engine_" + code, Text: "engine: " + wrong,
			Next: "read the engine's log, or give its gRPC address with -engine"})
	}
	if t.GetError() != "" {
		list = append(list, obs.Condition{Code: "telemetry_incomplete", Text: t.GetError(),
			Next: "check the GPU driver with nvidia-smi, or give its library with -nvml"})
	}
	return list
}

func (fx *Effects) log(text string, wrong bool, facts ...any) {
	fx.Log = append(fx.Log, Change{Text: text, Wrong: wrong, Facts: facts})
}

func (fx *Effects) engineChanged(now, before observed, reason string) {
	switch {
	case !now.known:
	case now.wrong != "":
		fx.log("engine lost", true, "reason", reason)
	case now.state != before.state || now.epoch != before.epoch || now.version != before.version:
		fx.log("engine state", false, "state", now.state.String(), "generation", now.version.Generation, "epoch", now.epoch, "reason", reason)
	}
}

// cause returns the text of an error without what gRPC puts around it.
func cause(err error) string {
	if err == nil {
		return "the stream ended"
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		text = s.Message()
	}
	if dial, ok := strings.CutPrefix(text, `connection error: desc = "transport: Error while dialing: `); ok {
		return strings.TrimSuffix(dial, `"`)
	}
	return text
}

// clip makes a text short enough for a report, and valid UTF-8.
func clip(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	return strings.ToValidUTF8(s, "")
}
