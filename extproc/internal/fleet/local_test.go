package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/extproc/internal/eds"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
)

// world is a fleet of fake engines.
type world struct {
	mu     sync.Mutex
	pages  map[string]string // by URL; what is missing is 404
	errs   map[string]error  // by host
	asked  map[string]int    // by URL
	tables []*pick.Table
	done   []pick.Usage
	reg    *prometheus.Registry    // of the metrics of what follows it
	dns    map[string][]netip.Addr // what is missing is an error
	hosts  []eds.Host              // as published last
}

func (w *world) lookup(_ context.Context, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dns[name] == nil {
		return nil, errors.New("no such host")
	}
	return w.dns[name], nil
}

func (w *world) take(hosts []eds.Host) { w.set(func() { w.hosts = hosts }) }

func (w *world) get(ctx context.Context, r *http.Request, buf []byte) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	url := r.URL.String()
	w.asked[url]++
	if err := w.errs[r.URL.Host]; err != nil {
		return buf[:0], err
	}
	text, ok := w.pages[url]
	if !ok {
		return buf[:0], scrape.StatusError(404)
	}
	return append(buf[:0], text...), nil
}

func (w *world) Publish(t *pick.Table) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables = append(w.tables, t)
}

func (w *world) Measured(_ *pick.Model, _ *pick.Endpoint, u pick.Usage, _, _ float64, _ time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, u)
}

func (w *world) table() *pick.Table {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tables[len(w.tables)-1]
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	// As editors do: a new file under the old name.
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

const three = `
endpoints:
  - {address: "10.0.0.1:80", models: [m, n], type: vllm, zone: z}
  - {address: "10.0.0.2:80", models: [m], type: llamacpp}
  - {address: "10.0.0.3:80", models: [m]}
models: [{name: n, default: true}]
policy: {sessions: {header: x-chat}, retries: {standard: 3}}
`

func newLocal(t *testing.T, text string) (*Local, *world) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	write(t, path, text)
	w := &world{pages: map[string]string{}, errs: map[string]error{}, asked: map[string]int{}, reg: prometheus.NewRegistry()}
	for i := range 3 {
		w.pages[fmt.Sprintf("http://10.0.0.%d:80/health", i+1)] = "ok"
	}
	w.pages["http://10.0.0.1:80/metrics"] = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:request_prompt_tokens_sum 100\n"
	w.pages["http://10.0.0.2:80/metrics"] = "llamacpp:requests_processing 0\n"
	l, err := NewLocal(t.Context(), LocalOptions{File: path, Picker: w, Lookup: w.lookup, Hosts: w.take}, slog.New(slog.NewTextHandler(io.Discard, nil)), w.reg)
	if err != nil {
		t.Fatal(err)
	}
	l.prober = probe.New(probe.Options{Program: "extproc", Models: true, Observed: l.observed, Working: l.working, Get: w.get}, l.log, prometheus.NewRegistry())
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	if err := l.settle(time.Now()); err != nil {
		t.Fatal(err)
	}
	return l, w
}

// run runs l in a bubble, with f beside it.
func (l *Local) run(t *testing.T, f func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	f()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLocalPublishesTheFile(t *testing.T) {
	_, w := newLocal(t, three)
	table := w.table()
	m, n := table.Models["m"], table.Models["n"]
	if m == nil || n == nil || len(m.Endpoints) != 3 || len(n.Endpoints) != 1 || table.Default != n {
		t.Fatalf("table %+v", table)
	}
	e := m.Endpoints[0]
	if e.Address != "10.0.0.1:80" || e.Zone != "z" || e.Nodes[0] != "10.0.0.1" || e.State != pick.Ready || e.KV == nil || e != n.Endpoints[0] {
		t.Errorf("endpoint %+v", e)
	}
	if p := table.Policy; p.SessionHeader != "x-chat" || p.Candidates != 3 || p.Critical != 4 || p.Cookies == nil {
		t.Errorf("policy %+v", p)
	}
}

func TestLocalProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		l.run(t, func() {
			time.Sleep(time.Minute)
			if c := l.Conditions(); len(c) > 0 {
				t.Errorf("conditions %v", c)
			}
			w.set(func() {
				if n := w.asked["http://10.0.0.1:80/metrics"]; n < 10 || n > 20 || w.asked["http://10.0.0.1:80/health"] < 25 || w.asked["http://10.0.0.1:80/health"] > 45 {
					t.Errorf("an idle endpoint was asked %d times in a minute, and for its health: %v", n, w.asked)
				}
				w.pages["http://10.0.0.1:80/metrics"] = "vllm:num_requests_running 7\nvllm:num_requests_waiting 3\nvllm:kv_cache_usage_perc 0.5\nvllm:request_prompt_tokens_sum 150\n"
			})
			time.Sleep(10 * time.Second)
			before := 0
			w.set(func() { before = w.asked["http://10.0.0.1:80/metrics"] })
			time.Sleep(10 * time.Second)
			e := w.table().Models["m"].Endpoints[0]
			w.set(func() {
				if n := w.asked["http://10.0.0.1:80/metrics"] - before; n < 25 || n > 45 {
					t.Errorf("a busy endpoint was asked %d times in 10 s", n)
				}
				if len(w.done) != 1 || w.done[0].Prompt != 50 {
					t.Errorf("measured %v", w.done)
				}
			})
			if e.Slots != 7 {
				t.Errorf("%d slots, though 3 requests wait while 7 run", e.Slots)
			}
		})
	})
}

func TestLocalSaysWhichModelsAreOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		list := func(text string) {
			for i := range 3 {
				w.pages[fmt.Sprintf("http://10.0.0.%d:80/v1/models", i+1)] = text
			}
		}
		list(`{"data":[{"id":"M"},{"id":"n"}]}`)
		l.run(t, func() {
			time.Sleep(5 * time.Second)
			got := text(l.Conditions(), "other-models")
			want := `3 of 3 endpoints do not list the models that the fleet says they serve: 10.0.0.1:80 (it lists other models: not "m", but "M"), ` +
				`10.0.0.2:80 (it lists other models: not "m", but "M", "n"), 10.0.0.3:80 (it lists other models: not "m", but "M", "n"); requests go there all the same`
			if got != want {
				t.Errorf("condition %q, want %q", got, want)
			}
			if e := w.table().Models["m"].Endpoints; len(e) != 3 || e[0].State != pick.Ready {
				t.Errorf("endpoints %v", e)
			}
			w.set(func() { list(`{"data":[{"id":"n"},{"id":"m"}]}`) })
			time.Sleep(20 * time.Second)
			if c := l.Conditions(); len(c) > 0 {
				t.Errorf("with the right names: %v", c)
			}
			w.set(func() { clear(w.asked) })
			time.Sleep(5 * time.Minute)
			w.set(func() {
				if n := w.asked["http://10.0.0.1:80/v1/models"]; n < 2 || n > 8 { // every two minutes, and for its context every minute
					t.Errorf("asked for its models %d times in five minutes", n)
				}
			})
		})
	})
}

func TestLocalForgetsTheCacheOfARestartedEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		l.run(t, func() {
			time.Sleep(time.Second)
			before := w.table().Models["m"].Endpoints[0].KV
			w.set(func() { w.pages["http://10.0.0.1:80/metrics"] = "vllm:request_prompt_tokens_sum 1\n" })
			time.Sleep(10 * time.Second)
			if after := w.table().Models["m"].Endpoints[0].KV; after == before {
				t.Error("counters went back, and the cache is still believed in")
			}
		})
	})
}

func TestLocalHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		states := func() (all []pick.State) {
			for _, e := range w.table().Models["m"].Endpoints {
				all = append(all, e.State)
			}
			return all
		}
		l.run(t, func() {
			time.Sleep(time.Second)
			w.set(func() {
				w.errs["10.0.0.1:80"] = fmt.Errorf("%w: connection refused", scrape.ErrGone)
				w.errs["10.0.0.2:80"] = scrape.ErrSilent
				w.pages["http://10.0.0.2:80/metrics"] = "something else 1\n"
				delete(w.pages, "http://10.0.0.3:80/health") // 404: lives
			})
			time.Sleep(time.Minute)
			if got, want := states(), []pick.State{pick.NotReady, pick.NotReady, pick.Ready}; !slices.Equal(got, want) {
				t.Errorf("states %v, want %v", got, want)
			}
			if c := l.Conditions(); len(c) != 1 || c[0].Code != "endpoints-down" || !strings.Contains(c[0].Text, "2 of 3") {
				t.Errorf("conditions %v", c)
			}
			w.set(func() { clear(w.errs) })
			time.Sleep(3 * time.Second)
			if got, want := states(), []pick.State{pick.Ready, pick.Ready, pick.Ready}; !slices.Equal(got, want) {
				t.Errorf("states %v, want %v", got, want)
			}
			if c := l.Conditions(); len(c) != 1 || c[0].Code != "no-metrics" || !strings.Contains(c[0].Text, "none of the series of llamacpp") {
				t.Errorf("conditions %v", c)
			}
		})
	})
}

func TestLocalReadsTheFileAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		l.run(t, func() {
			time.Sleep(time.Second)
			old := w.table()
			write(t, l.options.File, "endpoints: [{adress: x}]")
			time.Sleep(time.Second)
			if c := l.Conditions(); len(c) != 1 || c[0].Code != "fleet-file" || !strings.Contains(c[0].Text, "adress: unknown field") {
				t.Errorf("conditions %v", c)
			}
			if got := testutil.ToFloat64(l.metrics.good); got != 0 || w.table() != old {
				t.Errorf("a bad file: good %v, another table %v", got, w.table() != old)
			}
			write(t, l.options.File, strings.Replace(three, "10.0.0.3:80", "10.0.0.4:80", 1))
			time.Sleep(time.Second)
			es := w.table().Models["m"].Endpoints
			if len(es) != 3 || es[2].Address != "10.0.0.4:80" || es[0].KV != old.Models["m"].Endpoints[0].KV || es[0].Live != old.Models["m"].Endpoints[0].Live {
				t.Errorf("endpoints %+v: the new one must be there, and the old one as it was", es)
			}
			if w.table().Policy.Prefixes != old.Policy.Prefixes {
				t.Error("the sessions are forgotten")
			}
			if got := testutil.ToFloat64(l.metrics.reads[false]); got != 1 || len(l.Conditions()) > 0 {
				t.Errorf("%v bad reads, conditions %v", got, l.Conditions())
			}
		})
	})
}

func TestLocalNeedsAGoodFileAtFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	_, err := NewLocal(t.Context(), LocalOptions{File: path, Picker: &world{}}, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	load := func(string) (pick.Counter, error) { return nil, errors.New("not a tokenizer") }
	write(t, path, "endpoints: [{address: \"10.0.0.1:80\", models: [m]}]\nmodels: [{name: m, tokenizer: t.json}]\npolicy: {sessions: {cookie: {keyFile: none}}}\n")
	err = CheckFile(path, load, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "keyFile: ") || !strings.Contains(err.Error(), "models[0].tokenizer: not a tokenizer") {
		t.Errorf("check: %v", err)
	}
	var notes strings.Builder
	write(t, path, "endpoints: [{address: \"10.0.0.1:80\", models: [m]}]\nmodels: [{name: m, tokenizer: t.json}]\n")
	err = CheckFile(path, func(string) (pick.Counter, error) { return doubting{7}, nil }, &notes)
	if err != nil || notes.String() != "models[0].tokenizer: chat template: tag include; the tokens of conversations are estimated\n" {
		t.Errorf("check of a template that isn't rendered: %v, notes %q", err, notes.String())
	}
	notes.Reset()
	err = CheckFile(path, func(string) (pick.Counter, error) { return wary{}, nil }, &notes)
	if err != nil || notes.String() != "models[0]: engine: of no known version\nmodels[0]: harmony: rendered in an unknown way\n" {
		t.Errorf("check of what engines render in their own ways: %v, notes %q", err, notes.String())
	}
}

// wary is a counter with caveats of engines.
type wary struct{ fixed }

func (wary) Caveats() []pick.Caveat {
	return []pick.Caveat{{Reason: "engine", Text: "of no known version"}, {Reason: "harmony", Text: "rendered in an unknown way"}}
}

// TestEnginesThatRenderInTheirOwnWays has conditions of a model that leave extproc ready, as
// long as its engines are such.
func TestEnginesThatRenderInTheirOwnWays(t *testing.T) {
	var all []pick.Caveat
	l := newLoader(func(string) (pick.Counter, error) { return caveats{all: &all}, nil }, slog.New(slog.DiscardHandler))
	l.want(full(t).tokenizers())
	have := map[string]pick.Counter{}
	for _, want := range [][]string{{"engine", "harmony", "clock"}, {"engine"}, nil} {
		all = []pick.Caveat{{Reason: "clock", Text: "not today", Now: func() bool { return false }}}
		for _, code := range want {
			all = append(all, pick.Caveat{Reason: code, Text: "why " + code})
		}
		l.pass(t.Context(), have)
		got := l.conditions()
		var codes []string
		for _, c := range got {
			codes = append(codes, c.Code)
			if c.Severity != obs.Degraded || !strings.Contains(c.Text, "why "+c.Code) || !strings.Contains(c.Text, "model m") || c.Next == "" {
				t.Errorf("condition %+v", c)
			}
		}
		if !slices.Equal(codes, want) {
			t.Errorf("conditions %v, want %v", codes, want)
		}
	}
	l.want(nil)
	if got := l.conditions(); len(got) != 0 {
		t.Errorf("conditions() = %v after the model has gone", got)
	}
}

// byEngine is a counter that has a caveat of each engine that is not vLLM.
type byEngine struct {
	fixed
	of []pick.Engine
}

func (byEngine) For(engines []pick.Engine) pick.Counter { return byEngine{of: engines} }

func (c byEngine) Caveats() (all []pick.Caveat) {
	for _, e := range c.of {
		if e.Kind != "vllm" {
			all = append(all, pick.Caveat{Reason: "engine", Text: "unknown " + e.Kind})
		}
	}
	return all
}

// TestEnginesOfPoolsWithTheSameModel has the conditions of all of them.
func TestEnginesOfPoolsWithTheSameModel(t *testing.T) {
	l := newLoader(func(string) (pick.Counter, error) { return byEngine{}, nil }, slog.New(slog.DiscardHandler))
	learned := func(kind string) *pick.Learned {
		m := &pick.Model{Name: "m", Learned: new(pick.Learned)}
		m.SetEngines([]pick.Engine{{Kind: kind}})
		return m.Learned
	}
	tgi, vllm, trt := reader{"m", learned("tgi")}, reader{"m", learned("vllm")}, reader{"m", learned("trt")}
	for _, tt := range []struct {
		all  []reader
		want string
	}{{[]reader{tgi, vllm}, "unknown tgi"}, {[]reader{tgi, trt, tgi, vllm}, "unknown tgi unknown trt"}, {[]reader{vllm, vllm}, ""}} {
		l.want(map[string][]reader{"t.gguf": tt.all})
		l.pass(t.Context(), map[string]pick.Counter{})
		var got []string
		for _, c := range l.conditions() {
			got = append(got, strings.TrimPrefix(c.Text, "model m: "))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("conditions %q, want %q", got, tt.want)
		}
	}
}

// caveats is a counter that has others from time to time.
type caveats struct {
	fixed
	all *[]pick.Caveat
}

func (c caveats) Caveats() []pick.Caveat { return *c.all }

func TestUnknownEnginesAreTakenToBeAsFastAsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		const page = "llamacpp:prompt_tokens_total %d\nllamacpp:prompt_seconds_total %g\nllamacpp:tokens_predicted_total %d\nllamacpp:tokens_predicted_seconds_total %g\n"
		w.pages["http://10.0.0.2:80/metrics"] = fmt.Sprintf(page, 100, 1.0, 10, 1.0)
		l.run(t, func() {
			time.Sleep(time.Second)
			if e := w.table().Models["m"].Endpoints[0]; e.Prior != (pick.Speed{}) {
				t.Errorf("nothing was shown, and the speed is %+v", e.Prior)
			}
			w.set(func() { w.pages["http://10.0.0.2:80/metrics"] = fmt.Sprintf(page, 300, 2.0, 20, 1.5) })
			time.Sleep(10 * time.Second)
			for _, e := range w.table().Models["m"].Endpoints {
				if e.Prior != (pick.Speed{Prefill: 5, Decode: 50}) {
					t.Errorf("%s: speed %+v, want 5 and 50 ms a token", e.Address, e.Prior)
				}
			}
		})
	})
}

func TestKeysRotate(t *testing.T) {
	keys := policy.Rotate(nil, []byte("a"))
	for _, k := range []string{"b", "b", "c", "d", "e", "b"} {
		keys = policy.Rotate(keys, []byte(k))
	}
	if got := fmt.Sprintf("%s", keys); got != "[b e d c]" {
		t.Errorf("keys %s, want the present one and those before it", got)
	}
	if policy.Rotate(keys, nil) != nil {
		t.Error("there are to be no cookies, and there are keys")
	}
}

func TestLocalMetricsAreWellFormed(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	newLocalMetrics(reg)
	new(probed).registerProbed("a test", reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// TestGaugesAgreeWithConditions has them say the same at any time: also of what changes no
// table.
func TestGaugesAgreeWithConditions(t *testing.T) {
	l, w := newLocal(t, three)
	gauges := func(down, mute int) {
		t.Helper()
		want := fmt.Sprintf("# HELP millrace_extproc_endpoints_without_metrics Endpoints that answer and return no usable metrics though they should.\n"+
			"# TYPE millrace_extproc_endpoints_without_metrics gauge\nmillrace_extproc_endpoints_without_metrics %d\n"+
			"# HELP millrace_extproc_endpoints Endpoints that the file of the fleet names, by state.\n# TYPE millrace_extproc_endpoints gauge\n"+
			"millrace_extproc_endpoints{state=\"ready\"} %d\nmillrace_extproc_endpoints{state=\"suspect\"} 0\nmillrace_extproc_endpoints{state=\"not_ready\"} %d\n", mute, 3-down, down)
		if err := testutil.GatherAndCompare(w.reg, strings.NewReader(want), "millrace_extproc_endpoints_without_metrics", "millrace_extproc_endpoints"); err != nil {
			t.Error(err)
		}
		for code, n := range map[string]int{wire.EndpointsDown: down, wire.NoMetrics: mute} {
			i := slices.IndexFunc(l.Conditions(), func(c obs.Condition) bool { return c.Code == code })
			if (i >= 0) != (n > 0) || i >= 0 && !strings.HasPrefix(l.Conditions()[i].Text, fmt.Sprintf("%d of 3 ", n)) {
				t.Errorf("%s: %+v; want %d", code, l.Conditions(), n)
			}
		}
	}
	observe := func(i int, s probe.State, metrics error) {
		address := fmt.Sprintf("10.0.0.%d:80", i)
		l.observed(&probe.Observation{Address: address, State: s, MetricsErr: metrics})
	}
	gauges(0, 0)
	observe(1, probe.Ready, scrape.StatusError(401))
	observe(2, probe.Ready, scrape.ErrSilent)
	gauges(0, 2)
	observe(2, probe.NotReady, scrape.ErrSilent)
	gauges(1, 1)
	observe(1, probe.Ready, nil)
	gauges(1, 0)
}

// TestLocalKeys gives requests a key where all endpoints of their model have the same.
func TestLocalKeys(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, "hunter2")
	_, w := newLocal(t, fmt.Sprintf(`
endpoints:
  - {address: "10.0.0.1:80", models: [m, n], type: vllm, apiKey: {file: %[1]q, requests: true}}
  - {address: "10.0.0.2:80", models: [m], apiKey: {file: %[1]q, requests: true}}
  - {address: "10.0.0.3:80", models: [o], apiKey: {file: %[1]q}}
`, key))
	for model, want := range map[string]string{"m": "Bearer hunter2", "n": "Bearer hunter2", "o": ""} {
		if _, value := w.table().Models[model].Key.Header(); string(value) != want {
			t.Errorf("%s: %q, want %q", model, string(value), want)
		}
	}
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	write(t, path, `endpoints: [{address: "10.0.0.1:80", models: [m], apiKey: {env: TEST_NO_SUCH_KEY}, tls: {ca: gone.pem}}]`)
	for name, check := range map[string]func() error{
		"-check": func() error { return CheckFile(path, nil, io.Discard) },
		"start": func() error {
			_, err := NewLocal(t.Context(), LocalOptions{File: path, Picker: w, Lookup: w.lookup}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			return err
		},
	} {
		if err := check(); err == nil || !strings.Contains(err.Error(), "endpoints[0]: apiKey: the environment has no TEST_NO_SUCH_KEY") || !strings.Contains(err.Error(), "gone.pem") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeysOfModels gives none where endpoints differ, as xds may name them.
func TestKeysOfModels(t *testing.T) {
	keys := reach.NewKeys(slog.New(slog.DiscardHandler))
	a, b := keys.Of(config.APIKey{Env: "A", Requests: true}), keys.Of(config.APIKey{Env: "B", Requests: true})
	for _, tt := range []struct {
		have []*reach.Key
		want *reach.Key
	}{{nil, nil}, {[]*reach.Key{a}, a}, {[]*reach.Key{a, a}, a}, {[]*reach.Key{a, b}, nil}, {[]*reach.Key{a, nil}, nil}, {[]*reach.Key{nil, a}, nil}} {
		var all []*pick.Endpoint
		for _, k := range tt.have {
			all = append(all, &pick.Endpoint{Key: k})
		}
		if got := common(all); got != tt.want {
			t.Errorf("%v: %v", tt.have, got)
		}
	}
}

// publishing is three endpoints of which the first publishes events: nobody is there.
var publishing = strings.Replace(three, "type: vllm", `type: vllm, kvEvents: {connect: "127.0.0.1:1"}`, 1)

// TestLocalFollowsEvents begins and ends with the file.
func TestLocalFollowsEvents(t *testing.T) {
	l, w := newLocal(t, three)
	l.run(t, func() {
		write(t, l.options.File, publishing)
		until(t, func() bool { return len(l.Conditions()) == 1 && l.Conditions()[0].Code == "no-kv-events" })
		if c := l.Conditions()[0]; !strings.Contains(c.Text, "1 of 3") || !strings.Contains(c.Text, "127.0.0.1:1") {
			t.Errorf("condition %q", c.Text)
		}
		until(t, func() bool { return len(w.table().Models["m"].WithBlocks) == 1 })
		if n, blocks := l.known(); n != 0 || blocks != 0 {
			t.Errorf("%d endpoints and %d blocks are known", n, blocks)
		}
		write(t, l.options.File, three)
		until(t, func() bool { return len(l.Conditions()) == 0 && len(w.table().Models["m"].WithBlocks) == 0 })
	})
}

// until waits for something that real files and connections bring about.
func until(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s")
		}
	}
}

// TestLocalForgetsACacheAtOnce publishes another one as soon as events say that the
// engine may have begun anew.
func TestLocalForgetsACacheAtOnce(t *testing.T) {
	l, w := newLocal(t, three)
	e := w.table().Models["m"].Endpoints[0]
	l.observed(&probe.Observation{Address: e.Address, Epoch: 7})
	if w.table().Models["m"].Endpoints[0].KV == e.KV {
		t.Error("the engine's cache is still believed in")
	}
	l.observed(&probe.Observation{Address: "10.0.0.9:80", Epoch: 7})
}
