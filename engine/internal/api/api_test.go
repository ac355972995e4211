package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/llamacpp"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/openai"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/engine/internal/vllm"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// rig is a Server between a client and a fake backend.
type rig struct {
	url     string
	gate    *admit.Gate
	meter   *meter.Meter
	cache   *cachelog.Log
	spans   *tracetest.SpanRecorder
	metrics *prometheus.Registry
	serving atomic.Pointer[supervise.Serving]
	// lose ends the replica: the backend is lost.
	lose   context.CancelCauseFunc
	server *Server
	// dies is whether the replica does not serve any more once it was asked.
	dies bool
	// closeDoor lets nobody in any more.
	closeDoor context.CancelCauseFunc
}

const (
	maxBody = 4096
	why     = "backend stopped"
)

// newRig is in front of the kind of backend that is asked in the least simple way.
func newRig(t *testing.T, server http.HandlerFunc) *rig {
	t.Helper()
	return newRigOf(t, enginepb.Backend_LLAMACPP, server)
}

// kinds are those that a test needs, all at one address.
func kinds(address string) backend.Kinds {
	return backend.Kinds{
		enginepb.Backend_LLAMACPP: llamacpp.New(llamacpp.Programs{BackendAddress: address}, nil),
		enginepb.Backend_VLLM:     vllm.New(vllm.Program{Address: address}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)),
		enginepb.Backend_OPENAI:   openai.New(nil),
	}
}

func newRigOf(t *testing.T, kind enginepb.Backend_Kind, server http.HandlerFunc, also ...func(*Config)) *rig {
	t.Helper()
	b := httptest.NewServer(server)
	t.Cleanup(b.Close)
	g := &rig{gate: &admit.Gate{}, meter: &meter.Meter{}, cache: &cachelog.Log{}, spans: tracetest.NewSpanRecorder(), metrics: prometheus.NewRegistry()}
	g.gate.Set(admit.Limits{Slots: 1, Queue: 1})
	v := &supervise.Serving{Assignment: &enginepb.Assignment{
		Model: "smollm2", Replica: "smollm2-0", Backend: &enginepb.Backend{Kind: kind, MaxBodyBytes: maxBody, Slots: 1, ContextTokens: 1000, Url: b.URL},
	}}
	v.Open, g.closeDoor = context.WithCancelCause(t.Context())
	v.Alive, g.lose = context.WithCancelCause(t.Context())
	g.serving.Store(v)
	snapshot := func() (*supervise.Snapshot, <-chan struct{}) {
		return &supervise.Snapshot{State: enginepb.State_READY, Assignment: v.Assignment}, nil
	}
	cfg := Config{
		Node: "node-a", Kinds: kinds(b.Listener.Addr().String()), Transport: http.DefaultTransport.(*http.Transport).Clone(), Gate: g.gate, Meter: g.meter, Cache: g.cache,
		Metrics: NewMetrics(g.metrics, Sources{Gate: g.gate, Meter: g.meter, Cache: g.cache, Snapshot: snapshot}),
		Log:     slog.New(slog.DiscardHandler), Peers: http.DefaultTransport, ResumeFor: time.Nanosecond,
		Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(g.spans)).Tracer("test"),
		Serving: func() (*supervise.Serving, string) {
			if v := g.serving.Load(); v != nil {
				if g.dies {
					g.serving.Store(nil)
				}
				return v, ""
			}
			return nil, why
		},
	}
	for _, change := range also {
		change(&cfg)
	}
	s := New(cfg)
	g.server = s
	front := httptest.NewServer(s)
	t.Cleanup(front.Close)
	g.url = front.URL
	return g
}

func (g *rig) request(ctx context.Context, path, body string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return req
}

// post returns status, headers and body of the answer to a request.
func (g *rig) post(t *testing.T, path, body string) (*http.Response, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(g.request(t.Context(), path, body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

const (
	chat = `{"model":"smollm2","messages":[{"role":"user","content":"hi"}]}`
	// probed is asked for as it came: nobody has compared a stream with its answer.
	probed  = `{"model":"smollm2","logprobs":true,"messages":[{"role":"user","content":"hi"}]}`
	timings = `"timings":{"cache_n":24,"prompt_n":15,"prompt_ms":96.5,"predicted_n":48,"predicted_ms":670.25}`
	cost    = "prompt=39,cached=24,completion=48,prefill_ms=96.5,decode_ms=670.2"
)

func TestUnary(t *testing.T) {
	const answer = `{"choices":[{"message":{"content":"Hello"}}],` + timings + `}`
	g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); string(b) != probed || r.URL.Path != "/v1/chat/completions" {
			t.Errorf("the backend got %s %s", r.URL.Path, b)
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = io.WriteString(w, answer)
	})
	for _, path := range []string{"/v1/chat/completions", "/chat/completions"} {
		resp, body := g.post(t, path, probed)
		if resp.StatusCode != http.StatusOK || body != answer {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		want := map[string]string{
			headerUsage: cost, headerNode: "node-a", headerReplica: "smollm2-0", "Content-Type": "application/json; charset=utf-8",
		}
		for name, value := range want {
			if got := resp.Header.Get(name); got != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		}
		if load := resp.Header.Get(headerLoad); !strings.HasPrefix(load, "TEXT named_metrics.running=0,named_metrics.waiting=0,named_metrics.tokens_in_flight=0,") {
			t.Errorf("load %q", load)
		}
	}
	if got := g.meter.Totals(); got != (meter.Totals{Requests: 2, Prompt: 78, Cached: 48, Generated: 96}) {
		t.Errorf("totals %+v", got)
	}
}

func TestStream(t *testing.T) {
	const answer = "data: {\"delta\":\"Hello\"}\n\ndata: {" + timings + "}\n\ndata: [DONE]\n\n"
	second := make(chan struct{})
	g := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		first, rest, _ := strings.Cut(answer, "\n\n")
		_, _ = io.WriteString(w, first+"\n\n")
		w.(http.Flusher).Flush()
		<-second
		_, _ = io.WriteString(w, rest)
	})
	resp, err := http.DefaultClient.Do(g.request(t.Context(), "/v1/chat/completions", strings.Replace(chat, "{", `{"stream":true,`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if load := resp.Header.Get(headerLoad); !strings.Contains(load, "running=1,") {
		t.Errorf("load at the start %q", load)
	}
	r := bufio.NewReader(resp.Body)
	line, err := r.ReadString('\n')
	if err != nil || line != "data: {\"delta\":\"Hello\"}\n" {
		t.Fatalf("first event %q, %v", line, err)
	}
	close(second) // the first event came before the second existed
	rest, err := io.ReadAll(r)
	if err != nil || line+string(rest) != answer {
		t.Errorf("stream %q, %v", line+string(rest), err)
	}
	if got := resp.Trailer.Get(headerUsage); got != cost {
		t.Errorf("usage %q, want %q", got, cost)
	}
	if load := resp.Trailer.Get(headerLoad); !strings.Contains(load, "running=0,") {
		t.Errorf("load at the end %q", load)
	}
}

func TestBadRequests(t *testing.T) {
	g := newRig(t, func(http.ResponseWriter, *http.Request) { t.Error("the backend was asked") })
	tests := []struct {
		name, path, body string
		status           int
		message          string
	}{
		{"not JSON", "/v1/chat/completions", `{"model":`, 400, "not a JSON object"},
		{"a list", "/v1/chat/completions", `[]`, 400, "not a JSON object"},
		{"null", "/v1/chat/completions", `null`, 400, "not a JSON object"},
		{"not UTF-8", "/v1/chat/completions", "{\"model\":\"\xff\"}", 400, "not UTF-8"},
		{"nothing", "/v1/chat/completions", ``, 400, "not a JSON object"},
		{"no model", "/v1/chat/completions", `{"messages":[1]}`, 400, "model is missing"},
		{"model in another case", "/v1/chat/completions", `{"Model":"smollm2","messages":[1]}`, 400, "model is missing"},
		{"model is a number", "/v1/chat/completions", `{"model":3,"messages":[1]}`, 400, "model: 3; must be a string"},
		{"another model", "/v1/chat/completions", `{"model":"gpt-4","messages":[1]}`, 404, `the model "gpt-4" does not exist here`},
		{"no messages", "/v1/chat/completions", `{"model":"smollm2"}`, 400, "messages is missing"},
		{"messages are text", "/v1/chat/completions", `{"model":"smollm2","messages":"hi"}`, 400, "messages must be a list"},
		{"empty messages", "/v1/chat/completions", `{"model":"smollm2","messages":[ ]}`, 400, "messages is empty"},
		{"stream is text", "/v1/chat/completions", `{"model":"smollm2","messages":[1],"stream":"yes"}`, 400, `stream: "yes"; must be true or false`},
		{"half a token", "/v1/chat/completions", `{"model":"smollm2","messages":[1],"max_tokens":1.5}`, 400, "max_tokens: 1.5; must be an integer"},
		{"less than no token", "/v1/completions", `{"model":"smollm2","prompt":"a","max_tokens":-2}`, 400, "max_tokens: -2; must be ≥ 0"},
		{"no prompt", "/v1/completions", `{"model":"smollm2"}`, 400, "prompt is missing"},
		{"no input", "/v1/embeddings", `{"model":"smollm2","input":null}`, 400, "input is missing"},
		{"input is a number", "/v1/responses", `{"model":"smollm2","input":7}`, 400, "input must be a string or a list"},
		{"too large", "/v1/chat/completions", `{"model":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than 4096 bytes"},
		{"another endpoint", "/v1/images", `{}`, 404, "no such endpoint: POST /v1/images"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := g.post(t, tt.path, tt.body)
			wantError(t, resp, body, tt.status, tt.message)
		})
	}
	if l := g.gate.Load(); l.Running+l.Waiting != 0 || l.Tokens != 0 {
		t.Errorf("load %+v is left", l)
	}
}

// wantError checks for an error in the API's own form.
func wantError(t *testing.T, resp *http.Response, body string, status int, message string) {
	t.Helper()
	var got struct {
		Error struct {
			Message string
			Type    string
			Param   *string
			Code    *string
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Error.Type == "" {
		t.Errorf("body %q: %v", body, err)
	}
	if resp.StatusCode != status || !strings.Contains(got.Error.Message, message) {
		t.Errorf("%d %q, want %d %q", resp.StatusCode, got.Error.Message, status, message)
	}
	if kind := resp.Header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("content-type %q", kind)
	}
	if again := resp.Header.Get("Retry-After"); (status == 429 || status == 503) != (again != "") {
		t.Errorf("status %d with Retry-After %q", status, again)
	}
}

func TestWrongContentTypeAndMethod(t *testing.T) {
	g := newRig(t, func(http.ResponseWriter, *http.Request) { t.Error("the backend was asked") })
	resp, err := http.Post(g.url+"/v1/chat/completions", "application/x-www-form-urlencoded", strings.NewReader(chat))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	wantError(t, resp, string(b), 415, "must be application/json")
	if resp, err = http.Get(g.url + "/v1/chat/completions"); err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	wantError(t, resp, string(b), 405, "GET is not allowed here")
}

func TestBodyOfUnknownLengthIsBounded(t *testing.T) {
	g := newRig(t, func(http.ResponseWriter, *http.Request) { t.Error("the backend was asked") })
	req := g.request(t.Context(), "/v1/chat/completions", "")
	req.Body, req.ContentLength = io.NopCloser(io.LimitReader(zeros{}, 1<<20)), -1
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	wantError(t, resp, string(b), 413, "larger than 4096 bytes")
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestBackendRefuses(t *testing.T) {
	g := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		_, _ = io.WriteString(w, `{"error":{"code":400,"message":"request exceeds","type":"exceed_context_size_error"}}`)
	})
	resp, body := g.post(t, "/v1/chat/completions", chat)
	wantError(t, resp, body, 400, "request exceeds")
	if !strings.Contains(body, "context_length_exceeded") {
		t.Error(body)
	}
}

func TestNotReady(t *testing.T) {
	g := newRig(t, func(http.ResponseWriter, *http.Request) { t.Error("the backend was asked") })
	g.serving.Store(nil)
	resp, body := g.post(t, "/v1/chat/completions", chat)
	wantError(t, resp, body, 503, why)
	if resp, err := http.Get(g.url + "/health"); err != nil || resp.StatusCode != 503 {
		t.Errorf("health %v, %v", resp, err)
	}
}

func TestHealthAndModels(t *testing.T) {
	g := newRig(t, nil)
	for path, want := range map[string]string{
		"/health": `"status":"ok"`, "/v1/models": `"data":[{"id":"smollm2","object":"model"`, "/models/smollm2": `"id":"smollm2"`,
		"/v1/models/a/b": `the model \"a/b\" does not exist here`,
	} {
		resp, err := http.Get(g.url + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(b), want) {
			t.Errorf("%s: %s, want %s", path, b, want)
		}
	}
}

// until waits for what nobody reports.
func until(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatal("it never came true")
		}
		runtime.Gosched()
	}
}

// blocked is a backend that answers when it is let, or never.
func blocked(asked chan<- struct{}, gone chan<- struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	}
}

func TestLostBackendIs503(t *testing.T) {
	tests := []struct {
		name    string
		backend func(g *rig, w http.ResponseWriter, r *http.Request)
		message string
	}{
		{
			name:    "it dies before the headers",
			backend: func(_ *rig, _ http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
			message: "the backend was lost",
		},
		{
			name: "it dies within the body",
			backend: func(_ *rig, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, "{")
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			},
			message: "the backend was lost",
		},
		{
			name: "it hangs, which the supervisor sees",
			backend: func(g *rig, _ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				g.serving.Store(nil)
				g.lose(supervise.ErrEnds)
				<-r.Context().Done()
			},
			message: why,
		},
	}
	for _, tt := range tests {
		for _, body := range []string{chat, strings.Replace(chat, "{", `{"stream":true,`, 1)} {
			t.Run(tt.name, func(t *testing.T) {
				var g *rig
				g = newRig(t, func(w http.ResponseWriter, r *http.Request) { tt.backend(g, w, r) })
				resp, answer := g.post(t, "/v1/chat/completions", body)
				wantError(t, resp, answer, 503, tt.message)
			})
		}
	}
}

// TestBrokenStreamEndsWithAnError in the form of the API that was asked; one that broke
// within an event is cut.
func TestBrokenStreamEndsWithAnError(t *testing.T) {
	const chatToken = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"
	const asked = `{"model":"smollm2","prompt":"a","stream_options":{"include_usage":true}}`
	guided := strings.Replace(chat, "{", `{"response_format":{"type":"json_object"},`, 1)
	tests := []struct {
		name, path, body, sent string
		kind                   enginepb.Backend_Kind
		want                   []string // what the last event holds; nil: the stream is cut
	}{
		{"chat", "/v1/chat/completions", chat, chatToken, enginepb.Backend_LLAMACPP, []string{"data: {\"error\":{", `"code":"backend_lost"`, `"type":"server_error"`}},
		{"within an event that is held back", "/v1/chat/completions", chat, chatToken[:20], enginepb.Backend_LLAMACPP, []string{"data: {\"error\":{", `"code":"backend_lost"`}},
		{"within an event", "/v1/completions", asked, chatToken[:20], enginepb.Backend_OPENAI, nil},
		{"bound to a form", "/v1/chat/completions", guided, chatToken, enginepb.Backend_LLAMACPP, []string{"data: {\"error\":{", `"code":"backend_lost"`}},
		{"messages", "/v1/messages", chat, "event: ping\ndata: {}\n\n", enginepb.Backend_LLAMACPP, []string{"event: error\n", `"type":"api_error"`, `"type":"error"}`}},
		{"a response made of a chat", "/v1/responses", `{"model":"smollm2","input":"hi"}`, chatToken, enginepb.Backend_LLAMACPP, []string{"event: response.failed\n", `"status":"failed"`, `"type":"response.failed"`}},
		{"a response of the backend's own", "/v1/responses", `{"model":"smollm2","input":"hi"}`, "data: {}\n\n", enginepb.Backend_OPENAI, []string{"event: error\n", `"sequence_number":1`, `"type":"error"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newRigOf(t, tt.kind, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, tt.sent)
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			})
			resp, err := http.DefaultClient.Do(g.request(t.Context(), tt.path, strings.Replace(tt.body, "{", `{"stream":true,`, 1)))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if tt.want == nil {
				if err == nil {
					t.Error("half a stream looks like a whole one")
				}
				return
			}
			events := strings.SplitAfter(strings.TrimSuffix(string(b), "\n\n"), "\n\n")
			for _, want := range tt.want {
				if last := events[len(events)-1]; err != nil || !strings.Contains(last, want) {
					t.Errorf("%v: the last event is %q, want %s in it", err, last, want)
				}
			}
			if usage := resp.Trailer.Get(headerUsage); usage != "" {
				t.Errorf("usage %q of a broken stream", usage)
			}
			want := fmt.Sprintf(`millrace_engine_requests_total{outcome="failed",path=%q} 1`, strings.TrimPrefix(tt.path, "/v1"))
			until(t, func() bool { return strings.Contains(exposition(t, g), want) })
		})
	}
}

// TestAccountsOfCutAnswers are kept by the number that extproc has given to the request, with what
// was generated until then.
func TestAccountsOfCutAnswers(t *testing.T) {
	const token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"
	tests := []struct {
		name, number string
		stream       bool
		want         []meter.Account
	}{
		{"a stream", "1f", true, []meter.Account{{Request: 31, Generated: 3}}},
		{"an answer as a whole", "1f", false, []meter.Account{{Request: 31, Generated: 3}}},
		{"no number", "", true, nil},
		{"a number that is none", "NaN", true, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sent, gone := make(chan struct{}, 1), make(chan struct{}, 1)
			g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // else it does not see who leaves
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, strings.Repeat(token, 3)) // all of it is read at once
				w.(http.Flusher).Flush()
				sent <- struct{}{}
				<-r.Context().Done()
				gone <- struct{}{}
			})
			body := chat
			if tt.stream {
				body = strings.Replace(chat, "{", `{"stream":true,`, 1)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req := g.request(ctx, "/v1/chat/completions", body)
			req.Header.Set(wire.RequestHeader, tt.number)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if resp, err := http.DefaultClient.Do(req); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}()
			<-sent
			until(t, func() bool { return g.gate.Load().Running == 1 && g.meter.Served().Unix() > 0 })
			cancel()
			<-gone
			<-done
			until(t, func() bool { return g.meter.Totals().Generated == 3 && len(g.spans.Ended()) == 3 })
			var got []meter.Account
			for _, c := range g.meter.Accounts(time.Now()) {
				got = append(got, meter.Account{Request: c.Request, Generated: c.Generated})
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("reported %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestClientThatLeavesStopsTheBackend(t *testing.T) {
	asked, gone := make(chan struct{}, 9), make(chan struct{}, 9)
	g := newRig(t, blocked(asked, gone))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		_, _ = http.DefaultClient.Do(g.request(ctx, "/v1/chat/completions", chat))
		close(done)
	}()
	<-asked
	cancel()
	<-gone // the backend's own request ended
	<-done
	until(t, func() bool { return g.gate.Load().Running == 0 })
}

func TestQueueIsBounded(t *testing.T) {
	asked, gone := make(chan struct{}, 9), make(chan struct{}, 9)
	g := newRig(t, blocked(asked, gone))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for range 2 {
		go func() {
			if resp, err := http.DefaultClient.Do(g.request(ctx, "/v1/chat/completions", chat)); err == nil {
				resp.Body.Close()
			}
			done <- struct{}{}
		}()
	}
	<-asked
	until(t, func() bool { return g.gate.Load().Waiting == 1 })
	if l := g.gate.Load(); l.Tokens < 2 {
		t.Errorf("load %+v", l)
	}
	resp, body := g.post(t, "/v1/chat/completions", chat)
	wantError(t, resp, body, 429, "queue is full")
	cancel()
	<-done
	<-done
}

func TestClosedDoorSendsTheQueueAway(t *testing.T) {
	asked, gone := make(chan struct{}, 9), make(chan struct{}, 9)
	g := newRig(t, blocked(asked, gone))
	ctx, cancel := context.WithCancel(t.Context())
	statuses := make(chan int, 2)
	ask := func() {
		resp, err := http.DefaultClient.Do(g.request(ctx, "/v1/chat/completions", chat))
		if err != nil {
			statuses <- 0
			return
		}
		resp.Body.Close()
		statuses <- resp.StatusCode
	}
	go ask()
	<-asked
	go ask()
	until(t, func() bool { return g.gate.Load().Waiting == 1 })
	g.serving.Store(nil)
	g.closeDoor(supervise.ErrEnds)
	if status := <-statuses; status != 503 {
		t.Errorf("the one that waited got %d, want 503", status)
	}
	if g.gate.Load().Running != 1 {
		t.Error("the running one was sent away as well")
	}
	cancel()
	<-statuses
}

func TestOneTrace(t *testing.T) {
	var parent string
	g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		parent = r.Header.Get("Traceparent")
		_, _ = io.WriteString(w, `{"timings":{"cache_n":24,"prompt_n":15,"prompt_ms":0.001,"predicted_n":48,"predicted_ms":0.002}}`)
	})
	req := g.request(t.Context(), "/v1/chat/completions", chat)
	req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	until(t, func() bool { return len(g.spans.Ended()) == 5 })
	byName := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range g.spans.Ended() {
		byName[s.Name()] = s
	}
	backend, server := g.spans.Ended()[0], g.spans.Ended()[4]
	for name, parent := range map[string]sdktrace.ReadOnlySpan{"admission": server, "prefill": backend, "decode": backend} {
		s := byName[name]
		if s == nil || s.Parent().SpanID() != parent.SpanContext().SpanID() || s.StartTime().Before(parent.StartTime()) || s.EndTime().After(server.EndTime()) {
			t.Errorf("%s is no part of %s: %+v", name, parent.Name(), s)
		}
	}
	if backend.Name() != "backend" || backend.Parent().SpanID() != server.SpanContext().SpanID() {
		t.Errorf("%s is no child of %s", backend.Name(), server.Name())
	}
	if server.Name() != "POST /v1/chat/completions" || server.Parent().SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("%s has the parent %v", server.Name(), server.Parent().SpanID())
	}
	if id := backend.SpanContext().SpanID().String(); !strings.Contains(parent, id) {
		t.Errorf("the backend was told %q, want %s", parent, id)
	}
	for _, want := range []attribute.KeyValue{
		attribute.String("gen_ai.request.model", "smollm2"), attribute.Int("gen_ai.usage.input_tokens", 39), attribute.Int("gen_ai.usage.output_tokens", 48),
	} {
		found := false
		for _, a := range server.Attributes() {
			found = found || a == want
		}
		if !found {
			t.Errorf("no %v in %v", want, server.Attributes())
		}
	}
}

func exposition(t *testing.T, g *rig) string {
	t.Helper()
	families, err := g.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			fmt.Fprintf(&s, "%s{%s} %v\n", f.GetName(), strings.Join(labels, ","), m.GetCounter().GetValue()+m.GetGauge().GetValue()+float64(m.GetHistogram().GetSampleCount()))
		}
	}
	return s.String()
}

func TestMetrics(t *testing.T) {
	g := newRig(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{"+timings+"}") })
	g.meter.SetKV(100, 1000)
	g.post(t, "/v1/chat/completions", chat)
	problems, err := testutil.GatherAndLint(g.metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "vllm:") { // those names are vLLM's
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	text := exposition(t, g)
	for _, want := range []string{
		`vllm:num_requests_running{model_name="smollm2"} 0`, `vllm:num_requests_waiting{model_name="smollm2"} 0`,
		`vllm:kv_cache_usage_perc{model_name="smollm2"} 0.1`, `vllm:prompt_tokens_total{model_name="smollm2"} 39`,
		`vllm:generation_tokens_total{model_name="smollm2"} 48`, `vllm:time_to_first_token_seconds{model_name="smollm2"} 1`,
		`vllm:e2e_request_latency_seconds{model_name="smollm2"} 1`, `vllm:prefix_cache_queries_total{model_name="smollm2"} 39`,
		`gen_ai_server_request_duration_seconds{error_type="",gen_ai_operation_name="chat",gen_ai_provider_name="millrace",gen_ai_request_model="smollm2"} 1`,
		`gen_ai_server_time_to_first_token_seconds{gen_ai_operation_name="chat",gen_ai_provider_name="millrace",gen_ai_request_model="smollm2"} 1`,
		`gen_ai_server_time_per_output_token_seconds{gen_ai_operation_name="chat",gen_ai_provider_name="millrace",gen_ai_request_model="smollm2"} 1`,
		`gen_ai_client_token_usage{gen_ai_operation_name="chat",gen_ai_provider_name="millrace",gen_ai_request_model="smollm2",gen_ai_token_type="output"} 1`,
		`vllm:prefix_cache_hits_total{model_name="smollm2"} 24`, `millrace_engine_state_info{state="READY"} 1`,
		`millrace_engine_requests_total{outcome="gone",path="/responses"} 0`, `millrace_engine_requests_total{outcome="ok",path="/chat/completions"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var last tail
	var all []byte
	for i := range 2000 {
		chunk := []byte(strings.Repeat(fmt.Sprint(i), i%37))
		all = append(all, chunk...)
		last.keep(chunk)
		if n := min(len(all), 4<<10); len(last) < n || string(last[len(last)-n:]) != string(all[len(all)-n:]) {
			t.Fatalf("after %d bytes the end is lost", len(all))
		}
		if cap(last) > 16<<10 {
			t.Fatalf("it grows: %d bytes", cap(last))
		}
	}
	last.keep(make([]byte, 100<<10))
	if len(last) > 8<<10 {
		t.Errorf("%d bytes kept", len(last))
	}
}

// TestOperations sends what is no chat to the backend as it came, to the path that it
// has there.
func TestOperations(t *testing.T) {
	const form = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsmollm2\r\n--b--\r\n"
	tests := []struct {
		path, kind, body string
		status           int
		at               string // the backend
	}{
		{"/tokenize", "application/json", `{"content":"hi"}`, 200, "/tokenize"},
		{"/v1/tokenize", "application/json", `{"model":"smollm2","prompt":"hi"}`, 200, "/tokenize"},
		{"/tokenize", "application/json", `{"model":"x"}`, 404, ""},
		{"/detokenize", "application/json", `{"tokens":[1]}`, 200, "/detokenize"},
		{"/v2/rerank", "application/json", `{"model":"smollm2","query":"hi","documents":["a"]}`, 200, "/v1/rerank"},
		{"/v1/rerank", "application/json", `{"model":"smollm2","documents":["a"]}`, 400, ""},
		{"/score", "application/json", `{"model":"smollm2","text_1":"a","text_2":"b"}`, 200, "/v1/score"},
		{"/v1/audio/transcriptions", "multipart/form-data; boundary=b", form, 200, "/v1/audio/transcriptions"},
		{"/audio/translations", "multipart/form-data; boundary=b", form, 200, "/v1/audio/translations"},
		{"/v1/audio/transcriptions", "application/json", `{"model":"smollm2"}`, 415, ""},
		{"/v1/rerank", "multipart/form-data; boundary=b", form, 415, ""},
	}
	for _, tt := range tests {
		t.Run(tt.path+" "+tt.kind, func(t *testing.T) {
			at := ""
			g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				at = r.URL.Path
				if b, _ := io.ReadAll(r.Body); string(b) != tt.body || r.Header.Get("Content-Type") != tt.kind {
					t.Errorf("the backend got %q, %s", r.Header.Get("Content-Type"), b)
				}
				_, _ = io.WriteString(w, `{"tokens":[1,2]}`)
			})
			req := g.request(t.Context(), tt.path, tt.body)
			req.Header.Set("Content-Type", tt.kind)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != tt.status || at != tt.at {
				t.Errorf("status %d, at the backend %q; want %d, %q", resp.StatusCode, at, tt.status, tt.at)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(chat))
	f.Add([]byte(`{"model":"m","messages":[],"stream":1,"max_tokens":1e99}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, op := range operations {
			q, err := parse(op, body)
			named := q.model != "" || op.AnyModel || op.Reader == apis.Form
			if err == nil && (!named || q.limit < 0) {
				t.Errorf("accepted %+v", q)
			}
		}
	})
}

// TestBodiesAreBounded sends bodies that never end until there is no room: one more is
// refused, also with a length that is not said, and when they are given up there is room.
func TestBodiesAreBounded(t *testing.T) {
	g := newRig(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	g.serving.Load().Assignment.Backend.MaxBodyBytes = Bodies
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	begun := make(chan struct{})
	// A client that waits for 100 Continue sends when its body is read.
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	var all sync.WaitGroup
	var ends []*io.PipeWriter
	const size = Bodies / 4
	for range 4 {
		body, end := io.Pipe()
		ends = append(ends, end)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/v1/chat/completions", body)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = size
		r.Header.Set("Expect", "100-continue")
		all.Go(func() {
			if resp, err := client.Do(r); err == nil {
				resp.Body.Close()
			}
		})
		go func() {
			_, _ = end.Write([]byte(" "))
			begun <- struct{}{}
		}()
	}
	for range 4 {
		<-begun
	}
	for _, length := range []int64{1000, -1} {
		r, err := http.NewRequest(http.MethodPost, g.url+"/v1/chat/completions", strings.NewReader(strings.Repeat(" ", 1000)))
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		wantError(t, resp, string(body), 503, "as large as they may be")
	}
	giveUp()
	for _, end := range ends {
		end.Close()
	}
	all.Wait()
	for began := time.Now(); ; {
		resp, _ := g.post(t, "/v1/chat/completions", "{")
		if resp.StatusCode == 400 {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("status %d, though nobody is there", resp.StatusCode)
		}
	}
}
