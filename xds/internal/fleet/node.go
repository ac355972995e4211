package fleet

import (
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/layout"
	"millrace.dev/millrace/xds/internal/weight"
)

const (
	// defaultTimeout is the longest silence of a node that names none.
	defaultTimeout = 1500 * time.Millisecond
	// suspectFor is how long a node whose agent is silent keeps its place, with
	// a falling weight: the engine behind a dead agent mostly lives.
	suspectFor = 15 * time.Second
	// vouchedFreshness is how far a node at least is believed whose agent is away
	// while the head of its replica, which watches the node's engine, is well.
	vouchedFreshness = 0.125
	// muteFor is how long the address of an engine that hangs stays in EDS as
	// unhealthy: long enough for Envoy to find out by itself, by its connections'
	// pings, and to turn the requests that are stuck there into retries elsewhere.
	muteFor = 3 * time.Second
	// lostAfter is how long a node may be away before what it had is laid out
	// elsewhere.
	lostAfter = time.Minute
	// maxReason bounds the reason for a state, in bytes: with the node's name in
	// front it has to fit into EndpointState.
	maxReason = 900
	// forgetAfter is how long a node that has no part in any replica is still
	// shown after its last report.
	forgetAfter = 10 * time.Minute
)

// Shorter names for the states of an endpoint.
const (
	ready    = fleetpb.EndpointState_READY
	suspect  = fleetpb.EndpointState_SUSPECT
	notReady = fleetpb.EndpointState_NOT_READY
)

// node is what is known of one node.
type node struct {
	name string
	// stream is the number of the node's open stream; 0: none is open. newest is
	// the largest number seen.
	stream, newest uint64
	// last is when report came, closed when the stream ended.
	last, closed time.Time
	report       *fleetpb.NodeReport
	// engine is the engine's last known status; nil: never had.
	engine *enginepb.Status
	// cache is what its KV cache holds; nil: not known. charge is what that takes.
	cache  *enginepb.Cache
	charge *blocks.Charge
	// mute is since when the agent can't get its engine's status; zero: it can.
	mute time.Time
	// directed is the version last sent down, and when.
	directed   enginepb.Version
	directedAt time.Time
	// joined is since when its agent reports, without a break.
	joined time.Time
	// pace is how fast it was measured to be, and off since when measurements of the replica
	// of which it is the head differ from that; zero: they don't.
	pace pace
	off  time.Time
}

// silentSince returns since when the node's agent is silent, and whether it is.
// An open stream counts as silent once its timeout is over; that it is closed then begins
// nothing anew.
func (n *node) silentSince(now time.Time) (time.Time, bool) {
	timeout := defaultTimeout
	if t := n.report.GetTimeout(); t != nil {
		timeout = t.AsDuration()
	}
	due := n.last.Add(timeout)
	if n.stream == 0 {
		if n.closed.Before(due) {
			due = n.closed
		}
		return due, true
	}
	return due, now.Sub(n.last) >= timeout
}

// asLayout returns the node as the planner sees it, with what Kubernetes says of it.
func (n *node) asLayout(now time.Time, c ClusterNode) layout.Node {
	_, silent := n.silentSince(now)
	return layout.Node{
		Name:       n.name,
		Lost:       now.Sub(n.last) >= lostAfter || silent && c.lost(),
		Usable:     !silent && n.mute.IsZero() && n.engine.GetGrpcAddress() != "" && c.Leaving == "",
		Cordoned:   c.Cordoned,
		Ready:      n.mute.IsZero() && n.serves() && c.Leaving == "",
		Answers:    n.mute.IsZero() && n.serves(),
		Engine:     n.engine.GetGrpcAddress(),
		Shard:      n.engine.GetShardAddress(),
		Running:    n.engine.GetAssignment(),
		Version:    n.engine.Version(),
		Refused:    n.report.GetRefused().Version(),
		RefusedWhy: n.report.GetRefused().GetReason(),
	}
}

// serves reports whether the engine's last status was READY.
func (n *node) serves() bool { return n.engine.GetState() == enginepb.State_READY }

// verdict is what is concluded of one node's part in a replica.
type verdict struct {
	state fleetpb.EndpointState_State
	// reason for a person; empty when READY. It doesn't change as time passes.
	reason string
	// freshness is how far the node's last word is believed, 0 to 1.
	freshness float64
	// stuck is whether requests may hang in the engine, so that Envoy is to be
	// asked to check.
	stuck bool
	// leaves is whether it is not ready only because it leaves, and still answers.
	leaves bool
	// ordered is whether it is not ready by order, whoever vouches for its engine.
	ordered bool
}

// judge concludes what is true of the node's part in a replica.
func (n *node) judge(now time.Time, r *layout.Replica, stage int, c ClusterNode) verdict {
	if n == nil {
		return verdict{state: notReady, reason: "has not reported yet"}
	}
	since, silent := n.silentSince(now)
	v, ok := n.judgeEngine(now, r, stage)
	v.leaves = v.leaves && !silent
	if c.Leaving != "" {
		return verdict{state: notReady, reason: "leaves: " + c.Leaving, ordered: true, leaves: v.leaves || ok && !silent}
	}
	if !ok {
		return v
	}
	if !silent {
		return verdict{state: ready, freshness: 1}
	}
	reason := "its nodeagent is silent"
	if n.stream == 0 {
		reason = "its nodeagent's stream is closed"
	}
	d := now.Sub(since)
	if d >= suspectFor {
		return verdict{state: notReady, reason: fmt.Sprintf("%s for more than %v", reason, suspectFor)}
	}
	return verdict{state: suspect, reason: reason, freshness: weight.Freshness(d)}
}

// judgeEngine returns false and the verdict if the node's last word forbids
// sending requests there.
func (n *node) judgeEngine(now time.Time, r *layout.Replica, stage int) (verdict, bool) {
	no := func(reason string) (verdict, bool) {
		return verdict{state: notReady, reason: reason[:min(len(reason), maxReason)]}, false
	}
	switch e := n.engine; {
	case !n.mute.IsZero():
		v, _ := no("its engine doesn't answer: " + n.report.GetEngineError())
		v.stuck = strings.HasPrefix(n.report.GetEngineError(), wire.EngineSilent) && now.Sub(n.mute) < muteFor
		return v, false
	case e.GetState() == enginepb.State_IDLE:
		return no("its engine has nothing assigned yet")
	case !n.runs(r, stage):
		return no("its engine serves an older assignment")
	case e.GetState() != enginepb.State_READY:
		v, _ := no(strings.TrimSuffix(strings.ToLower(e.GetState().String())+": "+e.GetReason(), ": "))
		v.leaves = e.GetState() == enginepb.State_DRAINING
		return v, false
	}
	if h, reason := weight.Health(n.report.GetTelemetry()); h == 0 {
		return no(reason)
	}
	return verdict{}, true
}

// runs reports whether the node's engine serves its stage of a replica. An older
// assignment does as well that needs no other process.
func (n *node) runs(r *layout.Replica, stage int) bool {
	had := n.engine.GetAssignment()
	if had.GetReplica() != r.Spec.Replica || int(had.GetStage()) != stage {
		return false
	}
	return had.Version() == r.Version || enginepb.SameProcess(had, r.Assignment(stage))
}

// letsGo reports whether the head of a replica has let go of what it had before the
// assignment of that version: it runs that, or nothing.
func (n *node) letsGo(v enginepb.Version) bool {
	if n == nil || n.engine == nil {
		return false
	}
	had := n.engine.Version()
	return had == v || had.After(v) || n.engine.GetAssignment() == nil
}

// follows returns whether the node's engine serves the assignment already.
func (n *node) follows(a *enginepb.Assignment) bool {
	if n == nil {
		return false
	}
	had := n.engine.GetAssignment()
	return n.engine.Version() == a.Version() &&
		had.GetReplica() == a.GetReplica() && had.GetStage() == a.GetStage()
}
