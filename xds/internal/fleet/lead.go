package fleet

import (
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
	// highest is the highest term that a node has reported.
	highest uint64
}

// Leads is that this xds has the lease with that term, again each time that it is
// renewed. 0: another xds has it.
type Leads struct{ Term uint64 }

func (Leads) event() {}

// lead takes in who has the lease. A term is higher than all that nodes have obeyed,
// also where the lease was made anew.
func (f *Fleet) lead(now time.Time, term uint64) {
	l := &f.leading
	switch {
	case term == 0:
		l.follows, l.term = true, 0
	case l.follows:
		l.follows, l.term, l.since = false, max(term, l.highest+1), now
		f.planned, f.replicas, f.retiring = false, nil, nil
	default:
		l.term = max(l.term, term)
	}
}

// obeyed takes in the term that a node obeys. A higher one than ours is of a successor
// of which nothing else is known here, as while the API server is away.
func (f *Fleet) obeyed(term uint64) {
	l := &f.leading
	l.highest = max(l.highest, term)
	if l.term > 0 && term > l.term {
		l.follows, l.term = true, 0
	}
}
