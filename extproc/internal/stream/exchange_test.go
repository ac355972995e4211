package stream

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/wire"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// quarters counts a token for every four bytes of the body.
type quarters struct{}

func (quarters) Count(r *openai.Request) (int, string) { return len(r.Raw) / 4, pick.Certain }

// fleet is a table with its picker.
type fleet struct {
	core   *Core
	picker *pick.Picker
	table  *pick.Table
	model  *pick.Model
	reg    *prometheus.Registry
}

func newFleet(n int, edit ...func(*pick.Table)) *fleet {
	m := &pick.Model{Name: "m", Seed: session.Seed("m"), Learned: new(pick.Learned)}
	m.SetCounter(quarters{})
	for i := range n {
		m.Endpoints = append(m.Endpoints, &pick.Endpoint{
			Address: fmt.Sprintf("127.0.0.1:%d", 20000+i), Nodes: []string{fmt.Sprint(i)}, State: pick.Ready,
			Slots: 4, Health: 1, KV: prefix.NewCache(uint32(i+1), 0), Prior: pick.Speed{Prefill: 2 + float64(i), Decode: 20 + float64(i)}, Live: new(pick.Live),
		})
	}
	t := &pick.Table{
		Policy: &pick.Policy{
			SessionHeader: "x-session-id", Prefixes: prefix.New(1000, time.Hour), Candidates: 4, Critical: 5, Sheddable: 2, PriorityHeader: "x-millrace-priority", Priority: wire.Standard, MaxBody: 100000, Ours: true, Explain: true, HedgeAfter: 2 * time.Second,
			Cookies: session.NewCookies("s", [][]byte{[]byte("a key of 16 bytes")}, time.Minute),
		},
		Models: map[string]*pick.Model{"m": m}, Default: m,
	}
	for _, f := range edit {
		f(t)
	}
	reg := prometheus.NewRegistry()
	p := pick.New(reg)
	p.Publish(t)
	return &fleet{NewCore(p, reg), p, t, m, reg}
}

// leaks returns the places that are still taken.
func (f *fleet) leaks() (n int64) {
	for _, e := range f.model.Endpoints {
		requests, tokens := e.InFlight()
		n += requests + tokens
	}
	return n
}

// post returns the headers of a chat request.
func post(edit ...func(*RequestHead)) Event {
	ev := Event{Kind: RequestHeaders, At: epoch, Request: RequestHead{
		Method: "POST", Path: "/v1/chat/completions", ContentType: "application/json", Length: -1, Mode: Buffered,
	}}
	for _, f := range edit {
		f(&ev.Request)
	}
	return ev
}

func bodyOf(s string) Event { return Event{Kind: RequestBody, End: true, At: epoch, Body: []byte(s)} }

func by(m Mode) func(*RequestHead) { return func(h *RequestHead) { h.Mode = m } }

const hello = `{"model":"m","messages":[{"role":"user","content":"hello"}]}`

// run steps through events and returns the replies.
func run(x *Exchange, evs ...Event) (out []Reply) {
	for i := range evs {
		out = x.Step(&evs[i], out)
	}
	return out
}

func TestModes(t *testing.T) {
	long := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("a", 90000) + `"}]}`
	tests := []struct {
		name string
		evs  []Event
		want []Kind
	}{
		{"buffered", []Event{post(), bodyOf(hello)}, []Kind{RequestHeaders, RequestBody}},
		{"buffered, without a body", []Event{{Kind: RequestHeaders, End: true, At: epoch, Request: RequestHead{Method: "GET", Path: "/v1/x"}}}, []Kind{RequestHeaders}},
		{"duplex", []Event{post(by(Duplex)), {Kind: RequestBody, Body: []byte(hello[:9]), At: epoch}, {Kind: RequestBody, Body: []byte(hello[9:]), End: true, At: epoch}}, []Kind{RequestHeaders, RequestBody}},
		{"duplex, a long body", []Event{post(by(Duplex)), bodyOf(long)}, []Kind{RequestHeaders, RequestBody, RequestBody}},
		{"duplex, with trailers", []Event{post(by(Duplex)), {Kind: RequestBody, Body: []byte(hello), At: epoch}, {Kind: RequestTrailers, At: epoch}}, []Kind{RequestHeaders, RequestBody, RequestTrailers}},
		{"streamed", []Event{post(by(Streamed)), {Kind: RequestBody, Body: []byte(hello[:9]), At: epoch}, bodyOf(hello[9:])}, []Kind{RequestHeaders, RequestBody, RequestBody}},
		{"headers only", []Event{post(by(Unseen))}, []Kind{RequestHeaders}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(3)
			x := f.core.Begin()
			out := run(x, tt.evs...)
			var kinds []Kind
			decisions := 0
			for _, r := range out {
				kinds = append(kinds, r.Kind)
				if r.Decision != nil {
					decisions++
				}
			}
			if fmt.Sprint(kinds) != fmt.Sprint(tt.want) || decisions != 1 {
				t.Errorf("replies %v with %d decisions, want %v with one", kinds, decisions, tt.want)
			}
			if n, _ := f.model.Endpoints[0].InFlight(); n != 1 {
				t.Errorf("%d requests reserved, want 1", n)
			}
			f.core.Finish(x)
			if f.leaks() != 0 {
				t.Error("places are still taken after the end")
			}
		})
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name   string
		n      int
		evs    []Event
		status int
		code   string
	}{
		{"not JSON", 1, []Event{post(), bodyOf(`{"model":`)}, 400, "invalid_json"},
		{"no body at all", 1, []Event{{Kind: RequestHeaders, End: true, Request: post().Request}}, 400, "invalid_json"},
		{"no model", 1, []Event{post(), bodyOf(`{"messages":[]}`)}, 400, "missing_required_parameter"},
		{"unknown model", 1, []Event{post(), bodyOf(`{"model":"x"}`)}, 404, "model_not_found"},
		{"wrong content type", 1, []Event{post(func(h *RequestHead) { h.ContentType = "text/plain; charset=utf-8" })}, 415, "unsupported_content_type"},
		{"content-length over the limit", 1, []Event{post(func(h *RequestHead) { h.Length = 100001 })}, 413, "request_too_large"},
		{"body over the limit", 1, []Event{post(), bodyOf(strings.Repeat(" ", 100001))}, 413, "request_too_large"},
		{"duplex body over the limit", 1, []Event{post(by(Duplex)), {Kind: RequestBody, Body: make([]byte, 60000)}, {Kind: RequestBody, Body: make([]byte, 60000)}}, 413, "request_too_large"},
		{"nobody ready", 0, []Event{post(), bodyOf(hello)}, 503, "no_replica_ready"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(tt.n)
			out := run(f.core.Begin(), tt.evs...)
			last := out[len(out)-1]
			if last.Kind != Immediate || last.Error.Status != tt.status || last.Error.Code != tt.code {
				t.Errorf("reply %+v, want an immediate %d %s", last, tt.status, tt.code)
			}
		})
	}
}

func TestWithoutStateEnvoyChooses(t *testing.T) {
	reg := prometheus.NewRegistry()
	core := NewCore(pick.New(reg), reg)
	for _, m := range []Mode{Buffered, Duplex, Streamed, Unseen} {
		for _, r := range run(core.Begin(), post(by(m)), bodyOf(`nonsense`)) {
			if r.Decision != nil || r.Error != nil {
				t.Errorf("mode %d: reply %+v before xds has said anything", m, r)
			}
		}
	}
}

func TestConversationStays(t *testing.T) {
	for _, named := range []string{"", "abc"} {
		f := newFleet(3)
		body, home := hello, ""
		for turn := range 10 {
			x := f.core.Begin()
			head := post(func(h *RequestHead) { h.Session = named })
			out := run(x, head, bodyOf(body))
			d := out[1].Decision
			first := d.Choice.List[0].Address
			if turn == 0 {
				home = "127.0.0.1:20002" // as if Envoy had gone to the slowest
			} else if first != home || d.Choice.Reason != pick.Sticky || d.Choice.List[0].Cached == 0 {
				t.Fatalf("session %q, turn %d: %v, want sticky to %s", named, turn, d, home)
			}
			run(x, answerBy(home, 1000*(turn+1)))
			f.core.Finish(x)
			body = strings.TrimSuffix(body, "]}") + `,{"role":"assistant","content":"yes"},{"role":"user","content":"and?"}]}`
		}
	}
}

// answerBy is a good answer of a host that has now so many tokens cached.
func answerBy(host string, tokens int) Event {
	return Event{Kind: ResponseHeaders, At: epoch.Add(time.Second), Answer: AnswerHead{
		Answer: pick.Answer{Status: 200, Attempts: 1, Served: host},
		Usage:  fmt.Sprintf("prompt=%d,cached=%d,completion=3,prefill_ms=10,decode_ms=20", tokens, tokens/2),
		Load:   "TEXT named_metrics.running=1,named_metrics.waiting=0,named_metrics.tokens_in_flight=0,named_metrics.kv_util=0.1,rps_fractional=1",
	}}
}

func TestOneCookieForManyConversations(t *testing.T) {
	f := newFleet(3)
	x := f.core.Begin()
	out := run(x, post(), bodyOf(hello), answerBy("127.0.0.1:20002", 5000))
	cookie, _, _ := strings.Cut(out[2].Cookie, ";")
	if !strings.HasPrefix(cookie, "s=") {
		t.Fatalf("cookie %q", out[2].Cookie)
	}
	f.core.Finish(x)
	with := post(func(h *RequestHead) { h.Cookie = cookie })
	other := run(f.core.Begin(), with, bodyOf(`{"model":"m","messages":[{"role":"user","content":"another"}]}`))[1].Decision
	if other.Choice.List[0].Cached != 0 || other.Choice.Reason != pick.Fresh {
		t.Errorf("another conversation of the same client: %v, want a new choice", other)
	}
	same := run(f.core.Begin(), with, bodyOf(hello))
	if d := same[1].Decision; d.Choice.Reason != pick.Sticky || !strings.HasPrefix(d.Session, "cookie:") {
		t.Errorf("the same conversation: %v in session %q, want sticky", d, d.Session)
	}
}

func TestNoCookieForNamedSessions(t *testing.T) {
	f := newFleet(1)
	out := run(f.core.Begin(), post(func(h *RequestHead) { h.Session = "abc" }), bodyOf(hello), answerBy("127.0.0.1:20000", 10))
	if out[2].Cookie != "" {
		t.Errorf("a client with a session header got the cookie %q", out[2].Cookie)
	}
}

func TestFailedHostsAreEjected(t *testing.T) {
	f := newFleet(3)
	x := f.core.Begin()
	out := run(x, post(), bodyOf(hello))
	list := out[1].Decision.Choice.List
	first, second := list[0].Address, list[1]
	ev := answerBy(second.Address, 10)
	ev.Answer.Attempts = 2
	run(x, ev)
	if n, _ := second.InFlight(); n != 1 {
		t.Error("the reservation did not move to the host that answered")
	}
	f.core.Finish(x)
	head, body := post(), bodyOf(hello)
	head.At, body.At = epoch.Add(1100*time.Millisecond), epoch.Add(1100*time.Millisecond)
	d := run(f.core.Begin(), head, body)[1].Decision
	for _, c := range d.Choice.List {
		if c.Address == first {
			t.Errorf("%v names a host that just failed", d)
		}
	}
}

func TestPriorities(t *testing.T) {
	f := newFleet(6)
	for priority, want := range map[string]int{"critical": 5, "standard": 4, "sheddable": 2, "": 4, "nonsense": 4} {
		out := run(f.core.Begin(), post(func(h *RequestHead) { h.Priority = priority }), bodyOf(hello))
		if d := out[1].Decision; len(d.Choice.List) != want || d.Retries != want-1 {
			t.Errorf("priority %q: %d hosts and %d retries, want %d attempts", priority, len(d.Choice.List), d.Retries, want)
		}
	}
}

// TestWhatIsLoadedNowhereIsTriedOnceEach has the last engine's own words reach the client.
func TestWhatIsLoadedNowhereIsTriedOnceEach(t *testing.T) {
	f := newFleet(2)
	retries := func() int { return run(f.core.Begin(), post(), bodyOf(hello))[1].Decision.Retries }
	list := run(f.core.Begin(), post(), bodyOf(hello))[1].Decision.Choice.List
	a, b := list[0].Endpoint, list[1].Endpoint
	for _, tt := range []struct {
		name  string
		a, b  float64
		rests bool
		want  int
	}{
		{"both loaded", 0, 0, false, 3}, {"one loaded", 2000, 0, false, 3}, {"none loaded", 2000, 1000, false, 1},
		{"as far as is known", 0, 0, true, 1},
	} {
		f.model.Rests = tt.rests
		a.ReportFromFleet(pick.Report{Wake: tt.a}, epoch)
		b.ReportFromFleet(pick.Report{Wake: tt.b}, epoch)
		if got := retries(); got != tt.want {
			t.Errorf("%s: %d retries, want %d", tt.name, got, tt.want)
		}
	}
}

func TestSomebodyElseIsAskedTooAfterAWhile(t *testing.T) {
	f := newFleet(2)
	hedge := func(body string) time.Duration {
		t.Helper()
		return run(f.core.Begin(), post(), bodyOf(body))[1].Decision.Hedge.After
	}
	whole, stream := hedge(hello), hedge(strings.Replace(hello, "{", `{"stream":true,`, 1))
	if stream != 2*time.Second || whole <= stream {
		t.Errorf("after %v where all comes at once, %v where the first token comes by itself", whole, stream)
	}
	one := newFleet(1)
	if d := run(one.core.Begin(), post(), bodyOf(hello))[1].Decision; d.Hedge != (pick.Hedge{}) {
		t.Errorf("nobody else is there, and is asked after %v", d.Hedge)
	}
}

func TestUnknownPathsAreRoutedByLoad(t *testing.T) {
	f := newFleet(2)
	out := run(f.core.Begin(), post(func(h *RequestHead) { h.Path, h.ContentType = "/v1/audio", "audio/wav" }), bodyOf("\x00\x01"))
	if d := out[1].Decision; d == nil || d.Choice.Reason != pick.Fallback || d.Exact {
		t.Errorf("decision %v, want a fallback", d)
	}
}

func TestDuplexSendsTheBodyBack(t *testing.T) {
	f := newFleet(1)
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("abcdefg ", 11000) + `"}]}`
	var evs []Event
	evs = append(evs, post(by(Duplex)))
	for i := 0; i < len(body); i += 9999 {
		end := min(i+9999, len(body))
		evs = append(evs, Event{Kind: RequestBody, Body: []byte(body[i:end]), End: end == len(body), At: epoch})
	}
	var got []byte
	ends := 0
	for _, r := range run(f.core.Begin(), evs...) {
		if len(r.Chunk) > 64<<10 {
			t.Errorf("a chunk of %d bytes", len(r.Chunk))
		}
		got = append(got, r.Chunk...)
		if r.End {
			ends++
		}
	}
	if string(got) != body || ends != 1 {
		t.Errorf("%d bytes came back with %d ends, want %d bytes and one", len(got), ends, len(body))
	}
}

func TestUsageAndLoad(t *testing.T) {
	u, ok := parseUsage("prompt=12,cached=4,completion=5,prefill_ms=3.2,decode_ms=40.1")
	if want := (pick.Usage{Prompt: 12, Cached: 4, Completion: 5, PrefillMs: 3.2, DecodeMs: 40.1}); !ok || u != want {
		t.Errorf("parseUsage() = %+v, %v; want %+v", u, ok, want)
	}
	l, ok := parseLoad("TEXT named_metrics.running=1,named_metrics.waiting=2,named_metrics.tokens_in_flight=120,named_metrics.kv_util=0.1,application_utilization=0.25,rps_fractional=1")
	if want := (pick.Report{Requests: 3, Waiting: 2, KV: 0.1}); !ok || l != want {
		t.Errorf("parseLoad() = %+v, %v; want %+v", l, ok, want)
	}
	for _, s := range []string{"", "TEXT", "JSON {}", "TEXT cpu=1", "prompt=1"} {
		if _, ok := parseLoad(s); ok {
			t.Errorf("parseLoad(%q) is taken", s)
		}
	}
	for _, s := range []string{"", "completion=3", "prompt=-1", "prompt=NaN", "prompt=x"} {
		if _, ok := parseUsage(s); ok {
			t.Errorf("parseUsage(%q) is taken", s)
		}
	}
}

func FuzzReports(f *testing.F) {
	f.Add("prompt=12,cached=4,completion=5,prefill_ms=3.2,decode_ms=40.1")
	f.Add("TEXT named_metrics.running=1e300,named_metrics.kv_util=9")
	f.Fuzz(func(t *testing.T, s string) {
		if u, _ := parseUsage(s); u.Cached > u.Prompt || u.Prompt < 0 || u.Completion < 0 || u.DecodeMs < 0 {
			t.Errorf("parseUsage(%q) = %+v", s, u)
		}
		if l, _ := parseLoad(s); l.Requests < 0 || l.Waiting < 0 || l.KV < 0 || l.KV > 1 {
			t.Errorf("parseLoad(%q) = %+v", s, l)
		}
	})
}

func TestDecisionText(t *testing.T) {
	f := newFleet(2)
	d := run(f.core.Begin(), post(), bodyOf(hello))[1].Decision
	if got, want := string(d.appendText(nil)), "new 127.0.0.1:20000 2590ms (wait 0 prefill 30 decode 2560), 127.0.0.1:20001 2733ms"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("GatherAndLint() = %v, %v", problems, err)
	}
}

func TestErrorsTakeTheAPIsForm(t *testing.T) {
	f := newFleet(1)
	for path, want := range map[string]string{
		"/v1/messages":              `{"type":"error","error":{"type":"not_found_error",`,
		"/v1/messages/count_tokens": `{"type":"error","error":{"type":"not_found_error",`,
		"/v1/chat/completions":      `{"error":{"message":`,
	} {
		head := post(func(h *RequestHead) { h.Path = path })
		out := run(f.core.Begin(), head, bodyOf(`{"model":"x","messages":[]}`))
		last := out[len(out)-1]
		if last.Kind != Immediate || !strings.HasPrefix(string(last.Error.JSON()), want) {
			t.Errorf("%s: %+v, want an error like %s…", path, last, want)
		}
	}
}

// TestPhasesOfSomeDecisionsAreMeasured decides often enough that every sixteenth was.
func TestPhasesOfSomeDecisionsAreMeasured(t *testing.T) {
	f := newFleet(3)
	x := f.core.Begin()
	m := x.memory
	for range 4 * sampled {
		*x = Exchange{core: f.core, memory: m, desk: new(desk)}
		run(x, post(), bodyOf(hello))
		x.End(epoch)
	}
	for i, o := range f.core.metrics.laps {
		if lap(i) == lapSend {
			continue // the server's
		}
		var got dto.Metric
		if err := o.(prometheus.Metric).Write(&got); err != nil || got.GetHistogram().GetSampleCount() != 4 {
			t.Errorf("%s: measured %d times in %d decisions, %v", lapNames[i], got.GetHistogram().GetSampleCount(), 4*sampled, err)
		}
	}
}

// TestAccessLogGetsWhatWasObserved has an answer of our engine, streamed and not, and one
// of an engine that says nothing: what was expected, and what came of it, are not mixed up.
func TestAccessLogGetsWhatWasObserved(t *testing.T) {
	const usage = "prompt=15,cached=8,completion=3,prefill_ms=3,decode_ms=9"
	streamed := strings.Replace(hello, `{`, `{"stream":true,`, 1)
	later := epoch.Add(200 * time.Millisecond)
	headers := func(usage string) Event {
		return Event{Kind: ResponseHeaders, At: later, Answer: AnswerHead{Answer: pick.Answer{Status: 200, Attempts: 1}, Usage: usage}}
	}
	tests := []struct {
		name           string
		ours           bool
		body           string
		answer         []Event
		want           []*Observed
		first, outcome string
	}{
		{"whole", true, hello, []Event{headers(usage)}, []*Observed{{Prompt: 15, Cached: 8, Output: 3, First: -1}}, "0", "ok"},
		{
			"streamed", true, streamed, []Event{headers(""), {Kind: ResponseTrailers, At: later, Answer: AnswerHead{Usage: usage}}},
			[]*Observed{{Prompt: -1, Cached: -1, Output: -1, First: 200 * time.Millisecond}, {Prompt: 15, Cached: 8, Output: 3, First: -1}}, "1", "ok",
		},
		{"streamed by others", false, streamed, []Event{headers(""), {Kind: ResponseTrailers, At: later}}, []*Observed{nil, nil}, "0", "ok"},
		{"no answer", true, hello, nil, nil, "0", "gone"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			f := newFleet(1, func(table *pick.Table) {
				e := table.Models["m"].Endpoints[0]
				if e.Replica = e.Address; tt.ours {
					e.Replica = "m-0"
				}
			})
			p := pick.New(reg)
			p.Publish(f.table)
			core := NewCore(p, reg)
			x := core.Begin()
			run(x, post(), bodyOf(tt.body))
			var got []*Observed
			for i := range tt.answer {
				for _, r := range x.Step(&tt.answer[i], nil) {
					if r.Observed != nil {
						o := *r.Observed // the next event overwrites it
						r.Observed = &o
					}
					got = append(got, r.Observed)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("observed (-want +got):\n%s", d)
			}
			x.End(later)
			page := gather(t, reg)
			for _, want := range []string{
				`millrace_extproc_requests_total{model="m",outcome="` + tt.outcome + `",priority="standard"} 1`,
				`millrace_extproc_first_token_seconds_count{model="m",priority="standard"} ` + tt.first,
			} {
				if !strings.Contains(page, want+"\n") {
					t.Errorf("no %s in\n%s", want, page)
				}
			}
		})
	}
}

// TestEnginesOfOthersCountWhatWasExpected sends a conversation twice to an engine that says
// nothing of single answers: what is cached there is expected the second time.
func TestEnginesOfOthersCountWhatWasExpected(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := newFleet(1)
	p := pick.New(reg)
	p.Publish(f.table)
	core := NewCore(p, reg)
	for range 2 {
		x := core.Begin()
		run(x, post(), bodyOf(hello), Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200, Attempts: 1}}})
		x.End(epoch)
	}
	if page := gather(t, reg); strings.Contains(page, `millrace_extproc_expected_cached_tokens_total{model="m"} 0`) {
		t.Error("nothing was expected to be cached")
	}
}

// gather returns the page of /metrics.
func gather(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}
