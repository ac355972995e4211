package stream

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
)

// oneSlot gives the fleet one place an endpoint, and a queue of two.
func oneSlot(t *pick.Table) {
	for _, e := range t.Models["m"].Endpoints {
		e.Slots = 1
	}
	t.Policy.Cookies = nil
	t.Policy.Flow = &flow.Policy{
		Queue: 2, MaxWait: [3]time.Duration{8 * time.Second, 4 * time.Second, 2 * time.Second},
		Gateway: 9 * time.Second, GatewayTimeout: 10 * time.Second, DegradeAt: 1, Tenants: 10,
	}
}

// withSmall adds a smaller model for sheddable requests.
func withSmall(t *pick.Table) {
	small := &pick.Model{Name: "small", Seed: session.Seed("small"), Learned: new(pick.Learned)}
	small.SetCounter(quarters{})
	small.Endpoints = []*pick.Endpoint{{
		Address: "127.0.0.1:30000", Nodes: []string{"s"}, State: pick.Ready, Slots: 1, Health: 1, KV: prefix.NewCache(99, 0), Live: new(pick.Live),
	}}
	t.Models["small"] = small
	t.Policy.Flow.Degrade = map[string]string{"m": "small"}
}

func of(priority string) func(*RequestHead) {
	return func(h *RequestHead) { h.Priority = priority }
}

// ask runs a request of a priority.
func (f *fleet) ask(priority string, edit ...func(*RequestHead)) (*Exchange, []Reply) {
	x := f.core.Begin()
	return x, run(x, post(append(edit, of(priority))...), bodyOf(hello))
}

// settled takes the outcome of an exchange that waited.
func settled(t *testing.T, x *Exchange, now time.Time) []Reply {
	t.Helper()
	select {
	case o := <-x.Waits().C:
		return x.Resume(o, now, nil)
	default:
		t.Fatal("it still waits")
		return nil
	}
}

func TestQueuedThenAdmitted(t *testing.T) {
	for name, mode := range map[string]Mode{"buffered": Buffered, "duplex": Duplex} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(1, oneSlot)
			x1, out := f.ask(wire.Standard)
			if d := out[len(out)-1].Decision; d == nil || x1.Waits() != nil {
				t.Fatalf("the first request got %+v", out)
			}
			x2, out := f.ask(wire.Standard, by(mode))
			if got := out[len(out)-1]; x2.Waits() == nil || got.Kind != Extend || got.Wait != 10*time.Second {
				t.Fatalf("the second request got %+v, want to wait", out)
			}
			f.core.Finish(x1)
			out = settled(t, x2, epoch)
			if out[0].Decision == nil || mode == Duplex && string(out[1].Chunk) != hello {
				t.Errorf("the second request got %+v, want a decision", out)
			}
			f.core.Finish(x2)
			if f.leaks() != 0 {
				t.Error("places are still taken")
			}
		})
	}
}

func TestTrailersThatWaitComeAfterTheBody(t *testing.T) {
	f := newFleet(1, oneSlot)
	x1, _ := f.ask(wire.Standard)
	x2 := f.core.Begin()
	run(x2, post(by(Duplex)), Event{Kind: RequestBody, Body: []byte(hello), At: epoch}, Event{Kind: RequestTrailers, At: epoch})
	f.core.Finish(x1)
	out := settled(t, x2, epoch)
	if len(out) != 3 || out[0].Decision == nil || string(out[1].Chunk) != hello || out[1].End || out[2].Kind != RequestTrailers {
		t.Errorf("got %+v, want decision, body, trailers", out)
	}
	f.core.Finish(x2)
}

func TestGoneFromTheQueue(t *testing.T) {
	f := newFleet(1, oneSlot)
	x1, _ := f.ask(wire.Standard)
	x2, _ := f.ask(wire.Standard)
	x3, _ := f.ask(wire.Sheddable)
	f.core.Finish(x2) // the client has left
	f.core.Finish(x1)
	if out := settled(t, x3, epoch); out[0].Decision == nil {
		t.Errorf("the third request got %+v, want a decision", out)
	}
	x4, _ := f.ask(wire.Standard)
	f.core.Finish(x3) // x4 has its place now, and leaves without having taken it
	f.core.Finish(x4)
	x5, _ := f.ask(wire.Sheddable)
	if x5.Waits() != nil {
		t.Error("a place was lost")
	}
	f.core.Finish(x5)
}

func TestRefusalHasTheAPIsForm(t *testing.T) {
	f := newFleet(1, oneSlot)
	x1, _ := f.ask(wire.Critical)
	x2, _ := f.ask(wire.Sheddable)
	x3, _ := f.ask(wire.Standard)
	x4, _ := f.ask(wire.Critical) // the queue is full: x2 must go
	if x3.Waits() == nil || x4.Waits() == nil {
		t.Fatal("somebody does not wait")
	}
	out := settled(t, x2, epoch)
	if e := out[0].Error; e == nil || e.Status != 429 || e.RetryAfter < 1 || e.Code != "overloaded" {
		t.Errorf("the sheddable request got %+v, want 429", out[0])
	}
	x5, out := f.ask(wire.Sheddable)
	if e := out[len(out)-1].Error; e == nil || e.Status != 429 {
		t.Errorf("one more sheddable request got %+v, want 429", out)
	}
	now := epoch.Add(4 * time.Second)
	x3.Tick(now)
	if out := settled(t, x3, now); out[0].Error == nil || out[0].Error.Status != 429 {
		t.Errorf("the standard request got %+v after its longest wait, want 429", out)
	}
	for _, x := range []*Exchange{x1, x2, x3, x5} {
		f.core.Finish(x)
	}
	if out := settled(t, x4, now); out[0].Decision == nil {
		t.Errorf("the critical request got %+v", out)
	}
	f.core.Finish(x4)
}

func TestClientsPatienceEndsTheWait(t *testing.T) {
	f := newFleet(1, oneSlot)
	x1, _ := f.ask(wire.Standard)
	x2, _ := f.ask(wire.Standard, func(h *RequestHead) { h.Patience = 50 * time.Millisecond })
	x2.Tick(epoch.Add(49 * time.Millisecond))
	select {
	case o := <-x2.Waits().C:
		t.Fatalf("got %+v before its time", o)
	default:
	}
	now := epoch.Add(50 * time.Millisecond)
	x2.Tick(now)
	if out := settled(t, x2, now); out[0].Error == nil {
		t.Errorf("got %+v, want 429", out)
	}
	f.core.Finish(x1)
	f.core.Finish(x2)
}

func TestSheddableGoesToTheSmallerModel(t *testing.T) {
	f := newFleet(1, oneSlot, withSmall)
	f.table.Policy.Flow.DegradeAt = 0.5
	x1, _ := f.ask(wire.Standard)
	x2, _ := f.ask(wire.Standard) // waits: the queue is half full
	x3, out := f.ask(wire.Sheddable)
	got := out[len(out)-1]
	if d := got.Decision; d == nil || d.Model != "small" || d.Asked != "m" || string(got.Chunk) != strings.Replace(hello, `"m"`, `"small"`, 1) || got.Length != len(got.Chunk) {
		t.Fatalf("got %+v, want the smaller model", got)
	}
	x4, _ := f.ask(wire.Sheddable) // the smaller model is busy, too
	if x4.Waits() == nil {
		t.Error("a sheddable request does not wait though there is room in the queue")
	}
	x5, _ := f.ask(wire.Standard)
	if x5.Waits() == nil {
		t.Error("a standard request does not wait")
	}
	for _, x := range []*Exchange{x1, x2, x3, x4, x5} {
		f.core.Finish(x)
	}
	if f.leaks() != 0 {
		t.Error("places are still taken")
	}
}

func TestNewEndpointsWakeThoseThatWait(t *testing.T) {
	f := newFleet(1, oneSlot)
	x1, _ := f.ask(wire.Standard)
	x2, _ := f.ask(wire.Standard)
	bigger := newFleet(2, oneSlot).table
	bigger.Models["m"].Endpoints[0] = f.model.Endpoints[0]
	f.picker.Publish(bigger)
	now := epoch.Add(tickEvery)
	x2.Tick(now)
	out := settled(t, x2, now)
	if out[0].Decision == nil || out[0].Decision.Choice.List[0].Address != bigger.Models["m"].Endpoints[1].Address {
		t.Errorf("got %+v, want the new endpoint", out)
	}
	f.core.Finish(x1)
	f.core.Finish(x2)
}

func TestBudget(t *testing.T) {
	f := newFleet(1, oneSlot)
	f.table.Policy.Flow.Budget = flow.Budget{Requests: 100, Tokens: 1000}
	tenant := func(h *RequestHead) { h.Tenant = 7 }
	answer := func(x *Exchange, usage string) {
		run(x, Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200}, Usage: usage}})
		x.End(epoch)
		f.core.Finish(x)
	}
	x, out := f.ask(wire.Standard, tenant)
	if out[len(out)-1].Decision == nil {
		t.Fatalf("got %+v", out)
	}
	answer(x, "prompt=900,cached=0,completion=90") // far more than was expected
	x, out = f.ask(wire.Standard, tenant)
	e := out[len(out)-1].Error
	if e == nil || e.Status != 429 || e.Type != "tokens" {
		t.Fatalf("got %+v, want 429 for tokens", out)
	}
	want := []string{"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
		"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"}
	if diff := gocmp.Diff(want, hosts(e.Headers)); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	f.core.Finish(x)
	x, out = f.ask(wire.Standard, func(h *RequestHead) { h.Tenant = 8 })
	if out[len(out)-1].Decision == nil {
		t.Errorf("another tenant got %+v", out)
	}
	run(x, answerOf(503, "")) // not answered: all is given back
	x.End(epoch)
	f.core.Finish(x)
	left := f.core.flow.Budgets(f.table.Policy.Flow).Spend(f.table.Policy.Flow.Budget, 8, 0, epoch)
	if left.Tokens != 1000 {
		t.Errorf("%d tokens left after a request without an answer, want all", left.Tokens)
	}
}

// TestProbesAreNoTenants decodes the key from a header: with another one a probe is charged
// like anybody's request, and no key is forwarded.
func TestProbesAreNoTenants(t *testing.T) {
	const key = "Q7XK"
	for _, tt := range []struct {
		name, key, sent string
		probe           bool
	}{
		{"the mesh's own", key, key, true},
		{"another key", key, "guess", false},
		{"a mesh without a key", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1, oneSlot)
			f.table.Policy.Flow.Budget = flow.Budget{Requests: 1, Tokens: 1}
			in := inbound{names: f.core.Probes(tt.key).names()}
			in.requestHeader([]byte("x-millrace-probe"), []byte(tt.sent))
			if in.Request.Probe != tt.probe || len(in.Request.Forbidden) != 1 {
				t.Errorf("read %+v, want probe %v", in.Request, tt.probe)
			}
			x, _ := f.ask(wire.Standard, func(*RequestHead) {}) // it uses the budget up
			x.End(epoch)
			f.core.Finish(x)
			spend := f.core.flow.Budgets(f.table.Policy.Flow)
			spend.Spend(f.table.Policy.Flow.Budget, 0, 1, epoch)
			x, out := f.ask(wire.Standard, func(h *RequestHead) { h.Probe = in.Request.Probe })
			if last := out[len(out)-1]; (last.Decision != nil) != tt.probe {
				t.Errorf("got %+v, want a decision %v", last, tt.probe)
			}
			f.core.Finish(x)
		})
	}
}

func hosts(hs []openai.Header) (all []string) {
	for _, h := range hs {
		all = append(all, h.Name)
	}
	return all
}

func TestHeadersOfFlowControl(t *testing.T) {
	f := newFleet(1, oneSlot)
	read := func(hs ...string) RequestHead {
		x := f.core.Begin()
		defer f.core.Finish(x)
		x.in.names = f.core.names()
		x.in.reset()
		b, err := proto.Marshal(headers(hs...))
		if err != nil {
			t.Fatal(err)
		}
		if err := x.in.read(b); err != nil {
			t.Fatal(err)
		}
		return x.in.Request
	}
	a, b := read("authorization", "Bearer k1", "x-request-timeout-ms", "900"), read("x-api-key", "k1")
	if a.Tenant == 0 || a.Tenant != b.Tenant || a.Tenant == read("authorization", "Bearer k2").Tenant {
		t.Error("tenants are not told apart by their keys")
	}
	if a.Patience != 900*time.Millisecond || b.Patience != 0 {
		t.Errorf("patience %v and %v, want 900ms and none", a.Patience, b.Patience)
	}
	f.table.Policy.Flow.TenantHeader = "x-tenant"
	if read("authorization", "Bearer k1").Tenant != 0 || read("x-tenant", "a").Tenant == 0 {
		t.Error("the policy's header does not name the tenant")
	}
}

// headers is Envoy's message with request headers.
func headers(hs ...string) *extproc.ProcessingRequest {
	m := &core.HeaderMap{}
	for i := 0; i < len(hs); i += 2 {
		m.Headers = append(m.Headers, &core.HeaderValue{Key: hs[i], RawValue: []byte(hs[i+1])})
	}
	return &extproc.ProcessingRequest{
		Request:        &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: m}},
		ProtocolConfig: &extproc.ProtocolConfiguration{RequestBodyMode: filter.ProcessingMode_BUFFERED},
	}
}

// wireStream is Envoy's end of a stream: messages go in, replies come out.
type wireStream struct {
	grpc.ServerStream
	ctx context.Context
	in  chan *extproc.ProcessingRequest // closed: Envoy has nothing more to say
	out chan *extproc.ProcessingResponse
}

func newWire(t *testing.T) *wireStream {
	return &wireStream{ctx: t.Context(), in: make(chan *extproc.ProcessingRequest, 4), out: make(chan *extproc.ProcessingResponse, 8)}
}

func (w *wireStream) Context() context.Context { return w.ctx }

func (w *wireStream) RecvMsg(m any) error {
	r, ok := <-w.in
	if !ok {
		return io.EOF
	}
	b, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return messages.Unmarshal(split(b), m)
}

func (w *wireStream) SendMsg(m any) error {
	b, err := messages.Marshal(m)
	if err != nil {
		return err
	}
	r := new(extproc.ProcessingResponse)
	if err := proto.Unmarshal(b.Materialize(), r); err != nil {
		return err
	}
	w.out <- r
	return nil
}

// Recv and Send are for a typed stream, which Process does not use.
func (w *wireStream) Recv() (*extproc.ProcessingRequest, error) { return nil, io.EOF }

// Send does nothing: see Recv.
func (w *wireStream) Send(*extproc.ProcessingResponse) error { return nil }

// request sends a whole request.
func (w *wireStream) request() {
	w.in <- headers(":method", "POST", ":path", "/v1/chat/completions", "content-type", "application/json")
	w.in <- &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestBody{
		RequestBody: &extproc.HttpBody{Body: []byte(hello), EndOfStream: true},
	}}
}

// decided reports whether a reply has a decision.
func decidedBy(r *extproc.ProcessingResponse) bool {
	return r.GetRequestBody().GetResponse().GetHeaderMutation() != nil
}

func TestServerWaitsForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(1, oneSlot)
		s := NewServer(f.core, nil)
		first, second, gone := newWire(t), newWire(t), newWire(t)
		ended := make(chan error, 3)
		serve := func(w *wireStream) {
			go func() { ended <- s.Process(w) }()
			w.request()
			synctest.Wait()
			<-w.out // to the headers
		}
		serve(first)
		if r := <-first.out; !decidedBy(r) {
			t.Errorf("the first request got %v", r)
		}
		serve(gone)
		if r := <-gone.out; r.GetOverrideMessageTimeout().AsDuration() != 10*time.Second {
			t.Errorf("one that has to wait got %v, want a longer timeout", r)
		}
		serve(second)
		<-second.out   // its longer timeout
		close(gone.in) // the client leaves, and nothing is lost
		synctest.Wait()
		if err := <-ended; err != nil || len(gone.out) > 0 {
			t.Errorf("the stream of the one that left ended with %v, %d replies", err, len(gone.out))
		}
		close(first.in)
		if r := <-second.out; !decidedBy(r) {
			t.Errorf("the second request got %v", r)
		}
		close(second.in)
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if f.leaks() != 0 {
			t.Error("places are still taken")
		}
	})
}

func TestServerTurnsAwayInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(1, oneSlot)
		s := NewServer(f.core, nil)
		x, _ := f.ask(wire.Critical)
		w := newWire(t)
		ended := make(chan error, 1)
		go func() { ended <- s.Process(w) }()
		began := time.Now()
		w.request()
		<-w.out
		<-w.out // its longer timeout
		r := <-w.out
		if took := time.Since(began); r.GetImmediateResponse().GetStatus().GetCode() != 429 || took < 4*time.Second || took > 4200*time.Millisecond {
			t.Errorf("got %v after %v, want 429 after its longest wait of 4s", r, took)
		}
		close(w.in)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.core.Finish(x)
	})
}

// TestChargedInAdvance charges the most that a request can cost, before it is known what it was.
func TestChargedInAdvance(t *testing.T) {
	const (
		most = 1 << 20
		chat = `{"model":"m","messages":[{"role":"user","content":"abc"}]`
	)
	tests := []struct {
		name   string
		path   string
		fields string
		output int // tokens
	}{
		{name: "no limit: the policy's", output: 1024},
		{name: "its limit", fields: `,"max_tokens":7`, output: 7},
		{name: "not the limit that another engine has", fields: `,"max_tokens":1,"n_predict":400`, output: 400},
		{name: "a huge limit", fields: `,"max_tokens":500000`, output: 4096},
		{name: "several answers", fields: `,"max_tokens":7,"n":3`, output: 21},
		{name: "more than the policy's at least", fields: `,"min_tokens":2000`, output: 2000},
		{name: "without an end", fields: `,"ignore_eos":true`, output: 4096},
		{name: "nothing is generated", path: "/v1/embeddings", fields: `,"input":"abc"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1, oneSlot)
			f.model.Context = 4096
			p := f.table.Policy.Flow
			p.Budget, p.AssumedMax = flow.Budget{Tokens: most}, 1024
			x := f.core.Begin()
			out := run(x, post(func(h *RequestHead) {
				h.Tenant = 7
				h.Path = cmp.Or(tt.path, h.Path)
			}), bodyOf(chat+tt.fields+`}`))
			if d := out[len(out)-1].Decision; d == nil || d.Charged == flow.Unanswered {
				t.Fatalf("got %+v", out[len(out)-1])
			}
			output := min(tt.output, 4096-x.counted.prompt)
			if got := f.charged(most) - x.counted.prompt; got != output {
				t.Errorf("%d tokens are charged for the answer, want %d", got, output)
			}
			f.core.Finish(x) // before any answer: it stays, as nobody knows
			if got := f.charged(most) - x.counted.prompt; got > 0 != (tt.output > 0) && tt.path != "" {
				t.Errorf("%d tokens are charged in the end", got)
			}
		})
	}
}

// charged is what tenant 7 is charged of a budget of most tokens.
func (f *fleet) charged(most int) int {
	p := f.table.Policy.Flow
	return most - int(f.core.flow.Budgets(p).Spend(p.Budget, 7, 0, epoch).Tokens)
}

// TestChargedByTheFirstWhoKnows charges answers by each source, and by the first of several.
func TestChargedByTheFirstWhoKnows(t *testing.T) {
	const (
		most     = 300
		reserved = 100 // max_tokens
	)
	headers := func(a AnswerHead) Event {
		a.Status = 200
		return Event{Kind: ResponseHeaders, At: epoch, Answer: a}
	}
	body := func(s string, end bool) Event { return Event{Kind: ResponseBody, At: epoch, Body: []byte(s), End: end} }
	trailers := func(a AnswerHead) Event { return Event{Kind: ResponseTrailers, At: epoch, Answer: a} }
	const lag = 200 * time.Millisecond
	// The engine had made 1000 tokens before, and 64 for the request.
	page := func(after time.Duration, tokens float64) pick.Page {
		return pick.Page{Count: scrape.Count{How: scrape.AsMade, Tokens: 1000 + tokens}, Asked: epoch.Add(after)}
	}
	tests := []struct {
		name  string
		ours  bool
		end   []Event // of the answer, before it is cut
		pages []pick.Page
		cut   int // what our engine accounts for; 0: nothing
		by    flow.Source
		want  func(prompt int) int // tokens that are charged
	}{
		{name: "a cut stream of our engine", ours: true, end: []Event{answerOf(200, "")}, cut: 33, by: flow.Engine, want: func(p int) int { return p + 33 }},
		{name: "an answer of ours that never came", ours: true, cut: 20, by: flow.Engine, want: func(p int) int { return p + 20 }},
		{name: "usage of ours", ours: true, end: []Event{answerOf(200, "prompt=5,completion=7")}, cut: 33, by: flow.Usage, want: func(int) int { return 12 }},
		{name: "refused", end: []Event{answerOf(503, "")}, by: flow.Unanswered, want: func(int) int { return 0 }},
		{name: "nobody knows", end: []Event{answerOf(200, "")}, by: flow.Reserved, want: func(p int) int { return p + reserved }},
		{name: "nobody knows, and nothing came", by: flow.Reserved, want: func(p int) int { return p + reserved }},
		{name: "headers of others", end: []Event{headers(AnswerHead{foreign: usageOf{prompt: 9, completion: 8, ok: true}})}, by: flow.Usage, want: func(int) int { return 17 }},
		{name: "more than it can be", end: []Event{headers(AnswerHead{foreign: usageOf{prompt: 9, completion: 8000, ok: true}})}, by: flow.Usage, want: func(int) int { return 9 + reserved }},
		{name: "the gateway", end: []Event{answerOf(200, ""), trailers(AnswerHead{gateway: usageOf{prompt: 9, completion: 8, ok: true}})}, by: flow.Gateway, want: func(int) int { return 17 }},
		{name: "the body", end: []Event{answerOf(200, ""), body(`{"choices":[],"usage":{"prompt_tokens":9,"compl`, false), body(`etion_tokens":8}}`, true)}, by: flow.Body, want: func(int) int { return 17 }},
		{name: "a body that was cut says nothing", end: []Event{answerOf(200, ""), body(`{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}`, false)}, by: flow.Reserved, want: func(p int) int { return p + reserved }},
		{name: "counters", end: []Event{answerOf(200, "")}, pages: []pick.Page{page(lag, 64)}, by: flow.Counters, want: func(p int) int { return p + 64 }},
		{name: "counters, though nothing came", pages: []pick.Page{page(lag, 64)}, by: flow.Counters, want: func(p int) int { return p + 64 }},
		{name: "counters that show more than it can be", end: []Event{answerOf(200, "")}, pages: []pick.Page{page(lag, 1e6)}, by: flow.Counters, want: func(p int) int { return p + reserved }},
		{name: "a header before counters", end: []Event{headers(AnswerHead{foreign: usageOf{prompt: 9, completion: 8, ok: true}})}, pages: []pick.Page{page(lag, 64)}, by: flow.Usage, want: func(int) int { return 17 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1, oneSlot)
			e := f.model.Endpoints[0]
			if tt.ours {
				e.Replica = "r"
			}
			f.table.Policy.Flow.Budget = flow.Budget{Tokens: most}
			if tt.pages != nil {
				before := page(-time.Second, 0)
				e.Page(&before)
			}
			x := f.core.Begin()
			run(x, post(func(h *RequestHead) { h.Tenant = 7 }), bodyOf(strings.TrimSuffix(hello, "}")+`,"max_tokens":100}`))
			number, prompt := x.admission.spent.request, x.counted.prompt
			run(x, tt.end...)
			x.End(epoch)
			for i := range tt.pages {
				e.Page(&tt.pages[i])
			}
			if tt.cut > 0 {
				f.core.Account(number+2, 1000, epoch) // another extproc's
				f.core.Account(number, uint64(tt.cut), epoch)
				f.core.Account(number, uint64(tt.cut), epoch)
			}
			if got, want := f.charged(most), tt.want(prompt); got < want-1 || got > want { // some time has gone by
				t.Errorf("%d tokens are charged, want %d", got, want)
			}
			if served := slices.ContainsFunc(tt.end, func(ev Event) bool { return ev.Kind == ResponseHeaders && ev.Answer.Status == 200 }); e.Unpriced() != (served && tt.by == flow.Reserved) {
				t.Errorf("unpriced %v", e.Unpriced())
			}
			if got := f.chargedBy(t, tt.by); got != 1 {
				t.Errorf("%v requests are charged by %v, want this one", got, tt.by)
			}
		})
	}
}

// chargedBy is how many requests were charged by a source, as the metrics say.
func (f *fleet) chargedBy(t *testing.T, by flow.Source) (n float64) {
	t.Helper()
	all, err := f.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		for _, m := range family.GetMetric() {
			if family.GetName() == "millrace_extproc_charged_answers_total" && m.GetLabel()[0].GetValue() == by.String() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// answerOf is the beginning of an answer.
func answerOf(status int, usage string) Event {
	return Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: status}, Usage: usage}}
}
