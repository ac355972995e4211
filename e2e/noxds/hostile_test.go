package noxds

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

var lasts = flag.Duration("lasts", 40*time.Second, "how long TestHostileAfternoon keeps the fleet busy")

const (
	hostileClients = 5
	poisonEvery    = 7 * time.Second
	restartAfter   = 3 * time.Second // of an engine that died
	// slowness is how long the slow engine says nothing, whatever it is asked; for its health
	// that holds every other moodEvery.
	slowness, moodEvery = 8 * time.Second, 20 * time.Second
	// What a program may take more than before it was busy.
	moreFiles, moreGoroutines, moreMemory = 64, 128, 160 << 20
)

// TestHostileAfternoon keeps six engines busy, of which two are well, one publishes lies, one
// is slow to say anything, one dies of some bodies, and one's certificate has ended. No request
// fails, nothing leaks, and /readyz says of each of the four what to do. It takes -lasts.
func TestHostileAfternoon(t *testing.T) {
	f, ca := newOdd(t), newPKI(t)
	more := rig.MustPorts(t, 3)
	address := map[string]string{
		"well 1": rig.Address(f.ports.engines[0]), "well 2": rig.Address(f.ports.engines[1]), "liar": rig.Address(f.ports.engines[2]),
		"slow": rig.Address(more[0]), "mortal": rig.Address(more[1]), "expired": rig.Address(more[2]),
	}
	f.startEngine(0)
	f.startEngine(1)
	liar, slow, old := &stranger{silent: 100 * time.Millisecond}, &stranger{silent: slowness, mute: true}, new(stranger)
	liar.page = lies
	liar.serve(t, address["liar"], nil)
	slow.serve(t, address["slow"], nil)
	mortal := &stranger{silent: 150 * time.Millisecond, mortal: true}
	die := mortal.revive(t, address["mortal"])
	pair, err := tls.X509KeyPair(ca.sign(t, -time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	old.serve(t, address["expired"], &tls.Config{Certificates: []tls.Certificate{pair}})

	f.write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	var text strings.Builder
	text.WriteString("endpoints:\n")
	for name, a := range address {
		kind, access := "vllm", ""
		if strings.HasPrefix(name, "well") {
			kind = "llamacpp"
		}
		if name == "expired" {
			access = ", tls: {ca: ca.pem}"
		}
		fmt.Fprintf(&text, "  - {address: %q, models: [smollm2], type: %s%s}\n", a, kind, access)
	}
	text.WriteString("policy: {flow: {gatewayTimeout: 60s}}\n")
	f.write(t, "fleet.yaml", text.String())
	for _, name := range []string{"well 1", "well 2"} {
		f.await(t, name+" serves", func() error { return rig.Healthy(address[name]) })
	}
	f.startExtproc()
	f.write(t, "envoy.yaml", f.adapt(t, "standalone.yaml"))
	f.envoy = rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	f.await(t, "Envoy has those that speak plain text and answer in time", func() error { return f.hosts(4) })
	f.await(t, "Envoy listens", func() error {
		_, err := rig.Get(f.url("/v1/models"))
		return err
	})

	f.busy(t, 5*time.Second, mortal).report(t, "warm")
	before := f.measure(t)
	f.busy(t, *lasts, mortal).report(t, lasts.String())
	if n := mortal.died.Load(); n == 0 {
		t.Error("no body has killed an engine")
	}
	for name, s := range map[string]*stranger{"liar": liar, "slow": slow, "mortal": mortal, "expired": old} {
		t.Logf("%s: asked %d times, answered %d, died %d", name, s.asked.Load(), s.answered.Load(), s.died.Load())
	}
	if n := old.asked.Load(); n > 0 {
		t.Errorf("the engine whose certificate has ended was asked %d times", n)
	}
	die()
	f.await(t, "/readyz says what to do about each of the four", func() error {
		return f.advises(address["liar"], address["slow"], address["mortal"], address["expired"])
	})
	var after map[string]taken
	if err := rig.Poll(30*time.Second, func() error {
		after = f.measure(t)
		return leaks(before, after)
	}); err != nil {
		t.Error(err)
	}
	for name, a := range after {
		b := before[name]
		t.Logf("%s: %d → %d MiB, %d → %d descriptors, %.0f → %.0f goroutines", name, b.resident>>20, a.resident>>20, b.files, a.files, b.goroutines, a.goroutines)
	}
}

// advises says which of the addresses /readyz does not name together with a way out.
func (f *fleet) advises(addresses ...string) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+f.admin()+"/readyz", nil)
	if err != nil {
		return err
	}
	a, err := rig.Do(req) // with conditions or without
	if err != nil {
		return err
	}
	var all []struct{ Code, Text, Next string }
	if err := json.Unmarshal(a.Body, &all); err != nil {
		return fmt.Errorf("%w: %s", err, a.Body)
	}
	for _, address := range addresses {
		named := false
		for _, c := range all {
			named = named || strings.Contains(c.Text, address) && c.Next != ""
		}
		if !named {
			err = errors.Join(err, fmt.Errorf("%s is not named: %s", address, a.Body))
		}
	}
	return err
}

// began is when the tests began: the mood of the slow engine goes by it.
var began = time.Now()

// stranger is an engine that somebody else runs, with its own ways.
type stranger struct {
	silent time.Duration            // before it answers a request
	mute   bool                     // whether before it answers anything
	page   func(n int, w io.Writer) // its n-th page of metrics; nil: of an idle engine
	mortal bool                     // whether some bodies kill it
	kill   atomic.Pointer[func()]   // ends it

	asked, answered, died, pages atomic.Int32
}

// serve starts the engine; end cuts all that it has.
func (s *stranger) serve(t *testing.T, address string, c *tls.Config) (end func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return s.serveAt(t, l, c)
}

func (s *stranger) serveAt(t *testing.T, l net.Listener, c *tls.Config) (end func()) {
	if c != nil {
		l = tls.NewListener(l, c)
	}
	server := &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0)}
	end = func() { _ = server.Close() }
	s.kill.Store(&end)
	go server.Serve(l)
	t.Cleanup(end)
	return end
}

// revive starts the engine, and again some time after each of its deaths; stop ends it for good.
func (s *stranger) revive(t *testing.T, address string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	died := make(chan struct{}, 1)
	start := func(l net.Listener) {
		end := s.serveAt(t, l, nil)
		kill := func() {
			end()
			select {
			case died <- struct{}{}:
			default:
			}
		}
		s.kill.Store(&kill)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	start(l)
	done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-died:
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(restartAfter):
			}
			if l, err := net.Listen("tcp", address); err == nil {
				start(l)
			} else {
				t.Errorf("the engine that died: %v", err)
				return
			}
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		done.Wait()
		(*s.kill.Load())()
	})
	t.Cleanup(stop)
	return stop
}

func (s *stranger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	posted := r.Method == http.MethodPost
	if posted {
		s.asked.Add(1)
	}
	if s.mortal && bytes.Contains(body, []byte("POISON")) {
		s.died.Add(1)
		(*s.kill.Load())()
		return
	}
	well := r.URL.Path == "/health" && time.Since(began)/moodEvery%2 == 0
	if posted || s.mute && !well {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(s.silent):
		}
	}
	switch {
	case r.URL.Path == "/metrics" && s.page != nil:
		s.page(int(s.pages.Add(1)), w)
	case r.URL.Path == "/metrics":
		_, _ = io.WriteString(w, "vllm:num_requests_running{model_name=\"smollm2\"} 0\nvllm:num_requests_waiting{model_name=\"smollm2\"} 0\nvllm:kv_cache_usage_perc{model_name=\"smollm2\"} 0\n")
	case r.URL.Path == "/v1/models":
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"smollm2","object":"model"}]}`)
	case posted:
		s.answered.Add(1)
		answerAsAsked(w, r.URL.Path, body)
	}
}

// answerAsAsked writes an answer of one word in the form that was asked for.
func answerAsAsked(w http.ResponseWriter, path string, body []byte) {
	var q struct{ Stream bool }
	_ = json.Unmarshal(body, &q)
	const usage = `"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}`
	switch {
	case q.Stream:
		w.Header().Set("content-type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"id":"x","object":"chat.completion.chunk","model":"smollm2","choices":[{"index":0,"delta":{"role":"assistant","content":"bread"},"finish_reason":null}]}`+"\n\n"+
			`data: {"id":"x","object":"chat.completion.chunk","model":"smollm2","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
	case strings.HasSuffix(path, "/v1/completions"):
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, `{"id":"x","object":"text_completion","model":"smollm2","choices":[{"index":0,"text":"bread","finish_reason":"stop"}],`+usage+`}`)
	default:
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, `{"id":"x","object":"chat.completion","model":"smollm2","choices":[{"index":0,"message":{"role":"assistant","content":"bread"},"finish_reason":"stop"}],`+usage+`}`)
	}
}

// lies are pages whose gauges are no numbers or too large, and whose counters shrink.
func lies(n int, w io.Writer) {
	gauge := []string{"NaN", "1e300", "-5", "+Inf"}[n%4]
	fmt.Fprintf(w, "vllm:num_requests_running{model_name=\"smollm2\"} %s\nvllm:num_requests_waiting{model_name=\"smollm2\"} %s\nvllm:kv_cache_usage_perc{model_name=\"smollm2\"} %s\n", gauge, gauge, gauge)
	for _, counter := range []string{"prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "request_success"} {
		fmt.Fprintf(w, "vllm:%s_total{model_name=\"smollm2\"} %d\n", counter, 1<<62/n)
	}
}

// asked counts how requests of a busy time ended.
type asked struct {
	answered, failed, cut atomic.Int64 // cut: a stream that had begun when its engine died
	mu                    sync.Mutex
	kinds                 map[string]int
	faults                []string // of the first that failed
}

func (a *asked) report(t *testing.T, name string) {
	t.Helper()
	t.Logf("%s: %d answered %v, %d failed, %d streams cut", name, a.answered.Load(), a.kinds, a.failed.Load(), a.cut.Load())
	if a.answered.Load() == 0 {
		t.Error("nothing was answered")
	}
	for _, fault := range a.faults {
		t.Error(fault)
	}
}

var errCut = errors.New("a stream was cut")

// busy has clients ask for so long, and beside them one that sends what kills.
func (f *fleet) busy(t *testing.T, lasts time.Duration, mortal *stranger) *asked {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	a := &asked{kinds: map[string]int{}}
	count := func(kind string, err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.kinds[kind]++
		switch {
		case errors.Is(err, errCut):
			a.cut.Add(1)
		case err != nil:
			if a.failed.Add(1) <= 20 {
				a.faults = append(a.faults, fmt.Sprintf("%s %s: %v", time.Now().Format(time.TimeOnly), kind, err))
			}
		default:
			a.answered.Add(1)
		}
	}
	var all sync.WaitGroup
	for c := range hostileClients {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(c)))
			var talk []rig.Message
			for n := 0; ctx.Err() == nil; n++ {
				kind, err := f.turn(r, c, n, &talk)
				count(kind, err)
			}
		})
	}
	all.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			before := mortal.died.Load()
			// What is sent until one has died; those that others answer are answered.
			for i := 0; ctx.Err() == nil && i < 20 && mortal.died.Load() == before; i++ {
				_, _, err := rig.Complete(context.Background(), f.url(rig.ChatPath), rig.Ask(2, fmt.Sprintf("POISON %d %d of %d", n, i, time.Now().UnixNano())))
				count("poison", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(poisonEvery):
			}
		}
	})
	all.Wait()
	return a
}

// turn sends a client's next request, of one of several kinds.
func (f *fleet) turn(r *rand.Rand, client, n int, talk *[]rig.Message) (kind string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	text := fmt.Sprintf("client %d, question %d of %d: %s", client, n, time.Now().UnixNano(), strings.Repeat("and more ", r.IntN(30)))
	session := []string{"x-session-id", fmt.Sprint("client-", client)}
	switch r.IntN(5) {
	case 0:
		q := rig.Ask(1+r.IntN(6), text)
		q.Stream = true
		s, err := rig.Stream(ctx, f.url(rig.ChatPath), q, nil)
		if s.Chunks > 0 && err != nil {
			return "stream", fmt.Errorf("%w: %w", errCut, err)
		}
		return "stream", err
	case 1:
		_, _, err := rig.Complete(ctx, f.url(rig.CompletionPath), map[string]any{"model": rig.Model, "prompt": text, "max_tokens": 1 + r.IntN(4)})
		return "completion", err
	case 2:
		_, err := rig.Get(f.url("/v1/models"))
		return "models", err
	case 3:
		_, _, err := rig.Complete(ctx, f.url(rig.ChatPath), rig.Ask(1+r.IntN(4), text))
		return "question", err
	}
	if len(*talk) > 8 {
		*talk = nil
	}
	*talk = append(*talk, rig.User(text))
	c, _, err := rig.Complete(ctx, f.url(rig.ChatPath), rig.Chat{Model: rig.Model, Messages: *talk, MaxTokens: 1 + r.IntN(6)}, session...)
	if err == nil {
		*talk = append(*talk, rig.Assistant(c.Choices[0].Message.Content))
	}
	return "conversation", err
}

// taken is what one program takes.
type taken struct {
	resident   uint64
	files      int
	goroutines float64 // 0: it is no program of Go
	limit      float64 // of its memory, in bytes; 0: it says none
}

func (f *fleet) measure(t *testing.T) map[string]taken {
	t.Helper()
	all := map[string]taken{}
	for name, pid := range map[string]int{"extproc": f.extproc.PID(), "envoy": f.envoy.PID()} {
		st, err := proc.State(pid)
		if err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		one := taken{resident: st.RSS, files: len(files)}
		if name == "extproc" {
			one.goroutines = rig.MustMetric(t, f.admin(), "go_goroutines")
			one.limit = rig.MustMetric(t, f.admin(), "millrace_memory_limit_bytes")
		}
		all[name] = one
	}
	return all
}

// leaks says what is taken more than before, and more than it should.
func leaks(before, after map[string]taken) (err error) {
	for name, a := range after {
		b := before[name]
		if a.files > b.files+moreFiles || a.goroutines > b.goroutines+moreGoroutines || a.resident > b.resident+moreMemory || a.limit > 0 && float64(a.resident) > a.limit {
			err = errors.Join(err, fmt.Errorf("%s takes %+v, and took %+v", name, a, b))
		}
	}
	return err
}
