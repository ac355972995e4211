package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/structpb"

	"millrace.dev/millrace/e2e/rig"
)

// fakePicker answers as extproc does, with what the test has set.
type fakePicker struct {
	extprocv3.UnimplementedExternalProcessorServer

	// pick is the answer to a request's body.
	pick atomic.Pointer[extprocv3.ProcessingResponse]
	// attempts is the attempt count of the last response.
	attempts atomic.Pointer[string]
}

func startPicker(t *testing.T) (*fakePicker, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &fakePicker{}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	extprocv3.RegisterExternalProcessorServer(s, p)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return p, ln.Addr().String()
}

// Process answers one request's messages.
func (p *fakePicker) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(p.answer(m)); err != nil {
			return err
		}
	}
}

func (p *fakePicker) answer(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	switch m := m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{}}
	case *extprocv3.ProcessingRequest_RequestBody:
		return p.pick.Load()
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		for _, h := range m.ResponseHeaders.GetHeaders().GetHeaders() {
			if h.GetKey() == "x-envoy-attempt-count" {
				v := string(h.GetRawValue())
				p.attempts.Store(&v)
			}
		}
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{}}
	default:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{}}
	}
}

// order names hosts in the order in which they are to be tried, and headers of
// the request, in pairs.
func (p *fakePicker) order(hosts string, header ...string) {
	namespace := func(fields map[string]*structpb.Value) *structpb.Value {
		return structpb.NewStructValue(&structpb.Struct{Fields: fields})
	}
	c := &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{}, ClearRouteCache: true}
	for i := 0; i+1 < len(header); i += 2 {
		c.HeaderMutation.SetHeaders = append(c.HeaderMutation.SetHeaders, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: header[i], RawValue: []byte(header[i+1])},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	p.pick.Store(&extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: c}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"envoy.lb": namespace(map[string]*structpb.Value{"x-gateway-destination-endpoint": structpb.NewStringValue(hosts)}),
			"millrace": namespace(map[string]*structpb.Value{
				"model": structpb.NewStringValue("smollm2"), "prompt_tokens": structpb.NewNumberValue(12), "decision": structpb.NewStringValue("sticky"),
			}),
		}},
	})
}

// TestGatewayWithPicker shows that Envoy obeys extproc as xds has configured it.
// The parts share one gateway and run in order.
func TestGatewayWithPicker(t *testing.T) {
	p, addr := startPicker(t)
	p.order("")
	g := newGateway(t, addr)
	if err := rig.Poll(5*time.Second, func() error { return g.picked(p) }); err != nil {
		t.Fatal(err)
	}
	a, c := g.nodes["node-a"], g.nodes["node-c"]

	t.Run("the list is walked", func(t *testing.T) {
		p.order(c.ln.Addr().String() + "," + a.ln.Addr().String())
		c.code.Store(503)
		defer c.code.Store(200)
		counts := g.served(func() { g.must(t, 200) })
		if counts["node-c"] != 1 || counts["node-a"] != 1 || *p.attempts.Load() != "2" {
			t.Errorf("served as %v in %s attempts, want one try on node-c and one on node-a", counts, *p.attempts.Load())
		}
	})
	t.Run("extproc says how often", func(t *testing.T) {
		p.order(c.ln.Addr().String()+","+a.ln.Addr().String(), "x-envoy-max-retries", "0")
		c.code.Store(503)
		defer c.code.Store(200)
		if counts := g.served(func() { g.must(t, 503) }); counts["node-a"] != 0 {
			t.Errorf("served as %v, want no retry", counts)
		}
	})
	t.Run("extproc says which model", func(t *testing.T) {
		p.order("", "x-millrace-model", "other")
		read := func() float64 { return g.stat(t, "json_to_metadata.rq.success") }
		before := read()
		checkReply(t, g.must(t, 503, "content-type", "application/json"), 503, "unavailable") // no node is left for it
		if after := read(); after != before {
			t.Errorf("Envoy has read the body, too: %v, was %v", after, before)
		}
	})
	t.Run("extproc's own errors stay as they are", func(t *testing.T) {
		body := `{"error":{"message":"no \"messages\"","type":"invalid_request_error","param":"messages","code":"missing"}}`
		p.pick.Store(immediate(400, body))
		if got := g.must(t, 400); string(got.Body) != body || got.Header.Get("content-type") != "application/json" {
			t.Errorf("answer %s %q, want it unchanged", got.Body, got.Header.Get("content-type"))
		}
	})
	t.Run("20 MiB without a length", func(t *testing.T) {
		p.order(c.ln.Addr().String())
		g.testChunked(t)
	})
	t.Run("the access log has the decision", func(t *testing.T) {
		p.order(c.ln.Addr().String())
		g.must(t, 200)
		g.testAccessLog(t, c.ln.Addr().String())
	})
}

// picked says why Envoy doesn't ask the picker yet.
func (g *gateway) picked(p *fakePicker) error {
	if _, err := send(context.Background(), g.url(rig.ChatPath), `{}`); err != nil {
		return err
	}
	if p.attempts.Load() == nil {
		return fmt.Errorf("the picker was not asked")
	}
	return nil
}

func immediate(code typev3.StatusCode, body string) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: code},
			Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
				Header: &corev3.HeaderValue{Key: "content-type", RawValue: []byte("application/json")},
			}}},
			Body: []byte(body),
		},
	}}
}

func (g *gateway) testChunked(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		_, err := io.CopyN(w, zeros{}, 20<<20)
		w.CloseWithError(err)
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url(rig.ChatPath), r)
	if err != nil {
		t.Fatal(err)
	}
	a, err := rig.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	checkReply(t, a, 413, "request_too_large")
}

// zeros never ends.
type zeros struct{}

// Read fills b with the character zero.
func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

func (g *gateway) testAccessLog(t *testing.T, host string) {
	var line map[string]any
	err := rig.Poll(3*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(g.dir, "access.log"))
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil {
			return err
		}
		if line["host"] != host || line["decision"] != "sticky" {
			return fmt.Errorf("last line %v", line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if line["status"] != 200.0 || line["attempts"] != 1.0 || line["prompt_tokens"] != 12.0 || line["model"] != "smollm2" {
		t.Errorf("access log: %v", line)
	}
}
