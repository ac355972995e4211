package traces

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// parts says what the time went to. Spans of the same kind, such as those of several attempts, are
// counted once for each moment.
func parts(spans []Span, total time.Duration) []Part {
	of := func(is func(*Span) bool) (time.Duration, *Span) {
		var some []Span
		var last *Span
		for i := range spans {
			if is(&spans[i]) {
				some, last = append(some, spans[i]), &spans[i]
			}
		}
		return covered(some), last
	}
	named := func(name string) (time.Duration, *Span) { return of(func(s *Span) bool { return s.Name == name }) }
	pick, _ := named(spanPick)
	queue, queued := named(spanQueue)
	engine, server := of(func(s *Span) bool {
		return s.Service == serviceEngine && !slices.Contains([]string{spanAdmission, spanBackend, spanPrefill, spanDecode}, s.Name)
	})
	admission, _ := named(spanAdmission)
	backend, _ := named(spanBackend)
	prefill, prompt := named(spanPrefill)
	decode, output := named(spanDecode)
	where := "the engine"
	if server != nil && server.Node != "" {
		where = server.Node
	}
	all := []Part{
		{"queue", ms(queue), "it waited in extproc" + waitedFor(queued)},
		{"pick", ms(max(0, pick-queue)), "extproc took so long to decide"},
		{"admission", ms(admission), "it waited at the engine of " + where + " to be let in: that was busy"},
		{"prefill", ms(prefill), "the backend of " + where + " worked on the prompt" + rate(prompt, attrInput, attrCached)},
		{"decode", ms(decode), "the backend of " + where + " generated the answer" + rate(output, attrOutput, "")},
		{"backend", ms(max(0, backend-prefill-decode)), "the backend of " + where + " did what it does not account for, such as its own queue"},
		{"engine", ms(max(0, engine-admission-backend)), "the engine of " + where + " read, checked and wrote"},
		{"gateway", ms(max(0, total-pick-engine)), "Envoy, the network, or attempts that no engine saw"},
	}
	all = slices.DeleteFunc(all, func(p Part) bool { return p.Millis <= 0 })
	slices.SortStableFunc(all, func(a, b Part) int { return cmp.Compare(b.Millis, a.Millis) })
	return all
}

// covered is for how long there was one of the spans, which are in order.
func covered(spans []Span) (sum time.Duration) {
	var end time.Time
	for _, s := range spans {
		if s.Start.After(end) {
			end = s.Start
		}
		if s.End.After(end) {
			sum += s.End.Sub(end)
			end = s.End
		}
	}
	return sum
}

func waitedFor(s *Span) string {
	if s == nil {
		return ""
	}
	switch s.Attributes[attrQueue] {
	case "load":
		return " for its model to have a place and be loaded"
	case "room":
		return " for room at an engine: all were busy"
	}
	return ""
}

// rate says how many tokens a span has worked on, and how fast.
func rate(s *Span, key, less string) string {
	if s == nil || s.Took() <= 0 {
		return ""
	}
	n, _ := s.Attributes[key].(float64)
	not, _ := s.Attributes[less].(float64)
	if n -= not; n <= 0 {
		return ""
	}
	return fmt.Sprintf(": %.0f tokens at %.0f a second", n, n/s.Took().Seconds())
}
