package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/fleetpb"
)

// fakeXDS serves a fleet of three endpoints, once it is open.
type fakeXDS struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	open chan struct{}
}

const typePrefix = "type.googleapis.com/"

func (f *fakeXDS) DeltaAggregatedResources(st grpc.BidiStreamingServer[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]) error {
	select {
	case <-f.open:
	case <-st.Context().Done():
		return nil
	}
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		answer := &discovery.DeltaDiscoveryResponse{TypeUrl: r.GetTypeUrl(), Nonce: "1"}
		for name, m := range testFleet() {
			if typePrefix+string(m.ProtoReflect().Descriptor().FullName()) == r.GetTypeUrl() {
				a, err := anypb.New(m)
				if err != nil {
					return err
				}
				answer.Resources = append(answer.Resources, &discovery.Resource{Name: name, Version: "1", Resource: a})
			}
		}
		if err := st.Send(answer); err != nil {
			return err
		}
	}
}

func testFleet() map[string]proto.Message {
	all := map[string]proto.Message{
		"m": &fleetpb.ModelState{Name: "m", Default: true},
		"default": &fleetpb.PolicyState{
			SessionHeader: "x-session-id", Candidates: 2, CandidatesCritical: 3, DefaultPriority: "standard", MaxBodyBytes: 1 << 20,
			SessionCookie: "millrace-session", CookieKeys: [][]byte{[]byte("a key of 16 bytes")},
		},
	}
	for i := range 3 {
		address := fmt.Sprintf("127.0.0.1:%d", 20001+i)
		all[address] = &fleetpb.EndpointState{
			Address: address, Node: fmt.Sprintf("node-%d", i), Model: "m", Replica: fmt.Sprintf("m-%d", i), State: fleetpb.EndpointState_READY,
			Health: 1, Epoch: 1, Load: &enginepb.Load{Slots: 4}, Speed: &enginepb.Speed{Prefill: 500 / float64(i+1), Decode: 50 / float64(i+1)},
		}
	}
	return all
}

// spans is an OTLP receiver.
type spans struct {
	collector.UnimplementedTraceServiceServer
	got chan *tracev1.Span
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, span := range ss.GetSpans() {
				s.got <- span
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// serveGRPC serves on a free port until the test ends, and returns its address.
func serveGRPC(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	register(g)
	go g.Serve(ln)
	t.Cleanup(g.Stop)
	return ln.Addr().String()
}

// log collects what the program says and lets a test wait for a line.
type log struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // holds one: something was written
}

func newLog() *log { return &log{more: make(chan struct{}, 1)} }

// Write appends.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

// await returns what re captures, once it is there.
func (l *log) await(t *testing.T, re string) []string {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		found := regexp.MustCompile(re).FindStringSubmatch(l.buf.String())
		l.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-l.more:
		case <-limit:
			t.Fatalf("no %q in the log:\n%s", re, l.buf.String())
		}
	}
}

// extproc is a running one.
type extproc struct {
	log           *log
	grpc, metrics string
	xds           *fakeXDS
	stop          func() error
}

// start runs the program with more flags against a fake xds, which says nothing
// before it is opened.
func start(t *testing.T, flags ...string) *extproc {
	t.Helper()
	p := &extproc{log: newLog(), xds: &fakeXDS{open: make(chan struct{})}}
	xds := serveGRPC(t, func(g *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(g, p.xds) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		all := append([]string{"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0"}, flags...)
		if !slices.Contains(flags, "-fleet") && !slices.Contains(flags, "-pool") {
			all = append(all, "-xds", xds)
		}
		done <- run(ctx, all, p.log)
	}()
	p.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = p.stop() })
	addrs := p.log.await(t, `msg=ready .*grpc=(\S+) metrics=(\S+)`)
	p.grpc, p.metrics = addrs[1], addrs[2]
	return p
}

// feed lets xds speak and waits until the program knows the fleet.
func (p *extproc) feed(t *testing.T) {
	t.Helper()
	close(p.xds.open)
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.get(t, "/readyz") != "[]" {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not ready: %s", p.get(t, "/readyz"))
		}
	}
}

func (p *extproc) get(t *testing.T, path string) string {
	t.Helper()
	_, body := p.page(t, path)
	return body
}

// page returns a page of the admin port with its code.
func (p *extproc) page(t *testing.T, path string) (int, string) {
	t.Helper()
	r, err := http.Get("http://" + p.metrics + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, strings.TrimSpace(string(b))
}

// TestWhatIsWrongWithOthersLeavesItReady has an engine that is dead, a tokenizer that is
// none, and then a file of the fleet that is none: extproc answers on by what it knows.
func TestWhatIsWrongWithOthersLeavesItReady(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "fleet.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{endpoints: [{address: "127.0.0.1:1", models: [m], type: vllm}], models: [{name: m, tokenizer: ` + filepath.Join(dir, "none.json") + `}]}`)
	p := start(t, "-fleet", file)
	await := func(codes ...string) {
		t.Helper()
		limit := time.After(20 * time.Second)
		for {
			code, got := p.page(t, "/readyz")
			if code != http.StatusOK {
				t.Fatalf("/readyz = %d %s, want 200", code, got)
			}
			if !slices.ContainsFunc(codes, func(c string) bool { return !strings.Contains(got, `"`+c+`"`) }) {
				return
			}
			select {
			case <-limit:
				t.Fatalf("/readyz = %s, want %v in it", got, codes)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	await("endpoints-down", "tokenizer")
	write(`{endpoints: [{adress: "127.0.0.1:1"}]}`)
	await("endpoints-down", "fleet-file")
}

// dial connects to the program as Envoy does.
func (p *extproc) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

type processClient = grpc.BidiStreamingClient[extprocv3.ProcessingRequest, extprocv3.ProcessingResponse]

// open opens a stream.
func open(t *testing.T, conn *grpc.ClientConn, md ...string) processClient {
	t.Helper()
	st, err := extprocv3.NewExternalProcessorClient(conn).Process(metadata.AppendToOutgoingContext(t.Context(), md...))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func send(t *testing.T, st processClient, r *extprocv3.ProcessingRequest) {
	t.Helper()
	if err := st.Send(r); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, st processClient) *extprocv3.ProcessingResponse {
	t.Helper()
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func headerMap(pairs ...string) *core.HeaderMap {
	m := &core.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		m.Headers = append(m.Headers, &core.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return m
}

func requestHeaders(mode filter.ProcessingMode_BodySendMode, more ...string) *extprocv3.ProcessingRequest {
	pairs := append([]string{":method", "POST", ":path", "/v1/chat/completions", "content-type", "application/json"}, more...)
	return &extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headerMap(pairs...)}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: mode},
	}
}

func requestBody(b string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(b), EndOfStream: true}}}
}

// set returns the headers that a reply sets.
func set(m *extprocv3.HeaderMutation) map[string]string {
	all := map[string]string{}
	for _, h := range m.GetSetHeaders() {
		all[h.GetHeader().GetKey()] = string(h.GetHeader().GetRawValue())
	}
	return all
}

const hello = `{"model":"m","messages":[{"role":"user","content":"hello"}]}`

func TestOneExchange(t *testing.T) {
	p := start(t)
	p.feed(t)
	st := open(t, p.dial(t))
	send(t, st, requestHeaders(filter.ProcessingMode_BUFFERED, "x-gateway-destination-endpoint", "10.0.0.1:1", "x-millrace-model", "evil", "x-millrace-priority", "critical"))
	removed := receive(t, st).GetRequestHeaders().GetResponse().GetHeaderMutation().GetRemoveHeaders()
	if got := strings.Join(removed, " "); got != "x-gateway-destination-endpoint x-millrace-model" {
		t.Errorf("removed %q", got)
	}
	send(t, st, requestBody(hello))
	r := receive(t, st)
	common := r.GetRequestBody().GetResponse()
	headers := set(common.GetHeaderMutation())
	const hosts = "127.0.0.1:20001,127.0.0.1:20002,127.0.0.1:20003"
	if headers["x-gateway-destination-endpoint"] != hosts || headers["x-millrace-model"] != "m" || headers["x-envoy-max-retries"] != "2" || !common.GetClearRouteCache() {
		t.Errorf("headers %v", headers)
	}
	namespaces := r.GetDynamicMetadata().GetFields()
	if got := namespaces["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue(); got != hosts {
		t.Errorf("metadata envoy.lb names %q", got)
	}
	if got := namespaces["millrace"].GetStructValue().GetFields()["decision"].GetStringValue(); !strings.HasPrefix(got, "new 127.0.0.1:20001 ") {
		t.Errorf("decision %q", got)
	}
	send(t, st, &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
		Headers: headerMap(":status", "200", "x-envoy-attempt-count", "1", "x-millrace-usage", "prompt=20,cached=0,completion=3,prefill_ms=3,decode_ms=9"),
	}}})
	if got := set(receive(t, st).GetResponseHeaders().GetResponse().GetHeaderMutation())["set-cookie"]; !strings.HasPrefix(got, "millrace-session=") {
		t.Errorf("set-cookie %q", got)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
	if got := p.get(t, "/metrics"); !strings.Contains(got, `millrace_extproc_picks_total{reason="new"} 1`) || !strings.Contains(got, `millrace_extproc_prompt_tokens_total{model="m"} 20`) ||
		!strings.Contains(got, `millrace_extproc_requests_total{model="m",outcome="ok",priority="critical"} 1`) || !strings.Contains(got, `millrace_build_info{commit="`) {
		t.Errorf("metrics:\n%s", got)
	}
}

func TestWithoutXDSEnvoyChooses(t *testing.T) {
	p := start(t)
	st := open(t, p.dial(t))
	send(t, st, requestHeaders(filter.ProcessingMode_BUFFERED))
	receive(t, st)
	send(t, st, requestBody(hello))
	if r := receive(t, st); r.GetRequestBody() == nil || r.GetRequestBody().GetResponse().GetHeaderMutation() != nil || r.GetDynamicMetadata() != nil {
		t.Errorf("reply %v, want one that says nothing", r)
	}
	if code, got := p.page(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(got, "no-fleet") {
		t.Errorf("/readyz = %d %s", code, got)
	}
	health := grpc_health_v1.NewHealthClient(p.dial(t))
	for service, want := range map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"": grpc_health_v1.HealthCheckResponse_SERVING, liveness: grpc_health_v1.HealthCheckResponse_SERVING,
		readiness: grpc_health_v1.HealthCheckResponse_NOT_SERVING, processor: grpc_health_v1.HealthCheckResponse_NOT_SERVING,
	} {
		r, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || r.GetStatus() != want {
			t.Errorf("health of %q = %v, %v; want %v", service, r, err, want)
		}
	}
	watch, err := health.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: readiness})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{grpc_health_v1.HealthCheckResponse_NOT_SERVING, grpc_health_v1.HealthCheckResponse_SERVING} {
		r, err := watch.Recv()
		if err != nil || r.GetStatus() != want {
			t.Fatalf("readiness = %v, %v; want %v", r, err, want)
		}
		if want == grpc_health_v1.HealthCheckResponse_NOT_SERVING {
			p.feed(t)
		}
	}
}

func TestImmediateAnswers(t *testing.T) {
	p := start(t)
	p.feed(t)
	st := open(t, p.dial(t))
	send(t, st, requestHeaders(filter.ProcessingMode_FULL_DUPLEX_STREAMED))
	send(t, st, requestBody(`{"model":"other"}`))
	r := receive(t, st).GetImmediateResponse()
	if r.GetStatus().GetCode() != 404 || set(r.GetHeaders())["content-type"] != "application/json" || !strings.Contains(string(r.GetBody()), `"code":"model_not_found"`) {
		t.Errorf("reply %v", r)
	}
}

func TestSpanJoinsEnvoysTrace(t *testing.T) {
	got := make(chan *tracev1.Span, 10)
	target := serveGRPC(t, func(g *grpc.Server) { collector.RegisterTraceServiceServer(g, &spans{got: got}) })
	p := start(t, "-traces", "otlp://"+target)
	p.feed(t)
	st := open(t, p.dial(t), "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	send(t, st, requestHeaders(filter.ProcessingMode_FULL_DUPLEX_STREAMED))
	send(t, st, requestBody(hello))
	receive(t, st)
	span := <-got
	if span.GetName() != "pick" || fmt.Sprintf("%x", span.GetTraceId()) != "0af7651916cd43dd8448eb211c80319c" || fmt.Sprintf("%x", span.GetParentSpanId()) != "b7ad6b7169203331" {
		t.Errorf("span %v", span)
	}
	for _, a := range span.GetAttributes() {
		if a.GetKey() == "millrace.candidates" {
			if n := len(a.GetValue().GetArrayValue().GetValues()); n != 2 {
				t.Errorf("%d candidates in the span, want 2", n)
			}
			return
		}
	}
	t.Error("no candidates in the span")
}

// TestLeavesNothingBehind checks that goroutines end with the program, streams
// that hang included.
func TestLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("program", func(t *testing.T) {
		p := start(t)
		p.feed(t)
		conn := p.dial(t)
		for range 20 {
			send(t, open(t, conn), requestHeaders(filter.ProcessingMode_BUFFERED))
		}
		if err := p.stop(); err != nil {
			t.Errorf("run() = %v", err)
		}
	})
	http.DefaultClient.CloseIdleConnections()
	limit := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(limit) {
			b := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
		runtime.Gosched()
	}
}

func TestFlags(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	missing, err := filepath.Abs("testdata/none.json")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		want string
		code int
	}{
		{"unknown flag", []string{"-nonsense"}, "flag provided but not defined: -nonsense", program.ExitUsage},
		{"argument", []string{"x"}, `unexpected argument "x"; there are only flags`, program.ExitUsage},
		{"addresses, all at once", []string{"-listen", "a", "-xds", "b"}, `-listen: "a"; must be ip:port; -xds: "b"; must be ip:port`, program.ExitUsage},
		{"traces", []string{"-check", "-traces", "x"}, `traces: "x"; must be otlp://host:port`, program.ExitUsage},
		{"port in use", []string{"-metrics", "127.0.0.1:0", "-listen", taken.Addr().String()}, "listen: listen tcp " + taken.Addr().String() + ": bind: address already in use", program.ExitInUse},
		{"check", []string{"-check"}, "", 0},
		{"fleet or xds", []string{"-fleet", "testdata/fleet.yaml", "-xds", "127.0.0.1:1"}, "-fleet, -xds; give one of them only", program.ExitUsage},
		{"check of a fleet", []string{"-check", "-fleet", "testdata/fleet.yaml"}, "", 0},
		{"check of a bad fleet", []string{"-check", "-fleet", "testdata/bad.yaml"}, "testdata/bad.yaml:1: endpoints[0].adress: unknown field; did you mean address?\n" +
			"testdata/bad.yaml:1: endpoints[0].address: \"\"; must be ip:port, or name:port", program.ExitConfig},
		{"check of what a fleet names", []string{"-check", "-fleet", "testdata/names.yaml"},
			"models[0].tokenizer: tokenizer " + missing + ": open " + missing + ": no such file or directory", program.ExitConfig},
		{"check of keys", []string{"-check", "-api-keys", "testdata/none"}, "-api-keys: open testdata/none: no such file or directory", program.ExitConfig},
		{"online without a fleet", []string{"-check", "-online"}, "-dns and -online; go with -fleet", program.ExitUsage},
		{"a DNS server that is none", []string{"-check", "-fleet", "testdata/fleet.yaml", "-dns", "dns"}, `-dns: "dns"; must be ip:port`, program.ExitUsage},
		{"run of a bad fleet", []string{"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0", "-fleet", "testdata/none.yaml"}, "open testdata/none.yaml: no such file or directory", program.ExitConfig},
		{"a certificate without a key", []string{"-tls-cert", "c"}, "-tls-cert and -tls-key; must be given both, or neither", program.ExitUsage},
		{"two certificates", []string{"-tls-cert", "c", "-tls-key", "k", "-secure-serving"}, "-secure-serving, -tls-cert; give one of them only: -secure-serving signs a certificate of its own", program.ExitUsage},
		{"clients without TLS", []string{"-tls-client-ca", "c"}, "-tls-client-ca; needs -tls-cert and -tls-key, or -secure-serving, too", program.ExitUsage},
		{"no certificate", []string{"-tls-cert", "none", "-tls-key", "k"}, "-tls-cert none, -tls-key k: open none: no such file or directory", program.ExitUsage},
		{"no authorities", []string{"-secure-serving", "-tls-client-ca", "main.go"}, "-tls-client-ca main.go: no certificate in it; must be PEM", program.ExitUsage},
		{"version", []string{"-version"}, "", 0},
		{"help", []string{"-help"}, flag.ErrHelp.Error(), program.ExitRuntime},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), tt.args, io.Discard)
			if tt.want == "" {
				if err != nil {
					t.Errorf("run(%q) = %v", tt.args, err)
				}
				return
			}
			if err == nil || err.Error() != tt.want || program.ExitCode(err) != tt.code {
				t.Errorf("run(%q) = %v with code %d, want %s with %d", tt.args, err, program.ExitCode(err), tt.want, tt.code)
			}
		})
	}
}

// TestUnitOfSystemd gives the program the command line of its unit.
func TestUnitOfSystemd(t *testing.T) {
	unit, err := os.ReadFile("../envoy/extproc@.service")
	if err != nil {
		t.Fatal(err)
	}
	starts := regexp.MustCompile(`(?m)^ExecStart(?:Pre)?=/usr/local/bin/extproc (.*)$`).FindAllStringSubmatch(string(unit), -1)
	if len(starts) != 2 {
		t.Fatalf("%d command lines in the unit", len(starts))
	}
	for _, s := range starts {
		args := strings.Fields(strings.NewReplacer("%i", "0", "/etc/millrace/fleet.yaml", "testdata/fleet.yaml").Replace(s[1]))
		if err := run(t.Context(), append(args, "-check"), io.Discard); err != nil {
			t.Errorf("extproc %s: %v", s[1], err)
		}
	}
}

// TestEveryMetricIsDocumented compares the README's table with the metrics that the
// code registers.
func TestEveryMetricIsDocumented(t *testing.T) {
	names := regexp.MustCompile(`millrace_(?:extproc|build|memory)_[a-z_]*[a-z]`)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	reported, real := map[string]bool{}, map[string]bool{}
	for _, n := range names.FindAllString(string(readme), -1) {
		reported[n] = true
	}
	config := filepath.Join(t.TempDir(), "kubeconfig") // of an API server that is away
	text := `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", config)
	for _, flags := range [][]string{nil, {"-fleet", "testdata/fleet.yaml"}, {"-pool", "ns/p"}} {
		p := start(t, flags...)
		for line := range strings.Lines(p.get(t, "/metrics")) {
			if rest, ok := strings.CutPrefix(line, "# TYPE "); ok && strings.HasPrefix(rest, "millrace_") {
				name, _, _ := strings.Cut(rest, " ")
				real[name] = true
			}
		}
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for n := range real {
		if !reported[n] {
			t.Errorf("README.md says nothing of %s", n)
		}
	}
	for n := range reported {
		if !real[n] {
			t.Errorf("README.md tells of %s, which isn't there", n)
		}
	}
}
