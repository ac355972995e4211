package stream

import (
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/recent"
)

// What people are shown of decisions: a few a second with all that there was to choose from, and
// those that ended badly with the endpoints that were named. What is not shown costs a request
// one comparison.
const (
	shownPerSecond  = 8
	failedPerSecond = 4
	// mostDecided is how many are remembered, for who follows.
	mostDecided = 128
)

// Decisions has the newest of what is decided, for people. Nil has none.
type Decisions struct {
	*recent.List[*Decided]
	shown, failed *recent.Rate
}

// NewDecisions returns an empty one.
func NewDecisions() *Decisions {
	return &Decisions{recent.New[*Decided](mostDecided), recent.NewRate(shownPerSecond, shownPerSecond), recent.NewRate(failedPerSecond, failedPerSecond)}
}

// Decided is a decision, and what came of it. It has nothing of what a prompt or an answer says.
// Not changed once it is put.
type Decided struct {
	// ID is x-request-id; Arrived is when the request came.
	ID      string
	Arrived time.Time
	// Decision is what was decided, without its Choice; Reason is why; empty: nobody was chosen.
	Decision Decision
	Reason   string
	// Candidates are what there was to choose from, the cheapest first, Others how many more.
	Candidates []Weighed
	Others     int
	// Outcome is how it ended, Status what the client got, Served who answered, at which of
	// Attempts.
	Outcome  string
	Status   int
	Served   string
	Attempts int
	// Took is from its arrival to its end, First to the first token; 0: not known.
	Took, First time.Duration
	// Usage is what its engine says that it needed; Known is whether it says so.
	Usage pick.Usage
	Known bool
}

// Weighed is an endpoint with the terms of its cost, in milliseconds.
type Weighed struct {
	Address, Replica, Node string
	// Named is which of those that Envoy got it is, from 1; 0: none.
	Named int
	// Cached tokens were expected there, and Company requests at a time.
	Cached  int
	Company float64
	// Out is why it may not be named; empty: it may.
	Out   string
	Terms pick.Terms
}

// takes reports whether what is decided of a request now is to be shown.
func (d *Decisions) takes(in *input) bool {
	return d != nil && !in.head.Probe && d.shown.Take(in.now)
}

// weigh returns what there was to choose from, of whom list was named.
func weigh(all []pick.Considered, list []pick.Candidate) []Weighed {
	w := make([]Weighed, len(all))
	for i := range all {
		w[i] = weighed(&all[i].Candidate, list)
		w[i].Out = all[i].Out
	}
	return w
}

func weighed(c *pick.Candidate, list []pick.Candidate) Weighed {
	w := Weighed{Address: c.Address, Replica: c.Replica, Cached: c.Cached, Company: c.Company, Terms: c.Terms}
	if len(c.Nodes) > 0 {
		w.Node = c.Nodes[0]
	}
	for i := range list {
		if list[i].Address == c.Address {
			w.Named = i + 1
		}
	}
	return w
}

// put remembers an exchange that has ended if it is to be shown.
func (d *Decisions) put(x *Exchange, r *pick.Ended, now time.Time) {
	bad := r.Outcome == pick.Failed || r.Outcome == pick.Shed
	if d == nil || x.head.Probe || x.weighed == nil && !(bad && d.failed.Take(now)) {
		return
	}
	a := &x.answer
	one := &Decided{
		ID: x.head.ID.String(), Arrived: x.arrived, Decision: x.decision, Candidates: x.weighed,
		Outcome: r.Outcome.String(), Status: a.status, Attempts: a.attempts, Took: r.Whole, First: r.First, Usage: a.usage, Known: a.learned || a.usage != (pick.Usage{}),
	}
	if c := x.decision.Choice; c != nil {
		one.Reason = c.Reason.String()
		if one.Candidates == nil {
			for i := range c.List {
				one.Candidates = append(one.Candidates, weighed(&c.List[i], c.List))
			}
		}
	}
	if n := len(one.Candidates) - mostExplained; n > 0 {
		one.Candidates, one.Others = one.Candidates[:mostExplained], n
	}
	if a.served != nil {
		one.Served = a.served.Address
	}
	one.Decision.Choice, one.Decision.Chain = nil, nil // they are the exchange's, which is used again
	one.Decision.Model, one.Decision.Priority, one.Decision.API = x.understood.model.Name, x.understood.priority, x.api
	d.Put(func(uint64) *Decided { return one })
}

// shortID is an id of a request, which is kept without allocating.
type shortID struct {
	n    uint8
	text [36]byte // a UUID's
}

func (s *shortID) set(value []byte) { s.n = uint8(copy(s.text[:], value)) }

// String returns the id's first 36 bytes, those that are printed.
func (s *shortID) String() string { return printable(string(s.text[:s.n])) }

// Equal reports whether two ids are the same.
func (s shortID) Equal(other shortID) bool { return s == other }
