package pick

import (
	"cmp"
	"slices"
)

// Considered is an endpoint as a choice sees it.
type Considered struct {
	Candidate
	// Out is why it may not be named; empty: it may.
	Out string
}

// Explain returns what a choice has before it, those that may be named first and the
// cheaper ones before the others. It is for people: Pick does the same without
// allocating.
func Explain(q *Query) []Considered {
	now, usual := q.Now.UnixNano(), q.Model.usual()
	all := make([]Considered, len(q.Model.Endpoints))
	best, tight := tierNone, false
	for _, roomy := range []bool{q.tight(), false} {
		for _, e := range q.Model.Endpoints {
			if q.Only.allows(e.Address) && !(roomy && q.short(e)) {
				best = max(best, e.tier(now))
			}
		}
		if best > tierNone {
			tight = roomy
			break
		}
	}
	for i, e := range q.Model.Endpoints {
		all[i] = Considered{Candidate: e.price(q, usual, now), Out: q.bars(e, best, tight, now)}
	}
	slices.SortStableFunc(all, func(a, b Considered) int {
		if (a.Out == "") != (b.Out == "") {
			return cmp.Compare(len(a.Out), len(b.Out))
		}
		return cmp.Compare(a.Cost(), b.Cost())
	})
	return all
}

// bars says why an endpoint may not be named, if those of the best tier may.
// tight is whether others have room for the prompt.
func (q *Query) bars(e *Endpoint, best int, tight bool, now int64) string {
	switch t := e.tier(now); {
	case !q.Only.allows(e.Address):
		return "not allowed by the gateway"
	case t == tierNone:
		return "not ready"
	case tight && q.short(e):
		return "no room for the prompt"
	case t == best:
		return ""
	case t == tierSuspect:
		return "silent"
	default:
		return "failed lately"
	}
}
