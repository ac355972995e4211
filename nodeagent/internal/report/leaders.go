package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/internal/obs"
)

// fenceFor is how long a term is remembered of which no stream is open any more: so long
// nobody with a lower one is obeyed, who may have been replaced without knowing it.
const fenceFor = 30 * time.Second

// leaders decides whom of several xds the node obeys: those of the highest term. All
// get the same reports.
type leaders struct {
	xds map[string]*link // by address
	// open is when a stream of each term was last known to be open. Terms without leader
	// are not in it.
	open map[uint64]time.Time
}

// link is what is known of one xds.
type link struct {
	up   bool
	down string // why it is not up; empty: not tried yet
	term uint64 // that it has named in this stream; 0: it doesn't lead
}

func newLeaders() leaders {
	return leaders{xds: make(map[string]*link), open: make(map[uint64]time.Time)}
}

// pass lets time pass until now, in which no stream came or went.
func (l *leaders) pass(now time.Time) {
	for _, x := range l.xds {
		if x.up && x.term > 0 {
			l.open[x.term] = now
		}
	}
	maps.DeleteFunc(l.open, func(_ uint64, last time.Time) bool { return now.Sub(last) >= fenceFor })
}

// join takes in a new stream.
func (l *leaders) join(xds string) { l.xds[xds] = &link{up: true} }

// leave takes in the end of a stream, or that there is none, and returns whether that
// is news.
func (l *leaders) leave(xds, why string) bool {
	before := l.xds[xds]
	l.xds[xds] = &link{down: why}
	return before == nil || before.up || before.down == ""
}

func (l *leaders) forget(xds string) { delete(l.xds, xds) }

// named takes in the term that an xds names, and returns whether its directives are
// obeyed and whether it has named another before.
func (l *leaders) named(now time.Time, xds string, term uint64) (obeyed, news bool) {
	x := l.xds[xds]
	if x == nil || !x.up {
		return false, false // last words of a stream that has ended
	}
	news = x.term != term
	if x.term = term; term > 0 {
		l.open[term] = now
	}
	return term >= l.fence(), news
}

// fence is the lowest term that is obeyed.
func (l *leaders) fence() (term uint64) {
	for t := range l.open {
		term = max(term, t)
	}
	return term
}

// connected reports whether a stream is open.
func (l *leaders) connected() bool {
	for _, x := range l.xds {
		if x.up {
			return true
		}
	}
	return false
}

// conditions returns who can't be reached. While another xds can be, that is no harm.
func (l *leaders) conditions() []obs.Condition {
	var down []string
	for _, addr := range slices.Sorted(maps.Keys(l.xds)) {
		if x := l.xds[addr]; !x.up && x.down != "" {
			down = append(down, x.down)
		}
	}
	switch {
	case !l.connected() && len(down) == 0:
		down = []string{"not connected yet"}
	case len(down) == 0:
		return nil
	}
	c := obs.Condition{Code: "xds_unreachable", Text: "xds: " + strings.Join(down, "; "), Next: "start xds, or give its address with -xds", Severity: obs.Blocking}
	if l.connected() {
		c.Code, c.Severity = "xds_partly_unreachable", obs.Degraded
		c.Text = fmt.Sprintf("%d of %d xds are not reached: %s", len(down), len(l.xds), strings.Join(down, "; "))
	}
	return []obs.Condition{c}
}
