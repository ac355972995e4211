package fleet

import (
	"math"
	"slices"
	"time"
)

// leading is whether this xds directs the nodes, where several serve. Whoever leads
// decides from what the nodes report, as one that was just started.
type leading struct {
	// follows is whether it doesn't lead.
	follows bool
	// term is with which it leads; 0: it follows, or is the only xds.
	term uint64
	// since is when it began to lead.
	since time.Time
}

// Leads is that this xds has the lease with that term, again each time that it is
// renewed. 0: another xds has it.
type Leads struct{ Term uint64 }

func (Leads) event() {}

// lead takes in who has the lease. A term is higher than what nodes obey, also where the
// lease was made anew.
func (f *Fleet) lead(now time.Time, term uint64) {
	l := &f.leading
	switch {
	case term == 0:
		l.follows, l.term = true, 0
	case l.follows:
		l.follows, l.term, l.since = false, max(term, min(f.obeyed()+1, mostTerm)), now
		f.planned, f.replicas, f.retiring = false, nil, nil
		f.auto = newPlanning()
		clear(f.scaled)
		f.begin(now)
	default:
		l.term = max(l.term, term)
	}
}

// mostTerm is the highest term, as the contract has it. Nodes forget one that nobody names.
const mostTerm = math.MaxInt64

// deposed takes in the term that nodes obey. A higher one than ours is of a successor
// of which nothing else is known here, as while the API server is away.
func (f *Fleet) deposed() {
	if l := &f.leading; l.term > 0 && f.obeyed() > l.term {
		l.follows, l.term = true, 0
	}
}

// obeyed returns the highest term that more than half of the nodes obey which report now:
// what fewer claim ends no leadership, and they forget it by themselves.
func (f *Fleet) obeyed() uint64 {
	var terms []uint64
	for _, n := range f.nodes {
		if n.stream != 0 {
			terms = append(terms, n.report.GetTerm())
		}
	}
	if len(terms) == 0 {
		return 0
	}
	slices.Sort(terms)
	return terms[(len(terms)-1)/2]
}
