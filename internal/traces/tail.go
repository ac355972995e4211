package traces

import (
	"strconv"
	"strings"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Of the traces that are worth it a second file is kept, NAME.kept, which ordinary ones do not
// push out: those that failed, were slow, moved a conversation away from its cache, or were
// predicted wrongly. A trace is judged as a whole, when nothing of it has come for a while.
const (
	// maxKept bounds the second file, in bytes. A full one is kept once, as NAME.kept.old.
	maxKept = 16 << 20
	// maxOpen bounds the traces that are not judged yet, in bytes; the oldest is, then.
	maxOpen = 8 << 20
	// quiet is how long nothing must have come of a trace that is judged: programs send their
	// spans within 200 ms of their end, Envoy within a second.
	quiet = 3 * time.Second
	// slower is by how much a trace must be longer than the average of late to be slow.
	slower = 3
	// averaged is what each trace counts in that average.
	averaged = 0.02
	// wrong is by what factor a prediction must be off, and wrongBy by how much at least.
	wrong, wrongBy = 2, 200 * time.Millisecond
)

// tail has the traces that are not judged yet. It is a part of a Receiver.
type tail struct {
	open    map[string]*pending // by trace id
	order   []string            // the oldest first; those that are judged are skipped
	bytes   int
	average float64 // length of traces, in seconds; 0: none yet
}

// pending is one trace.
type pending struct {
	lines [][]byte
	last  time.Time // when something of it came

	first, end uint64 // Unix nanoseconds
	failed     bool
	moved      bool
	predicted  time.Duration // 0: not known
	queued     time.Duration
}

// add takes in what one call has brought.
func (t *tail) add(spans *trace.ResourceSpans, now time.Time) {
	byTrace := map[string]*trace.ResourceSpans{}
	for _, scope := range spans.GetScopeSpans() {
		for _, s := range scope.GetSpans() {
			id := string(s.GetTraceId())
			one := byTrace[id]
			if one == nil {
				one = &trace.ResourceSpans{Resource: spans.GetResource(), ScopeSpans: []*trace.ScopeSpans{{Scope: scope.GetScope()}}}
				byTrace[id] = one
			}
			one.ScopeSpans[0].Spans = append(one.ScopeSpans[0].Spans, s)
		}
	}
	for id, one := range byTrace {
		line, err := Line(one)
		if err != nil || len(line) > maxOpen/4 {
			continue // the first file may have it
		}
		p := t.open[id]
		if p == nil {
			p = &pending{}
			t.open[id] = p
			t.order = append(t.order, id)
		}
		for _, s := range one.GetScopeSpans()[0].GetSpans() {
			p.note(s)
		}
		p.lines, p.last = append(p.lines, line), now
		t.bytes += len(line)
	}
}

// note takes in what a span says of its trace.
func (p *pending) note(s *trace.Span) {
	if from := s.GetStartTimeUnixNano(); p.first == 0 || from < p.first {
		p.first = from
	}
	p.end = max(p.end, s.GetEndTimeUnixNano())
	if s.GetStatus().GetCode() == trace.Status_STATUS_CODE_ERROR {
		p.failed = true
	}
	if s.GetName() == spanQueue && s.GetEndTimeUnixNano() > s.GetStartTimeUnixNano() {
		p.queued += time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano())
	}
	for _, a := range s.GetAttributes() {
		switch v := a.GetValue(); a.GetKey() {
		case attrCode, "http.status_code":
			code := v.GetIntValue()
			if text := v.GetStringValue(); text != "" { // Envoy's are texts
				code, _ = strconv.ParseInt(text, 10, 64)
			}
			p.failed = p.failed || code >= 429
		case attrReason:
			p.moved = p.moved || v.GetStringValue() == "moved"
		case attrCandidates:
			p.predicted = predictedOf(v.GetArrayValue())
		}
	}
}

// predictedOf is when the first candidate would be done: "10.0.0.3:8000 412ms (wait 0 …)".
func predictedOf(all *common.ArrayValue) time.Duration {
	if len(all.GetValues()) == 0 {
		return 0
	}
	fields := strings.Fields(all.GetValues()[0].GetStringValue())
	if len(fields) < 2 {
		return 0
	}
	d, err := time.ParseDuration(fields[1])
	if err != nil {
		return 0
	}
	return d
}

// judge returns the lines of traces that are worth keeping, of those that are whole by now; all
// of them are, if it is the end.
func (t *tail) judge(now time.Time, end bool) (keep [][]byte) {
	for len(t.order) > 0 {
		p := t.open[t.order[0]]
		if !end && t.bytes <= maxOpen && now.Sub(p.last) < quiet {
			break
		}
		delete(t.open, t.order[0])
		t.order = t.order[1:]
		for _, line := range p.lines {
			t.bytes -= len(line)
		}
		if t.worth(p) {
			keep = append(keep, p.lines...)
		}
	}
	return keep
}

// worth reports whether a trace is one to keep.
func (t *tail) worth(p *pending) bool {
	var took time.Duration
	if p.end > p.first {
		took = time.Duration(p.end - p.first)
	}
	slow := t.average > 0 && took.Seconds() > slower*t.average
	if t.average == 0 {
		t.average = took.Seconds()
	} else {
		t.average += averaged * (took.Seconds() - t.average)
	}
	off := p.predicted > 0 && far(took-p.queued, p.predicted)
	return p.failed || p.moved || slow || off
}

func far(seen, predicted time.Duration) bool {
	more, less := max(seen, predicted), min(seen, predicted)
	return more > wrong*less && more-less > wrongBy
}
