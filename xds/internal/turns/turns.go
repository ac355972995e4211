// Package turns decides which replicas of models that are loaded on demand have places on
// nodes, where there are more of them than places. Called by fleet in front of layout, which
// decides on which nodes those lie that have one.
//
//	asleep ─ it is waited for, and there is room ─► placed ◄─ nobody is waited for any more ─┐
//	  ▲                                               │                                      │
//	  │                                               └─ another one is waited for, and ─► closing
//	  │                                                  it is idle, or its turn is over     │
//	  └──────────────── nothing runs and nothing waits there any more ───────────────────────┘
//
// Who is waited for gets a place, who has waited longest first: free room, else the place of
// the idle replica that was used longest ago, else of the busy one whose turn began first. Who is
// to give its place up gets no new requests first, and goes when the last of them has ended:
// no request is lost, and none is cut short. What a place is good for bounds how often it
// changes: an idle replica keeps it for as long as loading it has taken, a busy one for its
// turn, of twice as long. A model that is always loaded gives its place to nobody, and takes
// one from whoever is loaded on demand. Room that nobody waits for goes to replicas in the
// order of the configuration, so that nothing changes where there is room for all.
//
// Its one rule: Decide is a pure function, and the same input gives the same places.
package turns

import (
	"slices"
	"time"
)

const (
	// idleFor is how long no request must have run or waited at a replica that is idle: two
	// reports of its node.
	idleFor = time.Second
	// leastStay is how long a replica keeps its place at least once it takes requests, beside
	// the time of loading: for those to come that have waited for it.
	leastStay = time.Second
	// beginFor is how long a replica may take until it takes requests, before its place is
	// another's to have.
	beginFor = 10 * time.Second
	// leastTurn and mostTurn bound the turn of a busy replica, which is twice the time of
	// loading: a model that is waited for has its turn within seconds where loading takes
	// seconds, and two busy ones spend at most a third of the time on loading.
	leastTurn, mostTurn = 5 * time.Second, time.Minute
)

// Unit is one replica.
type Unit struct {
	// Model is its model, Replica its name.
	Model, Replica string
	// Stages is on how many nodes it lies, Nodes names them; empty: any.
	Stages int
	Nodes  []string
	// OnDemand is whether it may be without a place.
	OnDemand bool
	// On has the nodes that it has, by name; empty: none yet, or they are lost.
	On []string
	Turn
}

// Turn is what is remembered of a replica's place. The zero Turn is that of one without.
type Turn struct {
	// Placed is since when it has a place; zero: it has none.
	Placed time.Time
	// Asked is whether requests waited for the place.
	Asked bool
	// Began is since when it takes requests, its model being loaded if it had to be; zero: it
	// does not yet. Loading is whether its model is being loaded.
	Began   time.Time
	Loading bool
	// Used is when a request last ran or waited there; zero: never.
	Used time.Time
	// Busy is whether one does, by the last report.
	Busy bool
	// Broken is whether its engine can't serve it.
	Broken bool
	// Load is how long loading the model takes; 0: not known.
	Load time.Duration
	// Closing is since when it gets no new requests; zero: it does. Quiet is whether its
	// node has reported since then that none is left.
	Closing time.Time
	Quiet   bool
}

// Node is a node.
type Node struct {
	Name string
	// Usable is whether something new can be laid out there now; Gone whether it can't be
	// for long.
	Usable, Gone bool
}

// Demand is the requests that wait for a model.
type Demand struct {
	// Waiting is how many wait, Since since when the oldest does.
	Waiting int
	Since   time.Time
}

// Input is what is decided by.
type Input struct {
	// Units are all replicas that are desired, in the order of the configuration.
	Units []Unit
	Nodes []Node
	// Demand is by model.
	Demand map[string]Demand
	Now    time.Time
}

// Place is what is decided of a unit.
type Place struct {
	// Has is whether it is to have a place. Those that are always loaded are.
	Has bool
	// Asked is whether requests wait, or waited, for it.
	Asked bool
	// For is the model for which it is closing: it gets no new requests; empty: it isn't.
	For string
	// Why it has none, for a person; empty: it has one.
	Why string
	// Hopeless is whether it can't have one, so that waiting is of no use.
	Hopeless bool
}

// Decide returns the place of each unit, in their order.
func Decide(in Input) []Place {
	t := newTable(in)
	t.keep()
	// Who has waited longer comes first, also to places that one behind it could have.
	if !slices.ContainsFunc(t.claims(), func(i int) bool { return !t.grant(i) }) {
		t.fill()
	}
	t.explain()
	return t.places
}

// turn is how long a busy replica keeps its place.
func (u *Unit) turn() time.Duration { return min(max(2*u.Load, leastTurn), mostTurn) }

// idle reports whether a unit may be closed though its turn may not be over: nobody uses it.
func (u *Unit) idle(now time.Time) bool {
	switch {
	case u.Busy || u.Loading:
		return false
	case u.Broken:
		return now.Sub(u.Placed) >= leastStay
	case u.Began.IsZero():
		return now.Sub(u.Placed) >= beginFor
	case u.Used.IsZero() && !u.Asked:
		return true // it was given room that nobody waited for
	}
	return now.Sub(u.Used) >= idleFor && now.Sub(u.Began) >= leastStay+u.Load
}

// gives reports whether a unit may be closed: its turn is over.
func (u *Unit) gives(now time.Time) bool {
	return !u.Began.IsZero() && !u.Loading && now.Sub(u.Began) >= u.turn()
}
