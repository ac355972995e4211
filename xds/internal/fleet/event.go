package fleet

import (
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/fleetpb"
)

// Event is something that happened to the fleet.
type Event interface{ event() }

// Reported is a report of a node that has passed validation. A new stream of a
// node replaces its older one, whose events are ignored from then on.
type Reported struct {
	// Stream is the number of the stream, unique and growing.
	Stream uint64
	// Report as received; not changed afterwards.
	Report *fleetpb.NodeReport
	// Cache is what the engine's KV cache holds; nil: not known. Charge is what that takes
	// of memory, to be freed when it is forgotten; nil: nothing.
	Cache  *enginepb.Cache
	Charge *blocks.Charge
}

// Closed is the end of a node's stream.
type Closed struct {
	// Node is the node's name.
	Node string
	// Stream is the number of the stream.
	Stream uint64
}

// Desired is what the source of what is desired has now.
type Desired struct{ desired.Published }

// Refused is which objects' resources a client refuses, and why.
type Refused struct{ Objects map[Key]string }

// Pushed is that the gateways and extprocs know the desired state of that version.
type Pushed struct{ Version uint64 }

func (Pushed) event()   {}
func (Reported) event() {}
func (Closed) event()   {}
func (Desired) event()  {}
func (Refused) event()  {}

// Step advances the fleet by one event.
func (f *Fleet) Step(now time.Time, ev Event) {
	switch ev := ev.(type) {
	case Reported:
		f.reported(now, ev)
	case Desired:
		if f.desired.State != ev.State {
			f.specs = specs(ev.State, f.numbers)
			f.setForeign(ev.State)
			f.changes++
		}
		f.desired = ev.Published
	case Pushed:
		f.pushed = ev.Version
	case Observed:
		f.observed(ev.Observation)
	case Leads:
		f.lead(now, ev.Term)
	case ClusterObserved:
		f.observedCluster(now, ev.Nodes)
	case Drains:
		f.drains = ev.Nodes
	case Planned:
		f.tookPlan(now, ev)
	case Demanded:
		f.demanded(now, ev)
	case Refused:
		f.refusals = ev.Objects
	case Closed:
		if n := f.nodes[ev.Node]; n != nil && n.stream == ev.Stream {
			n.stream, n.closed = 0, now
			n.newest = ev.Stream + 1 // what it said last and comes late doesn't count
		}
	}
}

func (f *Fleet) reported(now time.Time, ev Reported) {
	name := ev.Report.GetNode()
	n := f.nodes[name]
	if n == nil {
		if len(f.nodes) >= MostNodes && !f.replaceNode() {
			ev.Charge.Free()
			return
		}
		n = &node{name: name}
		f.nodes[name] = n
	}
	if ev.Stream < n.newest {
		if ev.Charge != n.charge {
			ev.Charge.Free()
		}
		return // last words of a stream that has ended or was replaced
	}
	if n.charge != ev.Charge {
		n.charge.Free()
		n.charge = ev.Charge
	}
	f.met(ev.Report.GetEngine().Version())
	f.met(ev.Report.GetEngine().GetAssignment().Version())
	if _, silent := n.silentSince(now); silent {
		n.joined = now
	}
	n.newest, n.stream = ev.Stream, ev.Stream
	n.report, n.last = ev.Report, now
	if ev.Report.GetEngine() != nil {
		n.engine, n.mute, n.cache = ev.Report.GetEngine(), time.Time{}, ev.Cache
	} else if n.mute.IsZero() {
		n.mute = now
	}
}
