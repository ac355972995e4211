// Package storm opens as many streams at a built extproc as a busy gateway has, and
// looks what each costs and whether anything is lost when many of them break off.
//
// Its one rule: it counts what extproc says of itself, and what it answers.
package storm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

const (
	streams  = 10_000
	conns    = 8 // of a gateway's worker threads
	openers  = 64
	engines  = 8
	bodySize = 2 << 10
	limit    = time.Minute // for what takes seconds
)

// Slack of what is compared: pools, and stacks that are given back late.
const (
	sameMemory = 1.15
	slackBytes = 4 << 10 // a stream
	slackRest  = 16      // goroutines
)

// TestManyStreams opens 10,000 streams, breaks off half of them, and lets the others
// run to their end; twice.
func TestManyStreams(t *testing.T) {
	p := start(t)
	warm := p.open(t, openers)
	p.await(t, openers)
	finish(t, warm)
	p.await(t, 0)
	before, rest := p.live(t), p.metric(t, "go_goroutines")

	var all []*stream
	var at [5]float64 // memory at each quarter
	at[0] = before
	for q := range 4 {
		all = append(all, p.open(t, streams/4)...)
		p.await(t, len(all))
		at[q+1] = p.live(t)
	}
	first := (at[4] - before) / streams
	low, high := (at[2]-before)/(streams/2), (at[4]-at[2])/(streams/2)
	t.Logf("%d streams: %.1f KiB each, the first half %.1f and the second %.1f; resident %d MiB", streams, first/1024, low/1024, high/1024, p.resident(t)>>20)
	if high > low*sameMemory+slackBytes {
		t.Errorf("a stream of the second half takes %.0f bytes, of the first %.0f: it is not flat", high, low)
	}

	var left []*stream
	for i, s := range all {
		if i%2 == 0 {
			s.cancel()
		} else {
			left = append(left, s)
		}
	}
	p.await(t, len(left))
	finish(t, left)
	p.await(t, 0)
	if n := p.metric(t, "go_goroutines"); n > rest+slackRest {
		t.Errorf("%.0f goroutines are left, %.0f before", n, rest)
	}

	again := p.open(t, streams)
	p.await(t, streams)
	if second := (p.live(t) - before) / streams; second > first*sameMemory+slackBytes {
		t.Errorf("a stream of the second time takes %.0f bytes, of the first %.0f", second, first)
	}
	for _, s := range again {
		s.cancel()
	}
	p.await(t, 0)
}

// picker is a running extproc.
type picker struct {
	grpc, admin string
	pid         int
	clients     []extprocv3.ExternalProcessorClient
}

// start runs extproc before engines that do nothing but live.
func start(t *testing.T) *picker {
	t.Helper()
	var fleet strings.Builder
	fleet.WriteString("endpoints:\n")
	for range engines {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		go func() { _ = srv.Serve(ln) }()
		t.Cleanup(func() { _ = srv.Close() })
		fmt.Fprintf(&fleet, "- {address: %q, models: [m], type: openai}\n", ln.Addr())
	}
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	rig.Write(t, file, fleet.String())
	at := rig.MustAddresses(t, 2)
	p := &picker{grpc: at[0], admin: at[1]}
	p.pid = rig.StartProgram(t, "extproc", "-fleet", file, "-listen", p.grpc, "-metrics", p.admin).PID()
	for range conns {
		conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		p.clients = append(p.clients, extprocv3.NewExternalProcessorClient(conn))
	}
	rig.Wait(t, limit, "extproc has no condition", func() error {
		page, err := rig.Get("http://" + p.admin + "/readyz")
		if err == nil && strings.TrimSpace(string(page)) != "[]" {
			err = fmt.Errorf("not ready: %s", page)
		}
		return err
	})
	return p
}

// stream is one request on its way.
type stream struct {
	st     extprocv3.ExternalProcessor_ProcessClient
	cancel context.CancelFunc
}

// open opens n streams, and has each of them decided.
func (p *picker) open(t *testing.T, n int) []*stream {
	t.Helper()
	all, failed := make([]*stream, n), make([]error, n)
	rig.Each(n, openers, func(i int) { all[i], failed[i] = p.one(t.Context(), i) })
	if err := errors.Join(failed...); err != nil {
		t.Fatalf("%.1000v", err)
	}
	return all
}

// one opens one stream and plays its request, whose body is buffered.
func (p *picker) one(ctx context.Context, i int) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := p.clients[i%conns].Process(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{st, cancel}
	body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"question %d %s"}]}`, i, strings.Repeat("and so on ", bodySize/10))
	messages := []*extprocv3.ProcessingRequest{
		{
			Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: rig.HeaderMap(
				":method", "POST", ":path", "/v1/chat/completions", "content-type", "application/json", "content-length", strconv.Itoa(len(body)),
			)}},
			ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED},
		},
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true}}},
	}
	for _, m := range messages {
		answer, err := s.ask(m)
		if err != nil {
			return nil, fmt.Errorf("stream %d: %w", i, err)
		}
		if answer.GetRequestHeaders() == nil && answer.GetDynamicMetadata() == nil {
			return nil, fmt.Errorf("stream %d: no host is named: %v", i, answer)
		}
	}
	return s, nil
}

func (s *stream) ask(m *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	if err := s.st.Send(m); err != nil {
		return nil, err
	}
	return s.st.Recv()
}

// finish plays the answers of the streams and ends them: every one must get its due.
func finish(t *testing.T, all []*stream) {
	t.Helper()
	lost := 0
	for _, s := range all {
		answer, err := s.ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
			ResponseHeaders: &extprocv3.HttpHeaders{Headers: rig.HeaderMap(":status", "200", "content-type", "application/json")},
		}})
		if err == nil && answer.GetResponseHeaders() == nil {
			err = fmt.Errorf("answered with %v", answer)
		}
		if err == nil {
			_ = s.st.CloseSend()
			_, err = s.st.Recv()
		}
		if !errors.Is(err, io.EOF) {
			if lost++; lost == 1 {
				t.Errorf("a stream was lost: %v", err)
			}
		}
		s.cancel()
	}
	if lost > 0 {
		t.Errorf("%d of %d streams were lost", lost, len(all))
	}
}

// await waits until extproc says that so many streams are open, each with a request in flight.
func (p *picker) await(t *testing.T, n int) {
	t.Helper()
	rig.Wait(t, limit, "the streams are open", func() error {
		open, inFlight := p.metric(t, "millrace_extproc_streams"), p.metric(t, "millrace_extproc_requests_in_flight")
		if open != float64(n) || inFlight != float64(n) {
			return fmt.Errorf("%.0f streams are open and %.0f requests in flight, want %d", open, inFlight, n)
		}
		return nil
	})
}

// live is the memory in use: heap after collection, and stacks.
func (p *picker) live(t *testing.T) float64 {
	t.Helper()
	for range 2 { // what pools keep goes with the second collection
		if _, err := rig.Get("http://" + p.admin + "/debug/pprof/heap?gc=1"); err != nil {
			t.Fatal(err)
		}
	}
	return p.metric(t, "go_memstats_heap_alloc_bytes") + p.metric(t, "go_memstats_stack_inuse_bytes")
}

func (p *picker) resident(t *testing.T) uint64 {
	t.Helper()
	st, err := proc.State(p.pid)
	if err != nil {
		t.Fatal(err)
	}
	return st.RSS
}

func (p *picker) metric(t *testing.T, name string) float64 {
	t.Helper()
	return rig.MustMetric(t, p.admin, name)
}
