// Package scrape reads what engines show of themselves: the few series of their metrics
// pages that a cost needs, and whether they are alive.
//
// probe calls it for endpoints that report nothing, config for the names of the types of
// engines. types.go has all that is known of each type. Its one rule: a page is walked
// over once, byte by byte, and nothing is allocated for it: an engine shows hundreds of
// series, of which ten matter.
package scrape

import (
	"bytes"
	"math/bits"

	"millrace.dev/millrace/internal/trust"
)

// Sample is what one page says of its engine. A series that is missing is 0, and
// its bit in Has is not set. Several engines behind one page (data parallel ones,
// or several models) are added up, shares are averaged.
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
	fields = iota
)

// started is the series that every Prometheus client has, whatever its program.
const started = "process_start_time_seconds"

// Scan reads a page in Prometheus' text form. What is not understood is passed
// over.
func (t *Type) Scan(page []byte) Sample {
	r := scan{typ: t}
	prefix := t.prefix
	for len(page) > 0 {
		line := page
		if n := bytes.IndexByte(page, '\n'); n >= 0 {
			line, page = page[:n], page[n+1:]
		} else {
			page = nil
		}
		switch {
		case len(line) > len(prefix) && line[0] == prefix[0] && string(line[:len(prefix)]) == prefix:
			r.line(line[len(prefix):])
		case len(line) > len(started) && line[0] == started[0] && ends(line[len(started)]) && string(line[:len(started)]) == started:
			if v, ok := value(line[len(started):], &series{}); ok {
				r.take(Started, 0, v)
			}
		}
	}
	return r.sample()
}

// scan is the state of one Scan.
type scan struct {
	typ *Type
	s   Sample
	// by is which of the type's series a field comes from, from 1: where there are several,
	// they are names of different releases, and the first one counts. lines is how many
	// lines were added up.
	by    [fields]uint8
	lines [fields]uint16
}

// line reads a line of the type's without its prefix. Where a name would end says
// most of them off at once. Series of the same name differ by a label.
func (r *scan) line(line []byte) {
	for i := range r.typ.series {
		w := &r.typ.series[i]
		n := len(w.name)
		if len(line) <= n || !ends(line[n]) || string(line[:n]) != w.name {
			continue
		}
		if v, ok := value(line[n:], w); ok {
			r.take(w.field, i, v)
			return
		}
	}
}

// take takes in a value of a field that the i-th series of the type has.
func (r *scan) take(f Field, i int, v float64) {
	at, by := bits.TrailingZeros16(uint16(f)), uint8(i+1)
	switch {
	case r.by[at] == 0 || by < r.by[at]:
		r.by[at], r.lines[at] = by, 0
		*r.s.at(f) = 0
	case by > r.by[at]:
		return
	}
	r.s.Has |= f
	r.lines[at]++
	*r.s.at(f) += v
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

// ends is whether c ends a name.
func ends(c byte) bool { return c == '{' || c == ' ' || c == '\t' }

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
	default:
		return &s.Started
	}
}

// value reads what follows a series' name: labels or none, and a number that makes
// sense.
func value(rest []byte, w *series) (float64, bool) {
	labels := rest[:0]
	if len(rest) > 0 && rest[0] == '{' {
		end := labelsEnd(rest)
		if end < 0 {
			return 0, false
		}
		labels, rest = rest[:end], rest[end:]
	}
	if w.label != "" {
		if text, ok := labelText(labels, w.label); !ok || string(text) != w.is {
			return 0, false
		}
	}
	if w.size != "" {
		size, ok := label(labels, w.size)
		n, ok2 := label(labels, w.count)
		return size * n, ok && ok2 && size*n <= most
	}
	return number(rest)
}

// labelsEnd returns where the labels that begin rest are over; below 0: nowhere.
// A brace inside of quotes doesn't end them.
func labelsEnd(rest []byte) int {
	quoted := false
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == '}' && !quoted:
			return i + 1
		}
	}
	return -1
}

// label returns the number in a label, given as its name and what stands before the
// number.
func label(labels []byte, name string) (float64, bool) {
	text, ok := labelText(labels, name)
	if !ok {
		return 0, false
	}
	return number(text)
}

// labelText returns what is in a label. A longer name may end in the same way.
func labelText(labels []byte, name string) ([]byte, bool) {
	for {
		i := bytes.Index(labels, []byte(name))
		if i < 1 {
			return nil, false
		}
		before, rest := labels[i-1], labels[i+len(name):]
		if before != '{' && before != ',' {
			labels = rest
			continue
		}
		n := bytes.IndexByte(rest, '"')
		if n < 0 {
			return nil, false
		}
		return rest[:n], true
	}
}

// most is the largest number that is believed.
const most = 1e15

// number reads the first word of b, a number from 0 to most.
func number(b []byte) (float64, bool) {
	b = bytes.TrimLeft(b, " \t")
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
