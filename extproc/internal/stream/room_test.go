package stream

import (
	"net"
	"runtime"
	"strings"
	"testing"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
)

// TestBodiesInFlightAreBounded begins requests until there is no room, and ends them in
// each way that gives it back.
func TestBodiesInFlightAreBounded(t *testing.T) {
	const most = 8 << 20
	sized := func(n int64) func(*RequestHead) { return func(h *RequestHead) { h.Length = n } }
	f := newFleet(3, func(t *pick.Table) { t.Policy.MaxInFlight, t.Policy.MaxBody = most, most })
	var all []*Exchange
	begin := func(size int64, want bool) *Exchange {
		t.Helper()
		x := f.core.Begin()
		out := run(x, post(sized(size)))
		refused := len(out) == 1 && out[0].Error != nil
		if refused == want {
			t.Fatalf("a body of %d bytes beside %d: got %+v", size, f.core.room.bytes.Load(), out)
		}
		if refused && (out[0].Error.Status != 503 || out[0].Error.RetryAfter < 1 || out[0].Error.Code != "overloaded") {
			t.Errorf("refused with %+v", out[0].Error)
		}
		all = append(all, x)
		return x
	}
	first := begin(most, true) // alone it always has room
	begin(1, false)
	first.End(epoch)
	for range 6 {
		begin(1<<20, true)
	}
	begin(1<<20, false) // the rest is for light ones
	for range 8 {
		begin(light, true)
	}
	begin(1, false)
	begin(-1, false)
	x := begin(0, true)
	run(x, Event{Kind: RequestBody, End: true, At: epoch})
	if got := f.core.room.bytes.Load(); got != most {
		t.Fatalf("%d bytes are held, want %d", got, most)
	}
	// Each way that a body is given up.
	long := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("a", 9000) + `"}]}`
	run(all[2], bodyOf(long)) // it is less than was said
	if got := f.core.room.bytes.Load(); got != most-1<<20+all[2].size || all[2].size < int64(len(long)) {
		t.Errorf("%d bytes are held after a body of %d came", got, len(long))
	}
	run(all[2], Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200}}})
	run(all[3], bodyOf(`{`)) // refused
	for _, x := range all {
		f.core.Finish(x)
	}
	if got := f.core.room.bytes.Load(); got != 0 {
		t.Errorf("%d bytes are held for nothing", got)
	}
	if got := testutil.ToFloat64(f.core.metrics.errors[503]); got != 4 {
		t.Errorf("%v were refused, want 4", got)
	}
}

// TestAnswersHoldNoBodies begins answers to large bodies that came small: what was unpacked
// and decoded of them is not held while the answers last.
func TestAnswersHoldNoBodies(t *testing.T) {
	const answers, most = 64, 4 << 20
	f := newFleet(3, func(t *pick.Table) { t.Policy.MaxInFlight, t.Policy.MaxBody = 1<<40, most })
	body := gzipped(`{"model":"m","messages":[` + strings.Repeat(`{"role":"user","content":"a\n"},`, 20_000) + `{"role":"user","content":"` + strings.Repeat(`\n`, 1<<20) + `"}]}`)
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	all := make([]*Exchange, answers)
	for i := range all {
		x := f.core.Begin()
		out := run(x, post(encodedBy("gzip")), Event{Kind: RequestBody, Body: body, End: true, At: epoch})
		if out[1].Decision == nil {
			t.Fatalf("got %+v", out)
		}
		if counted, size := x.size, int64(len(out[1].Chunk)); counted < size+20_000*80 {
			t.Fatalf("%d bytes are counted for a body of %d with 20,000 messages", counted, size)
		}
		run(x, Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200}}})
		all[i] = x
	}
	if each := (heap() - before) / answers; each > 64<<10 {
		t.Errorf("an answer holds %d bytes", each)
	}
	if got := f.core.room.bytes.Load(); got != 0 {
		t.Errorf("%d bytes are counted", got)
	}
	for _, x := range all {
		f.core.Finish(x)
	}
}

// TestLargeBodiesAreRefusedWhenMemoryIsTight lets small ones pass.
func TestLargeBodiesAreRefusedWhenMemoryIsTight(t *testing.T) {
	f := newFleet(3, func(t *pick.Table) { t.Policy.MaxInFlight, t.Policy.MaxBody = 1<<30, 1<<30 })
	tight := true
	f.core.Tight(func() bool { return tight })
	begin := func(size int64) bool {
		x := f.core.Begin()
		defer f.core.Finish(x)
		return run(x, post(func(h *RequestHead) { h.Length = size }))[0].Error == nil
	}
	if begin(light+1) || begin(-1) || !begin(light) {
		t.Error("large bodies are taken, or small ones refused, though memory is tight")
	}
	tight = false
	if !begin(light + 1) {
		t.Error("large bodies are refused though there is memory")
	}
}

// TestStreamsAreBounded opens more streams than there may be: requests are refused first,
// then streams.
func TestStreamsAreBounded(t *testing.T) {
	f := newFleet(3, func(t *pick.Table) { t.Policy.MaxInFlight = 1 << 30 })
	begin := func() *openai.Error {
		x := f.core.Begin()
		defer f.core.Finish(x)
		return run(x, post())[0].Error
	}
	f.core.room.streams.Store(MostStreams - leastFree)
	if err := begin(); err != nil {
		t.Errorf("there is room, and got %+v", err)
	}
	f.core.room.streams.Add(1)
	if err := begin(); err == nil || err.Status != 503 {
		t.Errorf("there is no room, and got %+v", err)
	}
	f.core.room.streams.Store(MostStreams)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(ServerOptions()...)
	extproc.RegisterExternalProcessorServer(server, NewServer(f.core, nil))
	go func() { _ = server.Serve(ln) }()
	defer server.Stop()
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	st, err := extproc.NewExternalProcessorClient(conn).Process(t.Context())
	if err == nil {
		_, err = st.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}
