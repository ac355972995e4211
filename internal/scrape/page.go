// Package scrape reads what engines show of themselves: the few series of their metrics
// pages that a cost needs, and whether they are alive.
//
// probe calls it for endpoints that report nothing, config for the names of the types of
// engines. types.go has all that is known of each type. Its one rule: a page is walked
// over once, byte by byte, and nothing is allocated for it: an engine shows hundreds of
// series, of which ten matter. (One whose names are written in a rarer way is walked over
// again.)
package scrape

import (
	"math/bits"
	"sync"

	"github.com/cespare/xxhash/v2"

	"millrace.dev/millrace/internal/trust"
)

// Sample is what one page says of its engine. A series that is missing is 0, and
// its bit in Has is not set. Several engines behind one page (data parallel ones,
// or several models) are added up, shares are averaged; ranks that work on the same
// requests and say the same count once.
type Sample struct {
	// Has says which series were there.
	Has Field
	// Running and Waiting are requests.
	Running, Waiting float64
	// KV is the share of the cache that is in use, 0 to 1, and KVTokens its size in
	// tokens: KVBlocks of BlockTokens each, where an engine says these.
	KV, KVTokens          float64
	KVBlocks, BlockTokens float64
	// Started is when its process was, in Unix seconds.
	Started float64
	// Queued is whether the wait in the queue is part of PrefillSeconds.
	Queued bool

	// The rest counts since the engine's start.

	// Requests that were answered.
	Requests float64
	// Prompt tokens, of which Cached were found in the cache.
	Prompt, Cached float64
	// Output tokens.
	Output float64
	// Generated tokens are the same as they are made, also of answers that are cut: see
	// Type.Count.
	Generated float64
	// PrefillSeconds and DecodeSeconds are what these took, added up over requests.
	PrefillSeconds, DecodeSeconds float64
}

// Field is a set of a Sample's fields.
type Field uint16

// The fields of a Sample.
const (
	Running Field = 1 << iota
	Waiting
	KV
	KVTokens
	Requests
	Prompt
	Cached
	Output
	PrefillSeconds
	DecodeSeconds
	KVBlocks
	BlockTokens
	Started
	Generated
	fields = iota
)

// started is the series that every Prometheus client has, whatever its program.
const started = "process_start_time_seconds"

// Scan reads a page in the text form of Prometheus or of OpenMetrics. What is not understood
// is passed over, line by line. A type's names may be written in several ways: the first of
// these of which the page has any counts.
func (t *Type) Scan(page []byte) Sample {
	var s Sample
	for _, prefix := range t.prefixes {
		r := scan{typ: t}
		for l := samplesOf(page, prefix); l.next(); {
			r.line(&l)
		}
		r.release()
		if s = r.sample(); s.Has&^Started != 0 {
			break
		}
	}
	return s
}

// scan is the state of one walk over a page.
type scan struct {
	typ *Type
	s   Sample
	// by is which of the type's names a field comes from, from 1: where there are several,
	// they are names of different releases, and the first one counts. lines is how many
	// lines were added up.
	by    [fields]uint8
	lines [fields]uint16
	// ranks is what ranks show that show the same as others; nil: none was met yet.
	ranks *ranks
}

// line reads a sample whose name has the type's prefix. The length of a name says most of them
// off at once. Series of the same name differ by a label. A counter may be written
// without its _total, and with both names at the same time.
func (r *scan) line(l *samples) {
	if l.started {
		if v, _, ok := r.value(l, len(started), &series{}); ok {
			r.take(Started, 1, v, figure{})
		}
		return
	}
	n := l.name()
	for i := range r.typ.series {
		w := &r.typ.series[i]
		by := uint8(2*i + 1)
		switch {
		case n == len(w.name) && string(l.line[:n]) == w.name:
		case w.counter && n == len(w.name)-len(total) && string(l.line[:n]) == w.name[:n]:
			by++
		default:
			continue
		}
		if v, g, ok := r.value(l, n, w); ok {
			r.take(w.field, by, v, g)
			return
		}
	}
}

// take takes in a value of a field that a name of the type has.
func (r *scan) take(f Field, by uint8, v float64, g figure) {
	at := bits.TrailingZeros16(uint16(f))
	switch {
	case v == 0 && f&(KVTokens|KVBlocks|BlockTokens) != 0:
		return // nothing is known of a size yet
	case r.by[at] == 0 || by < r.by[at]:
		r.by[at], r.lines[at] = by, 0
		*r.s.at(f) = 0
	case by > r.by[at]:
		return
	}
	r.s.Has |= f
	if g.replica {
		g.field, g.by, g.value = f, by, v
		more, first := r.rank(g)
		*r.s.at(f) += more
		if !first {
			return
		}
	} else {
		*r.s.at(f) += v
	}
	r.lines[at]++
}

// figure is what one of several ranks says that all say the same. group is the hash of its
// other labels.
type figure struct {
	replica bool
	field   Field
	by      uint8
	group   uint64
	value   float64
}

// ranks is what such ranks show. What comes beyond its room is passed over.
type ranks struct {
	n   int
	all [256]figure
}

var rankPool = sync.Pool{New: func() any { return new(ranks) }}

// rank takes in what a rank shows, and returns what that adds: they write it one after the
// other, so that the largest is the newest. first is whether no other has shown it.
func (r *scan) rank(g figure) (more float64, first bool) {
	if r.ranks == nil {
		r.ranks = rankPool.Get().(*ranks)
		r.ranks.n = 0
	}
	t := r.ranks
	for i := range t.all[:t.n] {
		if old := &t.all[i]; old.field == g.field && old.by == g.by && old.group == g.group {
			more = max(0, g.value-old.value)
			old.value += more
			return more, false
		}
	}
	if t.n == len(t.all) {
		return 0, false
	}
	t.all[t.n] = g
	t.n++
	return g.value, true
}

func (r *scan) release() {
	if r.ranks != nil {
		rankPool.Put(r.ranks)
		r.ranks = nil
	}
}

// sample is what the page says as a whole.
func (r *scan) sample() Sample {
	s := &r.s
	s.Queued = r.typ.queued
	for _, f := range [...]Field{KV, BlockTokens, Started} {
		if n := r.lines[bits.TrailingZeros16(uint16(f))]; n > 1 {
			*s.at(f) /= float64(n)
		}
	}
	for f := Field(1); f < 1<<fields; f <<= 1 {
		*s.at(f) = min(*s.at(f), most) // many lines may add up to more
	}
	s.KV = min(1, s.KV)
	if both := KVBlocks | BlockTokens; s.Has&KVTokens == 0 && s.Has&both == both && s.KVBlocks*s.BlockTokens <= most {
		s.Has |= KVTokens
		s.KVTokens = s.KVBlocks * s.BlockTokens
	}
	if r.typ.fresh {
		s.Prompt += s.Cached
	}
	return *s
}

func (s *Sample) at(f Field) *float64 {
	switch f {
	case Running:
		return &s.Running
	case Waiting:
		return &s.Waiting
	case KV:
		return &s.KV
	case KVTokens:
		return &s.KVTokens
	case Requests:
		return &s.Requests
	case Prompt:
		return &s.Prompt
	case Cached:
		return &s.Cached
	case Output:
		return &s.Output
	case PrefillSeconds:
		return &s.PrefillSeconds
	case DecodeSeconds:
		return &s.DecodeSeconds
	case KVBlocks:
		return &s.KVBlocks
	case BlockTokens:
		return &s.BlockTokens
	case Generated:
		return &s.Generated
	default:
		return &s.Started
	}
}

// value reads what follows a name of n bytes: labels or none, and a number that makes sense.
func (r *scan) value(l *samples, n int, w *series) (v float64, g figure, ok bool) {
	labels, rest := l.behind(n)
	is, size, count := w.label == "", -1.0, 1.0
	if w.count != "" {
		count = -1
	}
	for labels.next() {
		switch name := labels.name; {
		case w.label != "" && string(name) == w.label:
			is = string(labels.text) == w.is
		case w.size != "" && string(name) == w.size:
			size = numberOr(labels.text, -1)
		case w.count != "" && string(name) == w.count:
			count = numberOr(labels.text, -1)
		case r.typ.replicates(name):
			g.replica = true
		case len(r.typ.replicas) > 0:
			g.group += xxhash.Sum64(name) * (xxhash.Sum64(labels.text) | 1)
		}
	}
	switch {
	case labels.bad || !is:
		return 0, g, false
	case w.size != "":
		return size * count, g, size >= 0 && count >= 0 && size*count <= most
	case labels.open:
		rest = labels.rest
	}
	v, ok = number(rest)
	return v, g, ok
}

func numberOr(text []byte, otherwise float64) float64 {
	if v, ok := number(text); ok {
		return v
	}
	return otherwise
}

// most is the largest number that is believed.
const most = 1e15

// number reads the first word of b, a number from 0 to most.
func number(b []byte) (float64, bool) {
	b = blank(b)
	n := 0
	for n < len(b) && b[n] != ' ' && b[n] != '\t' && b[n] != '\r' {
		n++
	}
	if n == 0 || n > 40 {
		return 0, false
	}
	v, err := trust.Number(string(b[:n]), 0, most)
	return v, err == nil
}

// Since is what happened between two samples of one engine.
type Since struct {
	// Requests, Prompt, Cached, Output, PrefillMs and DecodeMs are what was added;
	// what the engine doesn't say is 0.
	Requests, Prompt, Cached, Output float64
	PrefillMs, DecodeMs              float64
}

// Since returns what happened after the sample old. Restarted is whether a counter
// went back: what was cached then is gone.
func (s *Sample) Since(old *Sample) (d Since, restarted bool) {
	for f := Requests; f <= DecodeSeconds; f <<= 1 {
		if old.Has&f != 0 && *s.at(f) < *old.at(f) {
			return Since{}, true
		}
	}
	d = Since{
		Requests: s.Requests - old.Requests,
		Prompt:   s.Prompt - old.Prompt, Cached: s.Cached - old.Cached, Output: s.Output - old.Output,
		PrefillMs: 1000 * (s.PrefillSeconds - old.PrefillSeconds), DecodeMs: 1000 * (s.DecodeSeconds - old.DecodeSeconds),
	}
	if s.Queued && (s.Waiting > 0 || old.Waiting > 0) {
		d.PrefillMs = 0
	}
	return d, false
}
