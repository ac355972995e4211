package probe

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/scrape"
)

// world is fake engines, and what was observed of them.
type world struct {
	mu       sync.Mutex
	pages    map[string]string // by URL; what is missing is 404
	errs     map[string]error  // by host, or by URL
	asked    map[string]int    // by URL
	observed map[string]Observation
	all      []Observation
}

func (w *world) get(ctx context.Context, r *http.Request, buf []byte) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	url := r.URL.String()
	w.asked[url]++
	for _, at := range []string{r.URL.Host, url} {
		if err := w.errs[at]; err != nil {
			return buf[:0], err
		}
	}
	text, ok := w.pages[url]
	if !ok {
		return buf[:0], scrape.StatusError(404)
	}
	return append(buf[:0], text...), nil
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) at(address string) Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.observed[address]
}

// since returns what was observed after the first n times.
func (w *world) since(n int) []Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[n:len(w.all):len(w.all)]
}

const (
	a, b      = "10.0.0.1:80", "10.0.0.2:80"
	pageA     = "http://" + a + "/metrics"
	pageB     = "http://" + b + "/metrics"
	vllmPage  = "vllm:num_requests_running %d\nvllm:num_requests_waiting %d\nvllm:request_prompt_tokens_sum %d\nvllm:request_generation_tokens_sum %d\nvllm:request_prefill_time_seconds_sum %g\nvllm:request_decode_time_seconds_sum %g\n"
	startedAt = "process_start_time_seconds %g\n"
)

// two are a vLLM and a llama-server of one model.
func two() []Endpoint {
	return []Endpoint{
		{Endpoint: config.Endpoint{Address: a, Models: []string{"m"}, Type: "vllm", Metrics: pageA}},
		{Endpoint: config.Endpoint{Address: b, Models: []string{"m"}, Type: "llamacpp", Metrics: pageB}},
	}
}

func start(t *testing.T, o Options, endpoints []Endpoint, f func(p *Prober, w *world)) {
	w := &world{pages: map[string]string{}, errs: map[string]error{}, asked: map[string]int{}, observed: map[string]Observation{}}
	w.pages[pageA] = fmt.Sprintf(vllmPage, 0, 0, 100, 10, 1.0, 1.0)
	w.pages[pageB] = "llamacpp:requests_processing 0\n"
	o.Program, o.Get = "test", w.get
	o.Observed = func(o *Observation) {
		w.set(func() { w.observed[o.Address], w.all = *o, append(w.all, *o) })
	}
	p := New(o, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewPedanticRegistry())
	if err := p.Set(endpoints); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	f(p, w)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestObservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start(t, Options{}, two(), func(p *Prober, w *world) {
			time.Sleep(time.Second)
			if o := w.at(a); o.State != Ready || o.Epoch != 0 || o.Sample == nil || o.Sample.Prompt != 100 || o.Speed != (Speed{}) || o.Err != nil {
				t.Errorf("at first %+v", o)
			}
			w.set(func() { w.pages[pageA] = fmt.Sprintf(vllmPage, 3, 1, 300, 30, 2.0, 2.0) })
			time.Sleep(10 * time.Second)
			o := w.at(a)
			// 20 tokens in 1 s with 1.5 requests at a time (3 now, 0 before).
			want := Speed{Prefill: 200, Decode: 25}
			if o.Speed != want || o.Usual != want || o.Slots != 3 {
				t.Errorf("speed %v, usual %v, %d slots", o.Speed, o.Usual, o.Slots)
			}
			if o := w.at(b); o.Speed != (Speed{}) || o.Usual != want {
				t.Errorf("of the other: speed %v, usual %v", o.Speed, o.Usual)
			}
			done := 0
			for _, o := range w.since(0) {
				if o.Done != nil {
					done++
					if diff := cmp.Diff(scrape.Since{Prompt: 200, Output: 20, PrefillMs: 1000, DecodeMs: 1000}, *o.Done); diff != "" {
						t.Error(diff)
					}
				}
			}
			if done != 1 {
				t.Errorf("work was observed %d times", done)
			}
		})
	})
}

// TestEpochs distinguishes starts of engines, by what they show.
func TestEpochs(t *testing.T) {
	page := func(started float64, prompt int) string {
		s := fmt.Sprintf(vllmPage, 0, 0, prompt, 0, 0.0, 0.0)
		if started > 0 {
			s += fmt.Sprintf(startedAt, started)
		}
		return s
	}
	gone := fmt.Errorf("%w: refused", scrape.ErrGone)
	tests := []struct {
		name   string
		before string
		err    error
		after  string
		same   bool
		want   uint64 // 0: any
	}{
		{name: "nothing happens", before: page(0, 5), after: page(0, 6), same: true},
		{name: "counters go back", before: page(0, 5), after: page(0, 1)},
		{name: "it is gone for a while", before: page(0, 5), err: gone, after: page(0, 6)},
		{name: "it is silent for a while", before: page(0, 5), err: scrape.ErrSilent, after: page(0, 6), same: true},
		{name: "its process is the same", before: page(100, 5), after: page(100, 6), same: true, want: 100_000},
		{name: "its process is another one", before: page(100, 5), after: page(200, 6), want: 200_000},
		{name: "nobody was there, and its process is the same", before: page(100, 5), err: gone, after: page(100, 6), same: true, want: 100_000},
		{name: "nobody was there, and its process is another one", before: page(100, 5), err: gone, after: page(200, 1), want: 200_000},
		{name: "counters go back in the same process", before: page(100, 5), after: page(100, 1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start(t, Options{}, two(), func(p *Prober, w *world) {
					w.set(func() { w.pages[pageA] = tt.before })
					time.Sleep(time.Second)
					before := w.at(a).Epoch
					if tt.err != nil {
						w.set(func() { w.errs[a] = tt.err })
						time.Sleep(time.Minute)
						if o := w.at(a); o.State != NotReady || o.Err == nil {
							t.Errorf("it is away, and observed as %v: %v", o.State, o.Err)
						}
					}
					w.set(func() { delete(w.errs, a); w.pages[pageA] = tt.after })
					time.Sleep(15 * time.Second)
					o := w.at(a)
					if (o.Epoch == before) != tt.same || o.State != Ready || tt.want != 0 && o.Epoch != tt.want {
						t.Errorf("state %v, epoch %d, before %d", o.State, o.Epoch, before)
					}
				})
			})
		})
	}
}

// TestSet keeps what is known of those who stay, and forgets the rest.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start(t, Options{}, two(), func(p *Prober, w *world) {
			w.set(func() { w.pages[pageA] += fmt.Sprintf(startedAt, 7.0); w.errs[b] = scrape.StatusError(503) })
			time.Sleep(time.Second)
			changed := two()
			changed[0].Slots, changed[0].Models = 9, []string{"m", "n"}
			if err := p.Set(changed[:1]); err != nil {
				t.Fatal(err)
			}
			before := len(w.since(0))
			time.Sleep(15 * time.Second)
			if o := w.at(a); o.Epoch != 7000 || o.Slots != 9 || o.Adapters == nil {
				t.Errorf("%+v", o)
			}
			for _, o := range w.since(before) {
				if o.Address == b {
					t.Error("one that is no more was observed")
				}
			}
			if err := p.Set(two()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if o := w.at(b); o.State != NotReady || o.Err == nil {
				t.Errorf("of one that is unwell: %+v", o)
			}
		})
	})
}

// TestWorking probes an endpoint often at which requests are known to be.
func TestWorking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start(t, Options{Working: func(address string) bool { return address == b }}, two(), func(p *Prober, w *world) {
			time.Sleep(time.Minute)
			w.mu.Lock()
			defer w.mu.Unlock()
			if idle, busy := w.asked[pageA], w.asked[pageB]; idle > 20 || busy < 100 {
				t.Errorf("asked %d times, and where requests are %d times", idle, busy)
			}
		})
	})
}

// TestIdleEndpointThatDies is found dead, or hung, within seconds, though its metrics are
// asked for seldom.
func TestIdleEndpointThatDies(t *testing.T) {
	for name, fault := range map[string]error{"dead": scrape.ErrGone, "hung": scrape.ErrSilent} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start(t, Options{}, two(), func(p *Prober, w *world) {
					time.Sleep(5 * time.Minute)
					w.mu.Lock()
					pages := w.asked[pageA]
					w.mu.Unlock()
					if pages > 50 {
						t.Errorf("metrics of an idle endpoint were asked for %d times in 5 min", pages)
					}
					w.set(func() { w.errs[a] = fault })
					time.Sleep(2 * time.Second)
					if o := w.at(a); o.State == Ready {
						t.Errorf("after 2 s %s is %v", a, o.State)
					}
				})
			})
		})
	}
}

// TestOurOwnSleep excuses endpoints that seem to have been silent while we did not run.
func TestOurOwnSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start(t, Options{}, two(), func(p *Prober, w *world) {
			time.Sleep(time.Second)
			w.set(func() { w.errs[a] = scrape.ErrSilent })
			p.mu.Lock()
			p.excused = time.Now().Add(5 * time.Second)
			p.mu.Unlock()
			time.Sleep(4 * time.Second)
			if o := w.at(a); o.State != Ready {
				t.Errorf("state %v", o.State)
			}
			time.Sleep(20 * time.Second)
			if o := w.at(a); o.State != NotReady {
				t.Errorf("state %v after it was really silent", o.State)
			}
		})
	})
}

// publishing is two endpoints of which the first publishes events: nobody is there.
func publishing() []Endpoint {
	all := two()
	all[0].KVEvents = config.KVEvents{Connect: "127.0.0.1:1"}
	return all
}

// TestEvents takes in what events say of the engine itself.
func TestEvents(t *testing.T) {
	for _, logs := range []bool{false, true} {
		t.Run(fmt.Sprintf("logs %v", logs), func(t *testing.T) {
			var last *Observation
			p := New(Options{Program: "test", Logs: logs, Observed: func(o *Observation) { last = o }},
				slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
			if err := p.Set(publishing()); err != nil {
				t.Fatal(err)
			}
			x := p.targets[a]
			x.due.Store(1 << 60)
			p.changed(a, x.events, kvevents.Lost, time.Now())
			lost := last.Epoch
			if x.due.Load() != 0 || lost == 0 {
				t.Errorf("the publisher is lost: epoch %d, probed at once: %v", lost, x.due.Load() == 0)
			}
			p.changed(a, x.events, kvevents.Restarted, time.Now())
			if last.Epoch == lost {
				t.Error("the engine began anew, and its cache is still believed in")
			}
			p.changed(a, x.events, kvevents.Lost, time.Now())
			x.restarted(time.Now())
			noticed := x.epoch
			p.changed(a, x.events, kvevents.Restarted, time.Now())
			if x.epoch != noticed {
				t.Error("a restart that was noticed counts twice")
			}
			p.changed(a, &events{}, kvevents.Restarted, time.Now())
			p.changed("10.0.0.9:80", x.events, kvevents.Restarted, time.Now())
			if (last.Blocks == nil) != logs {
				t.Errorf("a Set: %v", last.Blocks != nil)
			}
			if !logs {
				return
			}
			names := blocks.NewNames(x.events.log)
			names.SetKnown(blocks.Whole)
			names.Store(&blocks.Stored{Hashes: []uint64{1}, Root: true, Tokens: []uint32{1, 2}, Size: 2})
			p.following[a] = x.events
			p.step(time.Now(), false)
			if c := last.Cache; c == nil || !c.Complete || c.BlockTokens != 2 || c.Epoch != x.epoch || len(c.Segments) == 0 {
				t.Errorf("cache %+v", c)
			}
			was := last
			p.step(time.Now(), false)
			if last != was {
				t.Error("nothing has changed, and it is published again")
			}
		})
	}
}

// TestEventFaults names who lives and publishes nothing.
func TestEventFaults(t *testing.T) {
	start(t, Options{}, publishing(), func(p *Prober, w *world) {
		faults := p.EventFaults()
		if len(faults) != 1 || faults[a] == nil {
			t.Errorf("faults %v", faults)
		}
		if err := p.Set(two()); err != nil {
			t.Fatal(err)
		}
		if faults := p.EventFaults(); len(faults) > 0 {
			t.Errorf("faults %v of those who publish nothing", faults)
		}
	})
}

func TestMetricsAreWellFormed(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	newMetrics("test", reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// TestLearnedSlotsFollowTheEngine: more are believed at once, fewer within a minute, and none
// after a restart.
func TestLearnedSlotsFollowTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start(t, Options{Working: func(string) bool { return true }}, two(), func(p *Prober, w *world) {
			n := 100
			page := func(running, waiting int) {
				n += 100
				w.set(func() { w.pages[pageA] = fmt.Sprintf(vllmPage, running, waiting, n, n, 1.0, 1.0) })
			}
			page(60000, 5)
			time.Sleep(time.Second)
			if got := w.at(a).Slots; got != 60000 {
				t.Errorf("%d slots, want 60000", got)
			}
			for range 60 {
				page(8, 5)
				time.Sleep(time.Second)
			}
			if got := w.at(a).Slots; got != 8 {
				t.Errorf("%d slots a minute after the engine had eight", got)
			}
			page(3, 0) // nobody waits: some are free
			time.Sleep(2 * time.Second)
			if got := w.at(a).Slots; got != 8 {
				t.Errorf("%d slots though nobody waits", got)
			}
			n = 0
			page(1, 0) // counters went back
			time.Sleep(2 * time.Second)
			if got := w.at(a).Slots; got != 0 {
				t.Errorf("%d slots after a restart", got)
			}
		})
	})
}
