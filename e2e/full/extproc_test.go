package full

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/tinylib/msgp/msgp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/e2e/rig"
)

// What fills extproc.
const (
	conns      = 8 // of a gateway's worker threads
	openers    = 32
	streams    = 11_000 // nearly as many as there may be
	publishers = 8      // each publishes as many blocks as are followed of one engine
	stalled    = 400    // publishers that begin a message and do not end it
	bombers    = 4      // clients that send the bodies that cost most
	bodySize   = 15 << 20
	filling    = 3 * time.Minute  // bounds what takes some twenty seconds
	patience   = 30 * time.Second // the same of what takes a second
)

// TestExtprocWithEverythingFull fills all that extproc holds at the same time, in a container
// of the size that the chart gives it: it is not killed, and still answers.
func TestExtprocWithEverythingFull(t *testing.T) {
	size := chartLimit(t, "extproc")
	c := newContainer(t, size)
	f := begin(t, c)
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()

	for i := range publishers {
		all.Go(func() { f.publish(ctx, i) })
	}
	for range stalled {
		all.Go(func() { f.stall(ctx) })
	}
	rig.Each(streams, openers, func(i int) { f.open(t.Context(), "many", fmt.Sprintf("question %d", i), "") })
	for range 48 { // they wait in the queue: eleven or so have room
		all.Go(func() { f.open(ctx, "busy", strings.Repeat("and so on ", bodySize/10), "") })
	}
	var refused atomic.Int64
	for i := range bombers {
		all.Go(func() {
			for ctx.Err() == nil {
				if f.open(ctx, "many", "", bombs[i%len(bombs)].body()) == 0 {
					refused.Add(1)
				}
			}
		})
	}
	rig.Wait(t, filling, "everything is full", func() error {
		var missing []string
		for _, part := range []string{"blocks", "bodies", "streams"} {
			used, most := f.metric(t, "millrace_memory_used_bytes", part), f.metric(t, "millrace_memory_bound_bytes", part)
			if used < 0.6*most {
				missing = append(missing, fmt.Sprintf("%s %.0f of %.0f MiB", part, used/(1<<20), most/(1<<20)))
			}
		}
		if missing != nil {
			return fmt.Errorf("not full: %v", missing)
		}
		return nil
	})
	// All of it stays full for a while, in which a small request is answered.
	for range 20 {
		began := time.Now()
		if status := f.open(t.Context(), "many", "hello", ""); status != http.StatusOK {
			t.Errorf("a small request gets %d", status)
		}
		if took := time.Since(began); took > patience {
			t.Errorf("a small request took %s", took)
		}
	}
	for _, part := range []string{"blocks", "bodies", "streams"} {
		t.Logf("%s: %.0f of %.0f MiB", part, f.metric(t, "millrace_memory_used_bytes", part)/(1<<20), f.metric(t, "millrace_memory_bound_bytes", part)/(1<<20))
	}
	peak := c.peak(t, f.pid)
	t.Logf("most ever %d of %d MiB; %.0f blocks and %.0f publishers refused, %.0f requests answered with 503, %d of the costly ones at once",
		peak>>20, size>>20, rig.MustMetric(t, f.admin, "millrace_extproc_kv_blocks_refused_total"), rig.MustMetric(t, f.admin, "millrace_extproc_kv_publishers_refused_total"),
		rig.MustMetric(t, f.admin, `millrace_extproc_errors_total{status="503"}`), refused.Load())
	if peak > size {
		t.Errorf("it took %d MiB of %d", peak>>20, size>>20)
	}
	if !f.alive() {
		t.Error("extproc has ended")
	}
	stop()
	all.Wait()
}

// target is a running extproc.
type target struct {
	t           *testing.T
	admin       string
	pid         int
	alive       func() bool
	clients     []extprocv3.ExternalProcessorClient
	events      []string // where publishers connect
	next, after atomic.Int64
	kept        sync.Map // streams that stay open
}

// begin starts extproc in the container: before a model that takes any number of requests,
// one that takes one, and engines that publish their caches.
func begin(t *testing.T, c *container) *target {
	t.Helper()
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	t.Cleanup(func() { _ = srv.Close() })
	live := func() string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = srv.Serve(ln) }()
		return ln.Addr().String()
	}
	at := rig.MustAddresses(t, 2+publishers)
	f := &target{t: t, admin: at[1], events: at[2:]}
	var fleet strings.Builder
	fmt.Fprintf(&fleet, "endpoints:\n- {address: %q, models: [many]}\n- {address: %q, models: [busy], slots: 1}\n", live(), live())
	for _, e := range f.events {
		fmt.Fprintf(&fleet, "- {address: %q, models: [cached], type: vllm, kvEvents: {listen: %q}}\n", live(), e)
	}
	fleet.WriteString("policy: {flow: {gatewayTimeout: 60s, maxWait: {standard: 60s}}}\n")
	p := c.start(t, "extproc", "-fleet", rig.Write(t, filepath.Join(t.TempDir(), "fleet.yaml"), fleet.String()), "-listen", at[0], "-metrics", at[1])
	f.pid = p.PID()
	f.alive = func() bool {
		select {
		case <-p.Done():
			return false
		default:
			return true
		}
	}
	for range conns {
		conn, err := grpc.NewClient(at[0], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		f.clients = append(f.clients, extprocv3.NewExternalProcessorClient(conn))
	}
	rig.Wait(t, ready, "extproc serves", func() error {
		_, err := rig.Get("http://" + f.admin + "/healthz")
		return err
	})
	return f
}

func (f *target) metric(t *testing.T, name, part string) float64 {
	return rig.MustMetric(t, f.admin, fmt.Sprintf("%s{part=%q}", name, part))
}

// bomb is a body that comes small, or becomes large.
type bomb struct {
	once sync.Once
	text string
	made func() string
}

func (b *bomb) body() string {
	b.once.Do(func() { b.text = b.made() })
	return b.text
}

var bombs = []*bomb{
	{made: func() string {
		return `{"model":"many","messages":[` + strings.Repeat(`{},`, bodySize/3) + `{"role":"user","content":"a"}]}`
	}},
	{made: func() string {
		return `{"model":"many","messages":[{"role":"user","content":"` + strings.Repeat(`\n`, bodySize/2) + `"}]}`
	}},
	{made: func() string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = fmt.Fprintf(z, `{"model":"many","messages":[{"role":"user","content":"%s"}]}`, strings.Repeat("a ", bodySize/2))
		_ = z.Close()
		return b.String()
	}},
	{made: func() string {
		return `{"model":"many","messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":[` + strings.Repeat(`[],`, bodySize/3) + `1]}}`
	}},
}

// open plays a request until it is decided, and leaves its stream open until the test ends. It
// returns the status of extproc's own answer, 200 if the request is forwarded, and 0 if the stream
// broke.
func (f *target) open(ctx context.Context, model, content, raw string) int {
	body, encoding := raw, ""
	if raw == "" {
		body = fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, model, content)
	} else if raw[0] == 0x1f {
		encoding = "gzip"
	}
	own, cancel := context.WithCancel(ctx)
	st, err := f.clients[f.next.Add(1)%conns].Process(own)
	if err != nil {
		cancel()
		return 0
	}
	if raw != "" {
		defer cancel()
	} else {
		f.kept.Store(st, cancel)
	}
	headers := []string{":method", "POST", ":path", "/v1/chat/completions", "content-type", "application/json", "content-length", strconv.Itoa(len(body))}
	if encoding != "" {
		headers = append(headers, "content-encoding", encoding)
	}
	for _, m := range []*extprocv3.ProcessingRequest{
		{
			Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: rig.HeaderMap(headers...)}},
			ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED},
		},
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true}}},
	} {
		if st.Send(m) != nil {
			return 0
		}
		for {
			answer, err := st.Recv()
			if err != nil {
				return 0
			}
			if i := answer.GetImmediateResponse(); i != nil {
				cancel()
				return int(i.GetStatus().GetCode())
			}
			if answer.GetOverrideMessageTimeout() == nil {
				break
			}
		}
	}
	return http.StatusOK
}

// publish publishes blocks of the i-th engine, all different, until ctx ends or as many as
// are followed have come. As engines do, it tries again where nobody listens yet.
func (f *target) publish(ctx context.Context, i int) {
	var conn net.Conn
	if err := rig.Poll(patience, func() error {
		if conn = f.greet(ctx, f.events[i]); conn == nil && ctx.Err() == nil {
			return errors.New("nobody takes it")
		}
		return nil
	}); err != nil {
		f.t.Errorf("publisher %d: %v", i, err)
	}
	if conn == nil {
		return
	}
	defer conn.Close()
	const each, most = 4096, 1 << 19
	for seq := range uint64(most / each) {
		b := msgp.AppendArrayHeader(nil, 3)
		b = msgp.AppendArrayHeader(msgp.AppendFloat64(b, 1), 1)
		b = msgp.AppendString(msgp.AppendArrayHeader(b, 5), "BlockStored")
		b = msgp.AppendArrayHeader(b, each)
		for n := range uint64(each) {
			b = msgp.AppendUint64(b, 1<<63|uint64(i)<<40|seq*each+n)
		}
		b = msgp.AppendArrayHeader(msgp.AppendNil(b), each)
		for n := range uint32(each) {
			b = msgp.AppendUint32(b, uint32(i)<<28|uint32(seq)<<12|n)
		}
		b = msgp.AppendInt(msgp.AppendInt(b, 1), 0)
		if !say(conn, seq, b, len(b)) {
			return
		}
	}
	<-ctx.Done()
}

// stall begins a message and does not end it.
func (f *target) stall(ctx context.Context) {
	conn := f.greet(ctx, f.events[f.after.Add(1)%publishers])
	if conn == nil {
		return
	}
	defer conn.Close()
	say(conn, 0, make([]byte, 30<<10), 31<<10)
	<-ctx.Done()
}

// greet connects to a listener of extproc as a publisher; nil: it does not take one.
func (f *target) greet(ctx context.Context, address string) net.Conn {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil
	}
	hello := make([]byte, 64)
	hello[0], hello[8], hello[9], hello[10] = 0xff, 1, 0x7f, 3
	copy(hello[12:], "NULL")
	ready := append([]byte{4, 25, 5}, "READY\x0bSocket-Type\x00\x00\x00\x03PUB"...)
	if _, err := conn.Write(append(hello, ready...)); err != nil {
		return nil
	}
	if _, err := io.ReadFull(conn, make([]byte, 64+2+25+3)); err != nil {
		_ = conn.Close()
		return nil
	}
	return conn
}

// say sends a message whose last part is announced to have so many bytes.
func say(conn net.Conn, seq uint64, payload []byte, size int) bool {
	frame := func(flags byte, b []byte, n int) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{flags | 2}, uint64(n)), b...)
	}
	m := frame(1, []byte("kv"), 2)
	m = append(m, frame(1, binary.BigEndian.AppendUint64(nil, seq), 8)...)
	_, err := conn.Write(append(m, frame(0, payload, size)...))
	return err == nil
}
