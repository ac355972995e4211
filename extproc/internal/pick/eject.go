package pick

import "time"

// An endpoint that fails is ejected for a while, then tried by one request at
// a time; the while doubles each time that it fails again.
const (
	ejectFirst = 500 * time.Millisecond
	ejectMost  = 10 * time.Second
)

// ejection is what Live.ejected packs: how often in a row the endpoint failed,
// in the low byte, and until when it is ejected, in Unix milliseconds.
type ejection uint64

func (e ejection) fails() int   { return int(e & 0xff) }
func (e ejection) until() int64 { return int64(e >> 8) }

// began is when the ejection was decided, in Unix milliseconds.
func (e ejection) began() int64 { return e.until() - span(e.fails()).Milliseconds() }

func ejectionOf(fails int, from int64) ejection {
	fails = min(fails, 0xff)
	return ejection(from+span(fails).Milliseconds())<<8 | ejection(fails)
}

// span is how long the n-th failure in a row ejects an endpoint.
func span(n int) time.Duration {
	if n > 5 {
		return ejectMost
	}
	return min(ejectFirst<<(n-1), ejectMost)
}

// standing is whether an endpoint may be named.
type standing uint8

const (
	out   standing = iota // ejected
	trial                 // its time is over: one request may try it
	fine
)

// standing returns whether the endpoint may be named now.
func (l *Live) standing(now int64) standing {
	e := ejection(l.ejected.Load())
	switch {
	case e == 0:
		return fine
	case now/int64(time.Millisecond) < e.until():
		return out
	default:
		return trial
	}
}

// try takes the one trial that is free after an ejection. Without an answer
// another one is free after the same while.
func (l *Live) try(now int64) bool {
	old := ejection(l.ejected.Load())
	ms := now / int64(time.Millisecond)
	if old == 0 {
		return true
	}
	return ms >= old.until() && l.swap(old, ejectionOf(old.fails(), ms))
}

// eject ejects the endpoint, for longer each time if grow. Failures of
// requests that were sent before the ejection in force add nothing to it.
func (l *Live) eject(sent, now time.Time, grow bool) bool {
	old := ejection(l.ejected.Load())
	if old != 0 && sent.UnixMilli() < old.began() {
		return false
	}
	fails := max(old.fails(), 1)
	if grow {
		fails = old.fails() + 1
	}
	return l.swap(old, ejectionOf(fails, now.UnixMilli()))
}

// reinstateSince ends an ejection after an answer to a request that was sent in it.
func (l *Live) reinstateSince(sent time.Time) {
	if e := ejection(l.ejected.Load()); e != 0 && sent.UnixMilli() >= e.began() {
		l.swap(e, 0)
	}
}

// swap replaces the ejection in force.
func (l *Live) swap(old, fresh ejection) bool {
	defer l.changed()
	return l.ejected.CompareAndSwap(uint64(old), uint64(fresh))
}

// Reinstate ends any ejection: xds says that the endpoint's state has changed.
func (l *Live) Reinstate() {
	l.ejected.Store(0)
	l.changed()
}

// Hosts that Envoy may report to have served a request, when it is none of
// those that were named.
const (
	servedUnknown = -1 // not said
	servedOther   = -2 // one that was not named
)

// verdict says which of n named hosts failed, namely the first so many, and
// which one answered; none: -1. Envoy walks along the list, one attempt each,
// passes over hosts that it does not know, and ends at its own policy.
func verdict(n, served, attempts, status int) (failed, answered int) {
	if served == servedUnknown {
		served = max(attempts, 1) - 1
	}
	if served == servedOther {
		// Only attempts before its own were at named hosts. None: the gateway knows none
		// of them, or does not go by our list, which is no fault of theirs.
		return min(n, max(attempts, 1)-1), -1
	}
	// More attempts than that: what is said to have served is the last named
	// host, and another one served after it.
	if served >= n || attempts > served+1 {
		return n, -1
	}
	if status >= 500 {
		return served + 1, -1
	}
	return served, served
}
