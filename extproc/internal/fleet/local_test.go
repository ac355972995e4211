package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
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

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/scrape"
)

func TestVital(t *testing.T) {
	unwell, gone, silent := error(scrape.StatusError(503)), fmt.Errorf("%w: refused", scrape.ErrGone), scrape.ErrSilent
	tests := []struct {
		name  string
		looks []error
		want  pick.State
	}{
		{"answers", []error{nil}, pick.Ready},
		{"loads its model", []error{unwell}, pick.NotReady},
		{"is gone", []error{gone}, pick.NotReady},
		{"is late once", []error{silent}, pick.Suspect},
		{"is late twice", []error{silent, silent}, pick.Suspect},
		{"hangs", []error{silent, silent, silent}, pick.NotReady},
		{"is late now and then", []error{silent, nil, silent, silent}, pick.Suspect},
		{"comes back", []error{silent, silent, silent, gone, nil}, pick.Ready},
		{"was gone and is silent now", []error{gone, silent}, pick.NotReady},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := vital{state: pick.Ready}
			for _, err := range tt.looks {
				v.look(err)
			}
			if v.state != tt.want {
				t.Errorf("state %d, want %d", v.state, tt.want)
			}
		})
	}
	if alive(scrape.StatusError(404)) != nil || alive(unwell) == nil || alive(gone) == nil {
		t.Error("who answers that it doesn't know the question lives; who is unwell does not")
	}
}

func TestPause(t *testing.T) {
	v := vital{state: pick.Ready}
	d := time.Duration(0)
	for range 20 {
		d = v.pause(d, false, 3)
	}
	if d != lookMost || v.pause(d, true, 3) != lookFirst || v.pause(d, true, 1000) != time.Second {
		t.Errorf("pauses: idle %v, busy %v, busy among a thousand %v", d, v.pause(d, true, 3), v.pause(d, true, 1000))
	}
	v.look(scrape.ErrSilent)
	first := v.pause(d, false, 3)
	for range 100 {
		v.look(scrape.ErrSilent)
	}
	if first != lookLost || v.pause(d, false, 3) != lookLostMost {
		t.Errorf("pauses of a lost one: %v, then %v", first, v.pause(d, false, 3))
	}
}

// world is a fleet of fake engines.
type world struct {
	mu     sync.Mutex
	pages  map[string]string // by URL; what is missing is 404
	errs   map[string]error  // by host
	asked  map[string]int    // by URL
	tables []*pick.Table
	done   []pick.Usage
}

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
	w := &world{pages: map[string]string{}, errs: map[string]error{}, asked: map[string]int{}}
	for i := range 3 {
		w.pages[fmt.Sprintf("http://10.0.0.%d:80/health", i+1)] = "ok"
	}
	w.pages["http://10.0.0.1:80/metrics"] = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:request_prompt_tokens_sum 100\n"
	w.pages["http://10.0.0.2:80/metrics"] = "llamacpp:requests_processing 0\n"
	l, err := NewLocal(path, w, nil, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	l.get, l.close = w.get, func() {}
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

func TestLocalLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, three)
		l.run(t, func() {
			time.Sleep(time.Minute)
			if c := l.Conditions(); len(c) > 0 {
				t.Errorf("conditions %v", c)
			}
			w.set(func() {
				if n := w.asked["http://10.0.0.1:80/metrics"]; n < 10 || n > 20 || w.asked["http://10.0.0.1:80/health"] > 0 {
					t.Errorf("an idle endpoint was asked %d times in a minute, and for its health too: %v", n, w.asked)
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
			write(t, l.path, "endpoints: [{adress: x}]")
			time.Sleep(time.Second)
			if c := l.Conditions(); len(c) != 1 || c[0].Code != "fleet-file" || !strings.Contains(c[0].Text, "adress: unknown field") {
				t.Errorf("conditions %v", c)
			}
			if got := testutil.ToFloat64(l.metrics.good); got != 0 || w.table() != old {
				t.Errorf("a bad file: good %v, another table %v", got, w.table() != old)
			}
			write(t, l.path, strings.Replace(three, "10.0.0.3:80", "10.0.0.4:80", 1))
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
	_, err := NewLocal(path, &world{}, nil, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	load := func(string) (pick.Counter, error) { return nil, errors.New("not a tokenizer") }
	write(t, path, "endpoints: [{address: \"10.0.0.1:80\", models: [m]}]\nmodels: [{name: m, tokenizer: t.json}]\npolicy: {sessions: {cookie: {keyFile: none}}}\n")
	err = CheckFile(path, load)
	if err == nil || !strings.Contains(err.Error(), "keyFile: ") || !strings.Contains(err.Error(), "models[0].tokenizer: not a tokenizer") {
		t.Errorf("check: %v", err)
	}
}

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
	keys := rotate(nil, []byte("a"))
	for _, k := range []string{"b", "b", "c", "d", "e", "b"} {
		keys = rotate(keys, []byte(k))
	}
	if got := fmt.Sprintf("%s", keys); got != "[b e d c]" {
		t.Errorf("keys %s, want the present one and those before it", got)
	}
	if rotate(keys, nil) != nil {
		t.Error("there are to be no cookies, and there are keys")
	}
}

func TestLocalMetricsAreWellFormed(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	newLocalMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
