package traces

import (
	"fmt"
	"time"
)

// Waterfall is one request, part by part; `millrace trace -json` prints it.
type Waterfall struct {
	Trace string `json:"trace"`
	// Millis is from the first span's beginning to the last one's end.
	Millis float64 `json:"ms"`
	Rows   []Row   `json:"spans"`
	// Parts are what the time went to, the largest first; they add up to Millis.
	Parts []Part `json:"parts"`
	// Bottleneck is the largest part in a sentence.
	Bottleneck string `json:"bottleneck"`
}

// Row is one span.
type Row struct {
	// Depth is how many spans it is within.
	Depth   int     `json:"depth"`
	Service string  `json:"service"`
	Node    string  `json:"node,omitempty"`
	Name    string  `json:"name"`
	At      float64 `json:"at_ms"` // from the request's beginning
	Millis  float64 `json:"ms"`
	Failed  bool    `json:"failed,omitempty"`
	// Notes are what it says of itself, for a person.
	Notes []string `json:"notes,omitempty"`
}

// Part is a kind of work or of waiting.
type Part struct {
	Name   string  `json:"name"`
	Millis float64 `json:"ms"`
	text   string
}

// Names of spans, as the programs give them.
const (
	spanPick, spanQueue                         = "pick", "queue"
	spanAdmission, spanBackend                  = "admission", "backend"
	spanPrefill, spanDecode                     = "prefill", "decode"
	serviceEngine                               = "engine"
	attrOutput, attrInput                       = "gen_ai.usage.output_tokens", "gen_ai.usage.input_tokens"
	attrCached, attrShards, attrCode, attrQueue = "gen_ai.usage.cache_read.input_tokens", "millrace.shards", "http.response.status_code", "millrace.queued_for"
	attrReason, attrCandidates                  = "millrace.reason", "millrace.candidates"
)

// Of returns the waterfall of the spans of a trace, as Read returns them.
func Of(trace string, spans []Span) *Waterfall {
	w := &Waterfall{Trace: trace}
	if len(spans) == 0 {
		return w
	}
	from, to := spans[0].Start, spans[0].End
	for _, s := range spans {
		if s.End.After(to) {
			to = s.End
		}
	}
	w.Millis = ms(to.Sub(from))
	w.rows(spans, from)
	w.Parts = parts(spans, to.Sub(from))
	if len(w.Parts) > 0 {
		p := w.Parts[0]
		w.Bottleneck = fmt.Sprintf("%.0f %% of %.0f ms: %s", 100*p.Millis/max(w.Millis, 1e-6), w.Millis, p.text)
	}
	return w
}

// rows lists the spans in the order of their beginnings, each below the one that it is within.
func (w *Waterfall) rows(spans []Span, from time.Time) {
	children, known := map[string][]int{}, map[string]bool{}
	for _, s := range spans {
		known[s.ID] = true
	}
	var roots []int
	for i, s := range spans {
		if known[s.Parent] && s.Parent != s.ID {
			children[s.Parent] = append(children[s.Parent], i)
		} else {
			roots = append(roots, i)
		}
	}
	seen := make([]bool, len(spans)) // a trace may be wrong, and have a ring
	var walk func(i, depth int)
	walk = func(i, depth int) {
		if seen[i] {
			return
		}
		seen[i] = true
		s := &spans[i]
		w.Rows = append(w.Rows, Row{
			Depth: depth, Service: s.Service, Node: s.Node, Name: s.Name, At: ms(s.Start.Sub(from)), Millis: ms(s.Took()), Failed: s.Failed, Notes: notes(s),
		})
		for _, c := range children[s.ID] {
			walk(c, depth+1)
		}
	}
	for _, i := range roots {
		walk(i, 0)
	}
	for i := range spans {
		walk(i, 0)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
