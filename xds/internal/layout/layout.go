// Package layout decides which node serves which part of which replica, and in which
// order a change of the desired state is carried out. Called by fleet, on every
// snapshot.
//
// Its one rule: what runs stays as it is until its turn comes. All is derived from what
// is desired and what nodes report, so that a restarted xds, which knows nothing,
// disturbs nobody and continues a change where it was.
package layout

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
)

// Spec is one replica as it is desired.
type Spec struct {
	// Model is the model's id in the API.
	Model string
	// Replica is the replica's name, unique in the fleet.
	Replica string
	// Backend is how each of its engines runs the inference engine.
	Backend *enginepb.Backend
	// Shares has the relative number of layers of each stage.
	Shares []float32
	// Nodes names the node of each stage; empty: any nodes.
	Nodes []string
	// Planned is whether Shares and Nodes are planned, not written: where they change, the
	// replica starts elsewhere first, if it can.
	Planned bool
	// Missing is why a planned replica has no place; empty: it has. Where it runs it stays as
	// it is.
	Missing string
}

// Node is a node as the planner sees it.
type Node struct {
	// Name of the node.
	Name string
	// Usable is whether the node reports now and its engine's addresses are
	// known, so that it can be given something new.
	Usable bool
	// Lost is whether the node has been away for so long that what it had is
	// to be laid out elsewhere.
	Lost bool
	// Cordoned is why nothing new may be laid out there, and what is there is to move away
	// where it can; empty: it is not.
	Cordoned string
	// Ready is whether the engine's last status was READY, and the node does not leave.
	Ready bool
	// Answers is whether the engine's last status was READY, though its node may leave: it
	// is asked where nobody else can be.
	Answers bool
	// Engine is the "ip:port" of its engine's gRPC service, Shard where its
	// shard listens, or would.
	Engine, Shard string
	// Running is the assignment in force there; nil: none, or unknown.
	Running *enginepb.Assignment
	// Version is that of the assignment or release in force there.
	Version enginepb.Version
	// Refused is the version of a directive that the engine has refused for good,
	// RefusedWhy its reason; zero: none.
	Refused    enginepb.Version
	RefusedWhy string
}

// Replica is one replica with its place.
type Replica struct {
	// Spec is what is to run there: what is desired, or, until its turn comes, what
	// does run.
	Spec Spec
	// Version is that of the replica's assignments.
	Version enginepb.Version
	// Stages has the replica's stages, the head first.
	Stages []*enginepb.Stage
	// Leaving is whether it is not desired any more, and serves until its turn comes.
	Leaving bool
	// Moved is whether it runs elsewhere, too, by now, and serves until it takes requests
	// there.
	Moved bool
	// Refused is the assignment that the head's engine has refused, in place of which
	// it runs what it did; nil: none.
	Refused *enginepb.Assignment
}

// Name returns the replica's name; where it has moved, that of what it leaves behind.
func (r Replica) Name() string {
	if !r.Moved {
		return r.Spec.Replica
	}
	return r.Spec.Replica + "@" + r.Stages[0].GetNode()
}

// Assignment returns the assignment of the stage's node.
func (r Replica) Assignment(stage int) *enginepb.Assignment {
	return &enginepb.Assignment{
		ControlEpoch: r.Version.Epoch,
		Generation:   r.Version.Generation,
		Model:        r.Spec.Model,
		Replica:      r.Spec.Replica,
		Stage:        uint32(stage),
		Stages:       r.Stages,
		Backend:      r.Spec.Backend,
	}
}

// Nodes returns the names of the replica's nodes, the head's first.
func (r Replica) Nodes() []string { return nodesOf(r.Stages) }

func nodesOf(stages []*enginepb.Stage) []string {
	names := make([]string, len(stages))
	for i, s := range stages {
		names[i] = s.GetNode()
	}
	return names
}

// Retiring is what is to end: a replica that is not desired, or not there any more.
// Its nodes are free once they have taken the release.
type Retiring struct {
	// Had is what they run, of any stage.
	Had *enginepb.Assignment
	// Nodes are those that run it, by name.
	Nodes []string
	// Version is that of the release.
	Version enginepb.Version
}

// Release returns the release for each of its nodes.
func (r Retiring) Release() *enginepb.Assignment {
	return &enginepb.Assignment{ControlEpoch: r.Version.Epoch, Generation: r.Version.Generation}
}

// Runs reports whether an assignment in force on a node is what is to end: whatever of the
// replica was not assigned after the release was decided.
func (r Retiring) Runs(a *enginepb.Assignment) bool {
	return a != nil && a.GetReplica() == r.Had.GetReplica() && !a.Version().After(r.Version) &&
		slices.EqualFunc(a.GetStages(), r.Had.GetStages(), func(a, b *enginepb.Stage) bool { return a.GetNode() == b.GetNode() })
}

// Plan is where every replica goes.
type Plan struct {
	// Replicas are those in force, the desired ones in their order and behind them the
	// leaving ones.
	Replicas []Replica
	// Retiring is what is to end.
	Retiring []Retiring
	// Waits says of each desired replica that is not yet as desired, by its name, what
	// it waits for.
	Waits map[string]string
	// Unplaced has the desired replicas that have no place.
	Unplaced []Unplaced
}

// Complete returns whether every replica has a place.
func (p Plan) Complete() bool { return len(p.Unplaced) == 0 }

// Unplaced is a desired replica without a place.
type Unplaced struct {
	// Replica and Model are names, Why is for a person.
	Replica, Model, Why string
	// code and next are those of the condition, where they are not as usual.
	code, next string
}

// Condition shows it as something that is wrong.
func (u Unplaced) Condition() obs.Condition {
	return obs.Condition{
		Code: cmp.Or(u.code, "not-placed"), Text: fmt.Sprintf("replica %s is not placed: %s", u.Replica, u.Why),
		Next: cmp.Or(u.next, "start more nodes, or lower spec.replicas or spec.layout of the model"),
	}
}

// Input is what a plan is made of.
type Input struct {
	// Specs are the desired replicas.
	Specs []Spec
	// Nodes are all nodes that are known.
	Nodes []Node
	// Previous is the plan in force.
	Previous Plan
	// Others has how many endpoints of each model take requests that are not replicas.
	Others map[string]int
	// Published is whether the gateways know what is desired. Until then a model that is
	// not desired any more is still asked for.
	Published bool
	// Last is the version that this xds has given out last. What is new comes after it,
	// whatever versions nodes claim to have.
	Last enginepb.Version
	// Now bounds new generations from below, in microseconds.
	Now time.Time
}

// Make lays the desired replicas out over the nodes: first what is in force stays, by
// the previous plan or by what the nodes run, then its turn comes to what has to
// change, and what is left goes to free nodes in the order of their names.
//
// Of a model, at most one replica that takes requests is taken down at a time by a
// change, and not while that would leave the model without any, unless there is only
// one. One that takes none may be changed at any time, but for one whose nodes leave and
// which still answers: as it is it is the last resort of its model.
func Make(in Input) Plan {
	p := newPlanner(in)
	p.adopt(true)
	p.adopt(false)
	p.adoptMoved()
	p.adoptLeaving()
	p.placeNew()
	p.move()
	p.change()
	p.placeAll()
	p.retireStrays()
	return p.plan()
}
