package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// span is one span of a trace, as the file of `millrace up -traces` has it.
type span struct {
	Service string `json:"-"`
	TraceID string `json:"traceId"`
	ID      string `json:"spanId"`
	Parent  string `json:"parentSpanId"`
	Name    string `json:"name"`
	Kind    any    `json:"kind"`
	Start   any    `json:"startTimeUnixNano"`
	End     any    `json:"endTimeUnixNano"`
}

func (s span) String() string {
	return fmt.Sprintf("%s %q (%s ← %s, %v)", s.Service, s.Name, s.ID, s.Parent, s.end().Sub(s.start()))
}

func (s span) start() time.Time { return nanos(s.Start) }
func (s span) end() time.Time   { return nanos(s.End) }

// nanos reads OTLP-JSON's 64-bit numbers, which are strings.
func nanos(v any) time.Time {
	s, _ := v.(string)
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Unix(0, n)
}

// resourceSpans is one line of the file.
type resourceSpans struct {
	Resource struct {
		Attributes []struct {
			Key   string `json:"key"`
			Value struct {
				String string `json:"stringValue"`
			} `json:"value"`
		} `json:"attributes"`
	} `json:"resource"`
	ScopeSpans []struct {
		Spans []span `json:"spans"`
	} `json:"scopeSpans"`
}

// spansOf returns the spans of one trace in the file.
func spansOf(path, trace string) ([]span, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []span
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var r resourceSpans
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, rig.Final(fmt.Errorf("%w in %.200s", err, line))
		}
		service := ""
		for _, a := range r.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.String
			}
		}
		for _, sc := range r.ScopeSpans {
			for _, s := range sc.Spans {
				s.Service = service
				if s.TraceID == trace {
					all = append(all, s)
				}
			}
		}
	}
	return all, nil
}

// tree is a trace whose spans all have come.
type tree []span

func (t tree) byID(id string) (span, bool) {
	i := slices.IndexFunc(t, func(s span) bool { return s.ID == id })
	if i < 0 {
		return span{}, false
	}
	return t[i], true
}

// of returns the spans of a service, in order of their beginning.
func (t tree) of(service string) tree {
	var some tree
	for _, s := range t {
		if strings.Contains(s.Service, service) {
			some = append(some, s)
		}
	}
	slices.SortFunc(some, func(a, b span) int { return a.start().Compare(b.start()) })
	return some
}

// under says whether s has an ancestor among the others.
func (t tree) under(s span, others tree) bool {
	for range t {
		parent, ok := t.byID(s.Parent)
		if !ok {
			return false
		}
		if _, ok := others.byID(parent.ID); ok {
			return true
		}
		s = parent
	}
	return false
}

// complete says what is missing until the trace has all that it must have. The
// programs send their spans in batches of their own.
func (t tree) complete(caller string) error {
	for _, s := range t {
		if _, ok := t.byID(s.Parent); !ok && s.Parent != caller {
			return fmt.Errorf("%v has a parent that is not in the trace %v", s, t)
		}
	}
	for _, want := range []struct {
		service string
		spans   int
	}{{"envoy", 3}, {"extproc", 1}, {"engine", 2}} {
		if n := len(t.of(want.service)); n < want.spans {
			return fmt.Errorf("%d spans of %s, want %d, in %v", n, want.service, want.spans, t)
		}
	}
	return nil
}

// explained has a client ask why, and the command say so of the same request: where it was
// to go, who answered, and what the engine counted.
func explained(t *testing.T, m *mesh) {
	a := rig.MustPost(t, m.URL(t, "/v1/chat/completions"), rig.Ask(4, "Say hi."), "x-millrace-debug", "1")
	var why struct {
		Named      []string
		Candidates []struct{ Replica string }
	}
	if err := json.Unmarshal([]byte(a.Header.Get("x-millrace-decision")), &why); err != nil || len(why.Named) == 0 || len(why.Candidates) != 2 {
		t.Errorf("x-millrace-decision: %q, %v; want two candidates", a.Header.Get("x-millrace-decision"), err)
	}
	if unasked := rig.MustPost(t, m.URL(t, "/v1/chat/completions"), rig.Ask(1, "Say hi.")); unasked.Header.Get("x-millrace-decision") != "" {
		t.Error("who does not ask is shown a decision, too")
	}
	got := rig.Millrace(t, "", "explain", a.Header.Get("x-request-id"), "-json", "-dir", m.Dir)
	var said struct {
		Decided struct {
			Model, Reason string
			Endpoints     []struct{ Address string }
		}
		Happened struct {
			Node   string
			Status int
			Prompt *int `json:"prompt_tokens"`
			Output *int `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(got.Stdout), &said); err != nil || got.Code != 0 {
		t.Fatalf("millrace explain: exit code %d, %v: %s%s", got.Code, err, got.Stdout, got.Stderr)
	}
	h := said.Happened
	if said.Decided.Model != model || len(said.Decided.Endpoints) == 0 || said.Decided.Endpoints[0].Address != why.Named[0] ||
		h.Status != 200 || h.Node != a.Header.Get("x-millrace-node") || h.Prompt == nil || *h.Prompt == 0 || h.Output == nil || *h.Output == 0 {
		t.Errorf("millrace explain says %s", got.Stdout)
	}
	words := rig.Millrace(t, "", "explain", "-last", "-dir", m.Dir)
	if t.Logf("\n%s", words.Stdout); words.Code != 0 || !strings.Contains(words.Stdout, "decided\n") {
		t.Errorf("exit code %d: %s", words.Code, words.Stderr)
	}
}

// TestOneTraceOfOneRequest follows one request through Envoy, extproc, the
// engine and its call of the backend.
func TestOneTraceOfOneRequest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "traces.jsonl")
	policy := filepath.Join(t.TempDir(), "mesh.yaml")
	text := "{apiVersion: millrace.dev/v1alpha1, kind: Policy, metadata: {name: default}, spec: {explain: true}}\n"
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m := own(t, "-traces", file, "-config", policy)
	explained(t, m)
	const trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	log := m.AccessLog()
	a := rig.MustPost(t, m.URL(t, chatPath), rig.Ask(4, "hi"), "traceparent", "00-"+trace+"-"+caller+"-01")
	var tr tree
	rig.Wait(t, rig.BackLimit, "the trace is complete", func() error {
		spans, err := spansOf(file, trace)
		if errors.Is(err, os.ErrNotExist) {
			return err
		}
		tr = spans
		return errors.Join(err, tr.complete(caller))
	})
	for _, s := range tr {
		t.Log(s)
	}
	checkParents(t, tr, caller)
	checkOrder(t, tr)
	t.Run("millrace trace shows it", func(t *testing.T) { shownTrace(t, m, trace) })
	// Envoy may still be writing the lines of the start, so look for the trace.
	line := log.Find(t, func(l rig.Access) bool { return l.Trace == trace })
	if line.Path != chatPath {
		t.Errorf("the access log has the trace at path %q, want %q", line.Path, chatPath)
	}
	if a.Header.Get("x-millrace-node") == "" {
		t.Error("the answer names no node")
	}
}

// shownTrace has the command show where the time of a request went, and of the last one.
func shownTrace(t *testing.T, m *mesh, trace string) {
	got := rig.Millrace(t, "", "trace", trace, "-json", "-dir", m.Dir)
	var w struct {
		Trace, Bottleneck string
		Spans             []struct{ Name, Service string }
		Parts             []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(got.Stdout), &w); err != nil || got.Code != 0 || w.Trace != trace || w.Bottleneck == "" {
		t.Fatalf("millrace trace: exit code %d, %v: %s%s", got.Code, err, got.Stdout, got.Stderr)
	}
	for _, want := range []string{"pick", "admission", "backend", "prefill", "decode"} {
		if !slices.ContainsFunc(w.Spans, func(s struct{ Name, Service string }) bool { return s.Name == want }) {
			t.Errorf("no span %s in %s", want, got.Stdout)
		}
	}
	if words := rig.Millrace(t, "", "trace", "-last", "-dir", m.Dir); words.Code != 0 || !strings.Contains(words.Stdout, "most of it: ") {
		t.Errorf("exit code %d: %s%s", words.Code, words.Stdout, words.Stderr)
	} else {
		t.Logf("\n%s", words.Stdout)
	}
}

func checkParents(t *testing.T, tr tree, caller string) {
	t.Helper()
	gateway, picker, engine := tr.of("envoy"), tr.of("extproc"), tr.of("engine")
	if root := gateway[0]; root.Parent != caller {
		t.Errorf("Envoy's first span %v has not the caller's %s as parent", root, caller)
	}
	if !tr.under(picker[0], gateway) {
		t.Errorf("%v is not under Envoy", picker[0])
	}
	if parent, _ := tr.byID(engine[0].Parent); parent.Service != gateway[0].Service {
		t.Errorf("%v is not the child of Envoy's attempt", engine[0])
	}
	if !tr.under(engine[1], engine[:1]) {
		t.Errorf("%v, the call of the backend, is not under %v", engine[1], engine[0])
	}
}

// checkOrder wants every span within its parent, and the engine after the
// decision. All clocks are the same one.
func checkOrder(t *testing.T, tr tree) {
	t.Helper()
	const slack = 2 * time.Millisecond // Envoy rounds to microseconds and ends spans late
	for _, s := range tr {
		if s.end().Before(s.start()) {
			t.Errorf("%v ends before it begins", s)
		}
		if p, ok := tr.byID(s.Parent); ok && s.start().Before(p.start().Add(-slack)) {
			t.Errorf("%v begins before its parent %v", s, p)
		}
	}
	if e, p := tr.of("engine")[0], tr.of("extproc")[0]; e.start().Before(p.start()) {
		t.Errorf("%v begins before %v", e, p)
	}
}
