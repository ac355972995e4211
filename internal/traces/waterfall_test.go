package traces

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
)

var epoch = time.Unix(1_700_000_000, 0)

func text(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

func number(key string, value int64) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: value}}}
}

func texts(key string, values ...string) *common.KeyValue {
	all := &common.ArrayValue{}
	for _, v := range values {
		all.Values = append(all.Values, text("", v).GetValue())
	}
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: all}}}
}

// made is a span of the trace with that number, from and to in milliseconds.
func made(of, id, parent byte, name string, from, to int, attrs ...*common.KeyValue) *trace.Span {
	at := func(n int) uint64 { return uint64(epoch.Add(time.Duration(n) * time.Millisecond).UnixNano()) }
	s := &trace.Span{
		TraceId: bytes.Repeat([]byte{of}, 16), SpanId: bytes.Repeat([]byte{id}, 8), Name: name,
		StartTimeUnixNano: at(from), EndTimeUnixNano: at(to), Attributes: attrs,
	}
	if parent > 0 {
		s.ParentSpanId = bytes.Repeat([]byte{parent}, 8)
	}
	return s
}

func from(service, node string, spans ...*trace.Span) *trace.ResourceSpans {
	r := &trace.ResourceSpans{Resource: &resource.Resource{Attributes: []*common.KeyValue{text("service.name", service)}}, ScopeSpans: []*trace.ScopeSpans{{Spans: spans}}}
	if node != "" {
		r.Resource.Attributes = append(r.Resource.Attributes, text("service.instance.id", node))
	}
	return r
}

// ofRequest is all spans of one request, which waited 100 ms, was prefilled for 50 and decoded for so
// many.
func ofRequest(of byte, decode int) []*trace.ResourceSpans {
	end := 170 + decode
	return []*trace.ResourceSpans{
		from("envoy", "", made(of, 1, 0, "ingress", 0, end+10), made(of, 2, 1, "router engines/m egress", 110, end+5)),
		from("extproc", "", made(of, 3, 1, "pick", 1, 108, text("millrace.reason", "new"), texts("millrace.candidates", "10.0.0.3:80 300ms (wait 0)")),
			made(of, 4, 3, "queue", 5, 105, text("millrace.queued_for", "room"))),
		from("engine", "node-a", made(of, 5, 2, "POST /v1/chat/completions", 112, end+2, number("http.response.status_code", 200)),
			made(of, 6, 5, "admission", 113, 115), made(of, 7, 5, "backend", 116, end),
			made(of, 8, 7, "prefill", 120, 170, number("gen_ai.usage.input_tokens", 60), number("gen_ai.usage.cache_read.input_tokens", 10), texts("millrace.shards", "node-a 0.50", "node-b 0.50")),
			made(of, 9, 7, "decode", 170, end, number("gen_ai.usage.output_tokens", 40))),
	}
}

func write(t *testing.T, path string, all ...*trace.ResourceSpans) {
	t.Helper()
	var b bytes.Buffer
	for _, r := range all {
		l, err := Line(r)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(l)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWaterfall reads one request of two out of a file, and says what its time went to.
func TestWaterfall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "traces.jsonl")
	id := func(of byte) string { return strings.Repeat(fmt.Sprintf("%02x", of), 16) }
	write(t, path, append(append(ofRequest(1, 200), ofRequest(2, 20)...), from("engine", "node-a", made(3, 1, 0, "other", 0, 1)))...)
	for _, tt := range []struct {
		of      byte
		largest string
		words   []string
	}{
		{1, "decode", []string{"53 % of 380 ms: the backend of node-a generated the answer: 40 tokens at 200 a second", "node-b has 0.50 of the layers", "for room", "10.0.0.3:80 300ms"}},
		{2, "queue", []string{"50 % of 200 ms: it waited in extproc for room at an engine: all were busy", "prefill    50.0 ms   25 %"}},
	} {
		spans, err := Read(path, id(tt.of))
		if err != nil {
			t.Fatal(err)
		}
		w := Of(id(tt.of), spans)
		if len(w.Rows) != 9 || w.Rows[0].Name != "ingress" || w.Rows[0].Depth != 0 || w.Parts[0].Name != tt.largest {
			t.Errorf("%+v", w)
		}
		sum := 0.0
		for _, p := range w.Parts {
			sum += p.Millis
		}
		if sum < w.Millis-0.1 || sum > w.Millis+0.1 {
			t.Errorf("the parts are %.1f ms together, the request %.1f", sum, w.Millis)
		}
		shown := w.String()
		for _, want := range tt.words {
			if !strings.Contains(shown, want) {
				t.Errorf("no %q in\n%s", want, shown)
			}
		}
	}
	if _, err := Read(path, id(9)); !errors.Is(err, ErrNoTrace) {
		t.Errorf("a trace that is not there: %v", err)
	}
	if _, err := Read(path+".none", id(1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestAttemptsAreCountedOnce has two engines work on a request at a time.
func TestAttemptsAreCountedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "traces.jsonl")
	write(t, path, from("envoy", "", made(1, 1, 0, "ingress", 0, 100)),
		from("engine", "node-a", made(1, 2, 1, "POST /", 10, 60)), from("engine", "node-b", made(1, 3, 1, "POST /", 40, 90)))
	spans, err := Read(path, strings.Repeat("01", 16))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Of("", spans).Parts {
		if want := map[string]float64{"engine": 80, "gateway": 20}[p.Name]; p.Millis != want {
			t.Errorf("%s: %v ms, want %v", p.Name, p.Millis, want)
		}
	}
}

// TestTail keeps what is worth it, of traces that are whole, whatever comes after them.
func TestTail(t *testing.T) {
	fail := func(r []*trace.ResourceSpans) []*trace.ResourceSpans {
		r[2].ScopeSpans[0].Spans[0].Status = &trace.Status{Code: trace.Status_STATUS_CODE_ERROR}
		return r
	}
	moved := func(r []*trace.ResourceSpans) []*trace.ResourceSpans {
		r[1].ScopeSpans[0].Spans[0].Attributes[0] = text("millrace.reason", "moved")
		return r
	}
	refused := func(r []*trace.ResourceSpans) []*trace.ResourceSpans {
		r[0].ScopeSpans[0].Spans[0].Attributes = []*common.KeyValue{text("http.status_code", "429")}
		return r
	}
	for _, tt := range []struct {
		name string
		one  []*trace.ResourceSpans
		kept bool
	}{
		{"an ordinary one", ofRequest(200, 100), false},
		{"failed", fail(ofRequest(200, 100)), true},
		{"refused", refused(ofRequest(200, 100)), true},
		{"moved", moved(ofRequest(200, 100)), true},
		{"slow", ofRequest(200, 2000), true},
		{"mispredicted", ofRequest(200, 550), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tail = tail{open: map[string]*pending{}}
			now, kept := epoch, 0
			for i := range 100 {
				all := ofRequest(byte(i+1), 120)
				if i == 50 {
					all = tt.one
				}
				for _, r := range all { // as the programs send them
					tail.add(r, now)
				}
				now = now.Add(time.Second)
				kept += len(tail.judge(now, false))
			}
			kept += len(tail.judge(now, true))
			if (kept == 3) != tt.kept || kept != 0 && kept != 3 || len(tail.open) != 0 || tail.bytes != 0 {
				t.Errorf("kept %d lines; %d traces, %d bytes are left", kept, len(tail.open), tail.bytes)
			}
		})
	}
}

// TestTailIsBounded by bytes, though no trace ever comes to its end.
func TestTailIsBounded(t *testing.T) {
	var tail = tail{open: map[string]*pending{}}
	long := text("x", strings.Repeat("x", 100<<10))
	for i := range 200 {
		r := from("engine", "", made(byte(i+1), 1, 0, "x", 0, 1, long))
		tail.add(r, epoch)
		tail.judge(epoch, false)
		if tail.bytes > maxOpen+200<<10 {
			t.Fatalf("%d bytes", tail.bytes)
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, r := range ofRequest(1, 100) {
		l, err := Line(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(l)
	}
	f.Add([]byte(`{"scopeSpans":[{"spans":[{"traceId":"01","spanId":"a","parentSpanId":"a","startTimeUnixNano":"9","endTimeUnixNano":"-1","attributes":[{"key":"millrace.candidates","value":{"arrayValue":{"values":[{}]}}}]}]}]}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		found := map[string]Span{}
		if scan(bytes.NewReader(b), "01", found) != nil {
			return
		}
		var all []Span
		for _, s := range found {
			all = append(all, s)
		}
		_ = Of("01", all).String()
	})
}
