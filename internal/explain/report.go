package explain

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"millrace.dev/millrace/internal/wire"
)

// Report is one request; -json prints it.
type Report struct {
	RequestID string `json:"request_id"`
	Trace     string `json:"trace,omitempty"`
	At        string `json:"at"`
	Method    string `json:"method"`
	Path      string `json:"path"`
	// Decided is nil where extproc decided nothing: Envoy went by its weights, or the
	// request was answered before.
	Decided  *Decided `json:"decided"`
	Happened Happened `json:"happened"`
}

// Decided is what extproc decided.
type Decided struct {
	Model string `json:"model"`
	// Asked is the client's name for the model, if that is another.
	Asked    string `json:"asked,omitempty"`
	Priority string `json:"priority,omitempty"`
	Session  string `json:"session,omitempty"`
	// Reason is "new", "sticky", "moved" or "fallback"; Why says what that means.
	Reason string `json:"reason"`
	Why    string `json:"why"`
	// QueuedMs is how long the request has waited in extproc before that; QueuedFor is what for:
	// "load", for its model's place, or its being loaded, or "room", at an engine.
	QueuedMs  *int   `json:"queued_ms,omitempty"`
	QueuedFor string `json:"queued_for,omitempty"`
	// Endpoints are those that Envoy was to try, in this order.
	Endpoints []Endpoint `json:"endpoints"`
	// What was expected; nil: not said, or the tokens of the prompt were counted.
	PromptTokens *int `json:"expected_prompt_tokens,omitempty"`
	CachedTokens *int `json:"expected_cached_tokens,omitempty"`
	OutputTokens *int `json:"expected_output_tokens,omitempty"`
}

// Endpoint is one that was named.
type Endpoint struct {
	Address string `json:"address"`
	// Millis is when it would be done, from the decision on.
	Millis *int `json:"expected_ms,omitempty"`
	// Terms are what that is made of, of the first.
	Terms string `json:"terms,omitempty"`
}

// Happened is what came of it. What is nil nobody has said.
type Happened struct {
	Status   int    `json:"status"`
	Address  string `json:"address,omitempty"`
	Node     string `json:"node,omitempty"`
	Attempts *int   `json:"attempts,omitempty"`
	Millis   *int   `json:"duration_ms,omitempty"`
	// FirstToken is when the first token came, from the request's arrival on.
	FirstToken   *int     `json:"ttft_ms,omitempty"`
	PromptTokens *int     `json:"prompt_tokens,omitempty"`
	CachedTokens *int     `json:"cached_tokens,omitempty"`
	OutputTokens *int     `json:"output_tokens,omitempty"`
	Problems     []string `json:"problems,omitempty"`
}

// report makes the report of a line.
func (e *entry) report() *Report {
	r := &Report{
		RequestID: string(e.RequestID), Trace: string(e.Trace), At: e.At, Method: string(e.Method), Path: string(e.Path),
		Happened: Happened{
			Address: string(e.Host), Node: string(e.Node), Attempts: e.Attempts.int(), Millis: e.Duration.int(),
			FirstToken: e.First.int(), PromptTokens: e.Prompt.int(), CachedTokens: e.Cached.int(), OutputTokens: e.Output.int(),
			Problems: problems(string(e.Flags), string(e.Details)),
		},
	}
	if s := e.Status.int(); s != nil {
		r.Happened.Status = *s
	}
	if e.Decision == "" {
		return r
	}
	d := &Decided{
		Model: string(e.Model), Asked: string(e.Asked), Priority: string(e.Priority), Session: string(e.Session),
		PromptTokens: e.Expected.Prompt.int(), CachedTokens: e.Expected.Cached.int(), OutputTokens: e.Expected.Output.int(),
	}
	reason, list, _ := strings.Cut(string(e.Decision), " ")
	list, wait, waited := strings.Cut(list, "; queued ")
	if took, what, ok := strings.Cut(wait, "ms for "); waited && ok {
		if n, err := strconv.Atoi(took); err == nil {
			d.QueuedMs, d.QueuedFor = &n, what
		}
	}
	d.Reason, d.Why, d.Endpoints = reason, reasons[reason], endpoints(list)
	r.Decided = d
	return r
}

// endpoints reads "10.0.0.3:8000 412ms (wait 0 prefill 80 decode 332), 10.0.0.7:8000 890ms".
func endpoints(list string) []Endpoint {
	var all []Endpoint
	for _, one := range strings.Split(list, ", ") {
		address, rest, _ := strings.Cut(strings.TrimSpace(one), " ")
		if address == "" {
			continue
		}
		e := Endpoint{Address: address}
		ms, terms, _ := strings.Cut(rest, " ")
		if n, err := strconv.Atoi(strings.TrimSuffix(ms, "ms")); err == nil {
			e.Millis = &n
		}
		e.Terms = strings.Trim(terms, "()")
		all = append(all, e)
	}
	return all
}

// flags are Envoy's, as far as they occur here.
var flags = map[string]string{
	"DC": "the client closed the connection before the answer was complete", "DPE": "the request broke HTTP's rules",
	"DT": "the request took longer than allowed", "LR": "Envoy reset the connection", "NC": "Envoy has no such cluster",
	"NFCF": "Envoy has no such cluster", "NR": "no route for this path", "SI": "nothing was sent or received on the stream for too long",
	"UC": "the engine closed the connection", "UF": "no connection to the engine", "UH": "no endpoint was healthy",
	"UO": "Envoy's own limit of requests was reached", "UPE": "the engine's answer broke HTTP's rules",
	"UR": "the engine reset the request", "URX": "all attempts failed", "UT": "the engine took too long to answer",
	"UAEX": "the request was not allowed", "OM": "Envoy was short of memory",
}

// problems says what Envoy's flags and details mean.
func problems(list, details string) []string {
	var all []string
	for _, f := range strings.Split(list, ",") {
		if meaning, known := flags[f]; known {
			all = append(all, meaning+" ("+f+")")
		} else if f != "" {
			all = append(all, "Envoy's flag "+f)
		}
	}
	if _, code, ok := strings.Cut(details, "millrace_"); ok {
		all = append(all, "extproc answered the request itself: "+strings.ReplaceAll(code, "_", " "))
	}
	return all
}

// words is the report for a person.
func (r *Report) words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "request %s at %s\n%s %s\n\ndecided\n", orNone(r.RequestID), r.At, r.Method, r.Path)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(t, "  %s\t"+format+"\n", append([]any{what}, args...)...)
	}
	if d := r.Decided; d == nil {
		row("nothing", "by extproc: Envoy chose by its weights, or the request was answered before")
	} else {
		model := d.Model
		if d.Asked != "" {
			model += " (the client asked for " + d.Asked + ")"
		}
		row("model", "%s, priority %s", model, orNone(d.Priority))
		row("session", "%s", orNone(d.Session))
		if d.QueuedMs != nil {
			row("waited", "%d ms %s", *d.QueuedMs, queuedFor(d.QueuedFor))
		}
		row("reason", "%s: %s", d.Reason, d.Why)
		for i, e := range d.Endpoints {
			what := ""
			if i == 0 {
				what = "endpoints"
			}
			row(what, "%d. %s, done in %s%s", i+1, e.Address, ms(e.Millis), terms(e.Terms))
		}
		if !slices.IsSortedFunc(d.Endpoints, func(a, b Endpoint) int { return deref(a.Millis) - deref(b.Millis) }) {
			row("", "in the order of their cost, which is more than this time: extproc/README.md has its terms")
		}
	}
	_ = t.Flush()
	fmt.Fprintf(&b, "\nhappened\n")
	t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	h := &r.Happened
	row("answer", "%d %s", h.Status, r.by())
	row("took", "%s%s", ms(h.Millis), r.predicted())
	if h.FirstToken != nil {
		row("first token", "after %d ms", *h.FirstToken)
	}
	if d := r.Decided; d != nil {
		prompt := d.PromptTokens
		row("prompt", "%s", tokens(h.PromptTokens, prompt))
		row("cached", "%s", tokens(h.CachedTokens, d.CachedTokens))
		row("output", "%s", tokens(h.OutputTokens, d.OutputTokens))
	}
	for _, p := range h.Problems {
		row("problem", "%s", p)
	}
	_ = t.Flush()
	return b.String()
}

// queuedFor says what a request has waited for in extproc.
func queuedFor(what string) string {
	switch what {
	case wire.QueuedForLoad:
		return "in extproc, for its model to have a place and be loaded"
	case wire.QueuedForRoom:
		return "in extproc, for room at an engine"
	}
	return "in extproc"
}

// by says who answered.
func (r *Report) by() string {
	h := &r.Happened
	if h.Address == "" {
		return "from Envoy or extproc: no engine was asked"
	}
	text := "from " + h.Address
	if h.Node != "" {
		text = "from " + h.Node + " at " + h.Address
	}
	if h.Attempts != nil && *h.Attempts > 1 {
		text += fmt.Sprintf(", at attempt %d", *h.Attempts)
	}
	if r.Decided == nil {
		return text
	}
	for i, e := range r.Decided.Endpoints {
		if e.Address == h.Address {
			return text + fmt.Sprintf(", extproc's choice number %d", i+1)
		}
	}
	return text + ", which extproc did not name"
}

// predicted compares the time with what was predicted of who answered.
func (r *Report) predicted() string {
	if r.Decided == nil || r.Happened.Millis == nil {
		return ""
	}
	for _, e := range r.Decided.Endpoints {
		if e.Address == r.Happened.Address && e.Millis != nil {
			queued := deref(r.Decided.QueuedMs)
			off := float64(*r.Happened.Millis-queued-*e.Millis) / math.Max(1, float64(*e.Millis))
			after := ""
			if queued > 0 {
				after = " after the wait"
			}
			return fmt.Sprintf(", predicted %d ms%s (%+.0f %%)", *e.Millis, after, 100*off)
		}
	}
	return ""
}

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

func ms(n *int) string {
	if n == nil {
		return "? ms"
	}
	return fmt.Sprintf("%d ms", *n)
}

func terms(text string) string {
	if text == "" {
		return ""
	}
	return " = " + text
}

// tokens shows what was counted beside what was expected.
func tokens(real, expected *int) string {
	switch {
	case real != nil && expected != nil:
		return fmt.Sprintf("%d tokens, expected %d", *real, *expected)
	case real != nil:
		return fmt.Sprintf("%d tokens", *real)
	case expected != nil:
		return fmt.Sprintf("not reported by the engine, expected %d tokens", *expected)
	}
	return "not known"
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
