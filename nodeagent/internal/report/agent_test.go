package report

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

var start = time.Unix(1_700_000_000, 0)

const beat = 500 * time.Millisecond

func newAgent() *Agent { return NewAgent("node-a", "rack-1", beat, 1500*time.Millisecond, start) }

func engineIs(state enginepb.State, generation, epoch uint64) Received {
	return Received{&enginepb.Status{Node: "node-a", State: state, Generation: generation, Epoch: epoch}}
}

func assignment(generation uint64) *enginepb.Assignment {
	return &enginepb.Assignment{
		Generation: generation, Model: "smollm2", Replica: "smollm2-0",
		Stages:  []*enginepb.Stage{{Node: "node-a", EngineAddress: "127.0.0.1:1", Share: 1}},
		Backend: &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, Weights: "/m.gguf", ContextTokens: 4096, Slots: 4, Threads: 1, Queue: 64, MaxBodyBytes: 1 << 20},
	}
}

func directed(generation uint64) Directed {
	return Directed{Directive: &fleetpb.Directive{Assignment: assignment(generation)}}
}

func telemetry() *fleetpb.Telemetry {
	return &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 2, MemoryTotalBytes: 1 << 30}
}

// said returns what a report says of the engine: its state, or its error.
func said(t *testing.T, a *Agent, now time.Time) string {
	t.Helper()
	r, err := a.Report(now, telemetry())
	if err != nil {
		t.Fatalf("report %v: %v", r, err)
	}
	if r.GetEngine() != nil {
		return r.GetEngine().GetState().String()
	}
	return r.GetEngineError()
}

// ready is an agent with both streams up and an engine that is READY.
func ready(t *testing.T) *Agent {
	t.Helper()
	a := newAgent()
	a.Step(start, Tick{})
	a.Step(start, Up{})
	if fx := a.Step(start, engineIs(enginepb.State_READY, 1, 1)); !fx.Report {
		t.Fatal("the first status is not reported at once")
	}
	a.Wake(start)
	return a
}

func TestNothingIsSaidBeforeAnythingIsKnown(t *testing.T) {
	a := newAgent()
	a.Step(start, Tick{})
	if fx := a.Step(start, Up{}); fx.Report {
		t.Error("a report of an engine that nobody has asked yet")
	}
	if fx := a.Step(a.Wake(start), Tick{}); fx.Report || !fx.Read {
		t.Errorf("heartbeat after %s: %+v, want a reading and no report", beat, fx)
	}
	if fx := a.Step(a.Wake(start), Tick{}); !fx.Report || said(t, a, start.Add(silence)) != "silent: no status for 1s" {
		t.Errorf("after %s: %+v", silence, fx)
	}
}

func TestUrgentChanges(t *testing.T) {
	tests := []struct {
		name   string
		event  Event
		urgent bool
		want   string
	}{
		{"the same again", engineIs(enginepb.State_READY, 1, 1), false, "READY"},
		{"another state", engineIs(enginepb.State_BROKEN, 1, 1), true, "BROKEN"},
		{"another epoch", engineIs(enginepb.State_READY, 1, 2), true, "READY"},
		{"another generation", engineIs(enginepb.State_READY, 2, 1), true, "READY"},
		{"engine gone", Lost{status.Error(codes.Unavailable, "connection refused")}, true, "unreachable: connection refused"},
		{"nobody listens", Lost{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`)},
			true, "unreachable: dial tcp 127.0.0.1:1: connect: connection refused"},
		{"stream ended", Lost{errors.New("EOF")}, true, "unreachable: EOF"},
		{"another node's engine", Received{&enginepb.Status{Node: "node-b", State: enginepb.State_READY}}, true,
			`invalid: it is the engine of node "node-b"`},
		{"a status that breaks the contract", Received{&enginepb.Status{Node: "node-a"}}, true,
			"invalid: invalid Status.State: value must not be in list [STATE_UNSPECIFIED]"},
		{"a very long error", Lost{errors.New(strings.Repeat("é", 2000))}, true, "unreachable: " + strings.Repeat("é", 505)},
		{"nothing of the engine", directed(1), false, "READY"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := ready(t)
			now := start.Add(10 * time.Millisecond)
			if fx := a.Step(now, tt.event); fx.Report != tt.urgent {
				t.Errorf("report at once: %t, want %t", fx.Report, tt.urgent)
			}
			if got := said(t, a, now); got != tt.want {
				t.Errorf("said %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSilentEngineIsSilentAfterASecondAndBackAtOnce(t *testing.T) {
	a := ready(t)
	a.Step(start.Add(900*time.Millisecond), engineIs(enginepb.State_READY, 1, 1))
	now := start.Add(900 * time.Millisecond)
	for now.Before(start.Add(1900 * time.Millisecond)) {
		if got := said(t, a, now); got != "READY" {
			t.Fatalf("%s after the last status: %s", now.Sub(start)-900*time.Millisecond, got)
		}
		now = a.Wake(now)
		a.Step(now, Tick{})
	}
	if got := said(t, a, now); now.Sub(start) != 1900*time.Millisecond || got != "silent: no status for 1s" {
		t.Errorf("after %s: %s", now.Sub(start), got)
	}
	if fx := a.Step(now.Add(time.Hour), engineIs(enginepb.State_READY, 1, 1)); !fx.Report || said(t, a, now.Add(time.Hour)) != "READY" {
		t.Error("the engine's recovery is not reported at once")
	}
}

func TestAgentThatCouldNotRunDoesNotBlameTheEngine(t *testing.T) {
	a := ready(t)
	now := start.Add(20 * time.Second) // stopped and continued
	if fx := a.Step(now, Tick{}); said(t, a, now) != "READY" {
		t.Errorf("%+v: the engine is called silent", fx)
	}
	for range 3 {
		now = a.Wake(now)
		a.Step(now, Tick{})
	}
	if got := said(t, a, now); got != "silent: no status for 1s" {
		t.Errorf("an engine that stays silent is %s", got)
	}
}

func TestEngineIsAskedUntilItDoesWhatIsWanted(t *testing.T) {
	a := ready(t)
	now := start
	step := func(ev Event) *enginepb.Assignment {
		t.Helper()
		return a.Step(now, ev).Assign
	}
	if got := step(directed(5)); got.GetGeneration() != 5 {
		t.Fatalf("told %v, want generation 5", got)
	}
	if got := step(directed(5)); got != nil {
		t.Error("asked twice at the same time")
	}
	if got := step(Assigned{enginepb.Version{Generation: 5}, status.Error(codes.Unavailable, "gone")}); got != nil {
		t.Error("asked again without a pause")
	}
	now = now.Add(assignAgain)
	if got := step(Tick{}); got.GetGeneration() != 5 {
		t.Error("not asked again after the pause")
	}
	if got := step(Assigned{enginepb.Version{Generation: 5}, nil}); got != nil {
		t.Error("asked again after it was taken")
	}
	if got := step(engineIs(enginepb.State_READY, 5, 2)); got != nil {
		t.Error("asked for what it does already")
	}
	now = now.Add(time.Hour)
	step(Lost{errors.New("killed")})
	if got := step(engineIs(enginepb.State_IDLE, 0, 0)); got.GetGeneration() != 5 {
		t.Error("an engine that was restarted is not asked again")
	}
}

func TestNewerDirectiveOvertakes(t *testing.T) {
	a := ready(t)
	if a.Step(start, directed(5)).Assign == nil {
		t.Fatal("not asked")
	}
	if a.Step(start, directed(6)).Assign != nil {
		t.Fatal("asked while the first is on its way")
	}
	if got := a.Step(start, Assigned{enginepb.Version{Generation: 5}, nil}).Assign; got.GetGeneration() != 6 {
		t.Errorf("told %v, want generation 6", got)
	}
}

func TestRefusedAssignmentIsDropped(t *testing.T) {
	for _, code := range []codes.Code{codes.FailedPrecondition, codes.InvalidArgument} {
		a := ready(t)
		a.Step(start, directed(5))
		a.Step(start, Assigned{enginepb.Version{Generation: 5}, status.Error(code, "no")})
		if got := a.Step(start.Add(time.Hour), engineIs(enginepb.State_READY, 1, 1)).Assign; got != nil {
			t.Errorf("%s: asked again", code)
		}
		r, err := a.Report(start, telemetry())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := r.GetRefused().GetGeneration(), map[codes.Code]uint64{codes.InvalidArgument: 5}[code]; got != want {
			t.Errorf("%s: refused generation %d, want %d", code, got, want)
		}
		a.Step(start, directed(6))
		if r, _ := a.Report(start, telemetry()); r.GetRefused() != nil {
			t.Errorf("%s: a new directive is refused: %v", code, r.GetRefused())
		}
	}
}

func TestInvalidDirectiveIsRefused(t *testing.T) {
	a := ready(t)
	fx := a.Step(start, Directed{Directive: &fleetpb.Directive{Assignment: &enginepb.Assignment{Generation: 9, Model: "m"}}})
	if r, err := a.Report(start, telemetry()); err != nil || r.GetRefused().GetGeneration() != 9 || r.GetRefused().GetReason() != "replica: missing" {
		t.Errorf("report %v, %v; want the refusal", r, err)
	}
	if fx.Assign != nil || len(fx.Log) != 1 || fx.Log[0].Text != "directive refused" {
		t.Errorf("effects %+v", fx)
	}
	if fx := a.Step(start, Directed{Directive: &fleetpb.Directive{}}); fx.Assign != nil || len(fx.Log) != 0 {
		t.Errorf("an empty directive has effects %+v", fx)
	}
}

func TestStatusThatXDSWouldRefuseIsNotSent(t *testing.T) {
	tests := map[string]func(*enginepb.Status){
		"speed.decode: NaN":     func(s *enginepb.Status) { s.Speed = &enginepb.Speed{Decode: math.NaN()} },
		"http_address: ":        func(s *enginepb.Status) { s.HttpAddress = "0.0.0.0:80" },
		"assignment.model":      func(s *enginepb.Status) { s.Assignment = &enginepb.Assignment{Generation: 1, Replica: "m-0"} },
		"assignment: a release": func(s *enginepb.Status) { s.Assignment = &enginepb.Assignment{Generation: 1} },
	}
	for want, edit := range tests {
		a := ready(t)
		bad := engineIs(enginepb.State_READY, 1, 1)
		edit(bad.Status)
		a.Step(start, bad)
		if got := said(t, a, start); !strings.HasPrefix(got, "invalid: ") || !strings.Contains(got, want) {
			t.Errorf("%s: the report says %q", want, got)
		}
		a.Step(start, engineIs(enginepb.State_READY, 1, 1))
		if got := said(t, a, start); got != "READY" {
			t.Errorf("%s: the report says %q once the engine is well again", want, got)
		}
	}
}

// TestEveryRefusalHasAWayBack: an engine that is ahead, is led away, or was started anew is
// asked again for what is wanted.
func TestEveryRefusalHasAWayBack(t *testing.T) {
	a := ready(t)
	a.Step(start, directed(5))
	a.Step(start, Assigned{enginepb.Version{Generation: 5}, nil})
	now := start.Add(assignAgain)
	ahead := engineIs(enginepb.State_READY, math.MaxUint64, 1)
	if got := a.Step(now, ahead).Assign; got.GetGeneration() != 5 {
		t.Errorf("an engine ahead of what is wanted is assigned %v", got)
	}
	a.Step(now, Assigned{enginepb.Version{Generation: 5}, status.Error(codes.FailedPrecondition, "older")})
	later := directed(1)
	later.Directive.Assignment.ControlEpoch = 7
	now = now.Add(assignAgain)
	if got := a.Step(now, later).Assign; got.GetControlEpoch() != 7 {
		t.Errorf("assigned %v, want what is of the next control epoch", got)
	}
	v := later.Directive.GetAssignment().Version()
	a.Step(now, Assigned{v, nil})
	led := engineIs(enginepb.State_DRAINING, 1, 1)
	led.Status.ControlEpoch = 7
	now = now.Add(assignAgain)
	if got := a.Step(now, led).Assign; got.Version() != v {
		t.Errorf("an engine that drains what is wanted is assigned %v", got)
	}
	a.Step(now, Assigned{v, status.Error(codes.InvalidArgument, "no such backend")})
	if r, _ := a.Report(now, telemetry()); r.GetRefused().Version() != v {
		t.Errorf("refused %v, want %v", r.GetRefused(), v)
	}
	a.Step(now, Lost{errors.New("ended")})
	a.Step(now, engineIs(enginepb.State_IDLE, 0, 0))
	if r, _ := a.Report(now, telemetry()); r.GetRefused() != nil {
		t.Errorf("an engine that was started anew still refuses %v", r.GetRefused())
	}
}

func TestNobodyLeadsAfterTheLastTerm(t *testing.T) {
	a := ready(t)
	a.Step(start, Directed{Directive: &fleetpb.Directive{Term: math.MaxUint64}})
	if got := a.Step(start, directed(5)).Assign; got.GetGeneration() != 5 {
		t.Errorf("assigned %v; a term beyond the contract's is obeyed", got)
	}
}

func TestReleaseIsHandedOn(t *testing.T) {
	a := ready(t)
	fx := a.Step(start, Directed{Directive: &fleetpb.Directive{Assignment: &enginepb.Assignment{Generation: 9}}})
	if !fx.Assign.Releases() || fx.Assign.GetGeneration() != 9 {
		t.Errorf("assign %v, want the release", fx.Assign)
	}
	a.Step(start, Assigned{enginepb.Version{Generation: 9}, nil})
	if fx := a.Step(start.Add(time.Hour), engineIs(enginepb.State_IDLE, 9, 1)); fx.Assign != nil {
		t.Errorf("asked again: %v", fx.Assign)
	}
}

func TestNewStreamBeginsAtOneAndAtOnce(t *testing.T) {
	a := ready(t)
	if _, err := a.Report(start, telemetry()); err != nil {
		t.Fatal(err)
	}
	a.Step(start, Down{Err: errors.New("gone")})
	if fx := a.Step(start, engineIs(enginepb.State_BROKEN, 1, 1)); fx.Report {
		t.Error("a report without a stream")
	}
	if fx := a.Step(start, Up{}); !fx.Report {
		t.Error("a new stream does not begin with a report")
	}
	if r, err := a.Report(start, telemetry()); err != nil || r.GetSeq() != 1 {
		t.Errorf("report %v, %v; want the first", r, err)
	}
}

func TestConditions(t *testing.T) {
	a := newAgent()
	codes := func(t1 *fleetpb.Telemetry) string {
		var list []string
		for _, c := range a.Conditions(start, t1) {
			list = append(list, c.Code)
		}
		return strings.Join(list, " ")
	}
	if got := codes(telemetry()); got != "xds_unreachable engine_starting" {
		t.Errorf("at the start: %s", got)
	}
	a = ready(t)
	if got := codes(telemetry()); got != "" {
		t.Errorf("all well: %s", got)
	}
	a.Step(start, Lost{errors.New("x")})
	a.Step(start, Down{Err: errors.New("x")})
	if got := codes(&fleetpb.Telemetry{Error: "nvml: init"}); got != "xds_unreachable engine_unreachable telemetry_incomplete" {
		t.Errorf("all wrong: %s", got)
	}
}

// FuzzAgent gives events in any order: no report may break the contract, and
// the agent must always ask to be woken.
func FuzzAgent(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Add([]byte{6, 0, 1, 9, 9, 9, 2, 6, 7})
	f.Fuzz(func(t *testing.T, steps []byte) {
		a, now := newAgent(), start
		for _, b := range steps {
			now = now.Add(time.Duration(b) * 7 * time.Millisecond)
			fx := a.Step(now, anyEvent(b))
			if !fx.Report {
				continue
			}
			if r, err := a.Report(now, telemetry()); err != nil || !a.leaders.connected() || (r.GetEngine() == nil) == (r.GetEngineError() == "") {
				t.Fatalf("report %v, up %t, %v", r, a.leaders.connected(), err)
			}
			if wake := a.Wake(now); wake.Before(now) || wake.After(now.Add(beat)) {
				t.Fatalf("wake %s after now", wake.Sub(now))
			}
		}
	})
}

func anyEvent(b byte) Event {
	switch b % 10 {
	case 0:
		return engineIs(enginepb.State(b%8), uint64(b%3), uint64(b%5))
	case 1:
		return Up{}
	case 2:
		return Lost{errors.New(string([]byte{b, b}))}
	case 3:
		return Down{}
	case 4:
		return directed(uint64(b % 4))
	case 5:
		return Assigned{enginepb.Version{Generation: uint64(b % 4)}, nil}
	case 6:
		return Assigned{enginepb.Version{Generation: uint64(b % 4)}, status.Error(codes.Code(b%17), "x")}
	case 7:
		return Received{nil}
	case 8:
		return Directed{XDS: "a"}
	default:
		return Tick{}
	}
}
