package traces

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"

	"go.opentelemetry.io/otel/codes"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"

	"millrace.dev/millrace/internal/obs"
)

// TestSpansOfARealExporterReachTheFile sends spans as the programs do.
func TestSpansOfARealExporterReachTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "traces.json")
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, ln) }()

	provider, shutdown, err := obs.Tracing(t.Context(), "engine", "node-a", "otlp://"+ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	outer, parent := provider.Tracer("t").Start(t.Context(), "request")
	_, child := provider.Tracer("t").Start(outer, "backend")
	child.SetStatus(codes.Error, "gone")
	child.End()
	parent.End()
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Fatal(err)
	}

	spans := readSpans(t, path)
	got, ok := spans["backend"]
	if !ok || len(spans) != 2 {
		t.Fatalf("spans %v, want request and backend", spans)
	}
	if got.TraceID != parent.SpanContext().TraceID().String() || got.ParentSpanID != parent.SpanContext().SpanID().String() {
		t.Errorf("span %+v, want the hexadecimal ids of its parent %v", got, parent.SpanContext())
	}
	if got.Status.Code != 2 {
		t.Errorf("status code %v, want the number 2", got.Status.Code)
	}
}

type span struct {
	TraceID      string `json:"traceId"`
	SpanID       string `json:"spanId"`
	ParentSpanID string `json:"parentSpanId"`
	Name         string `json:"name"`
	Status       struct {
		Code int `json:"code"`
	} `json:"status"`
}

func readSpans(t *testing.T, path string) map[string]span {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	spans := map[string]span{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		var rs struct {
			ScopeSpans []struct {
				Spans []span `json:"spans"`
			} `json:"scopeSpans"`
		}
		if err := json.Unmarshal(lines.Bytes(), &rs); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		for _, scope := range rs.ScopeSpans {
			for _, s := range scope.Spans {
				spans[s.Name] = s
			}
		}
	}
	return spans
}

func request(n int) *collector.ExportTraceServiceRequest {
	return &collector.ExportTraceServiceRequest{ResourceSpans: []*trace.ResourceSpans{{
		Resource: &resource.Resource{Attributes: []*common.KeyValue{{Key: "service.name", Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: "x"}}}}},
		ScopeSpans: []*trace.ScopeSpans{{Spans: []*trace.Span{{
			Name: fmt.Sprint("span-", n), TraceId: make([]byte, 16), SpanId: make([]byte, 8),
			Links: []*trace.Span_Link{{TraceId: bytes.Repeat([]byte{255}, 16)}},
		}}}},
	}}}
}

func TestTheFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "traces.json")
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r.all.limit = 2000
	for i := range 50 {
		if _, err := r.Export(t.Context(), request(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".old"} {
		st, err := os.Stat(p)
		if err != nil || st.Size() > r.all.limit || st.Size() == 0 {
			t.Errorf("%s: %v, %v; want 1 to %d bytes", p, st, err, r.all.limit)
		}
	}
	if _, ok := readSpans(t, path)["span-49"]; !ok {
		t.Error("the last span is not in the file")
	}
}

func TestLinksHaveHexadecimalIDs(t *testing.T) {
	line, err := Line(request(1).ResourceSpans[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(line), `"traceId":"`+strings.Repeat("ff", 16)+`"`) {
		t.Errorf("line %s, want the link's id in hexadecimal", line)
	}
}

func TestOpenSaysWhichFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "traces.json")
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Open() = %v, want an error with the path", err)
	}
}

func FuzzLine(f *testing.F) {
	f.Add("name", []byte{1, 2}, []byte{3})
	f.Fuzz(func(t *testing.T, name string, traceID, spanID []byte) {
		req := request(0)
		s := req.ResourceSpans[0].ScopeSpans[0].Spans[0]
		s.Name, s.TraceId, s.SpanId = name, traceID, spanID
		line, err := Line(req.ResourceSpans[0])
		if err == nil && bytes.Count(line, []byte("\n")) != 1 {
			t.Errorf("line %q is not one line", line)
		}
	})
}
