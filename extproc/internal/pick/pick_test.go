package pick

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

// endpoint returns a ready endpoint alone on its node.
func endpoint(i int, edit ...func(*Endpoint)) *Endpoint {
	e := &Endpoint{
		Address: fmt.Sprintf("127.0.0.1:%d", 20000+i), Replica: fmt.Sprintf("r-%d", i), Nodes: []string{fmt.Sprintf("n-%d", i)},
		State: Ready, Slots: 4, Health: 1, KV: prefix.NewCache(uint32(i+1), 0), Prior: Speed{Prefill: 2, Decode: 20}, Live: new(Live),
	}
	for _, f := range edit {
		f(e)
	}
	return e
}

func model(es ...*Endpoint) *Model {
	return &Model{Name: "m", Seed: session.Seed("m"), Endpoints: es, Learned: new(Learned)}
}

func slow(by float64) func(*Endpoint) {
	return func(e *Endpoint) { e.Prior = Speed{Prefill: 2 * by, Decode: 20 * by} }
}

func in(s State) func(*Endpoint) { return func(e *Endpoint) { e.State = s } }

func on(nodes ...string) func(*Endpoint) { return func(e *Endpoint) { e.Nodes = nodes } }

func zone(z string) func(*Endpoint) { return func(e *Endpoint) { e.Zone = z } }

func busy(requests int, tokens int) func(*Endpoint) {
	return func(e *Endpoint) {
		for range requests {
			e.Reserve(tokens/2, tokens/2)
		}
	}
}

func wakes(ms float64) func(*Endpoint) {
	return func(e *Endpoint) { e.ReportFromFleet(Report{Wake: ms}, epoch) }
}

func ejected(e *Endpoint) { e.eject(epoch, epoch, true) }

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// at is what is found of a prompt that is cached at the i-th endpoint alone.
func at(i, tokens int) *prefix.Found {
	return &prefix.Found{Matches: []prefix.Match{{Cache: uint32(i + 1), Gen: 1, Tokens: uint32(tokens)}}}
}

func TestPick(t *testing.T) {
	tests := []struct {
		name   string
		es     []*Endpoint
		places *prefix.Found
		most   int
		want   []int // ports - 20000
		reason Reason
		err    error
	}{
		{
			name: "the fastest first, the rest by speed",
			es:   []*Endpoint{endpoint(0, slow(3)), endpoint(1), endpoint(2, slow(2))},
			most: 3, want: []int{1, 2, 0}, reason: Fresh,
		},
		{
			name: "no more than asked for",
			es:   []*Endpoint{endpoint(0, slow(3)), endpoint(1), endpoint(2, slow(2))},
			most: 2, want: []int{1, 2}, reason: Fresh,
		},
		{
			name: "one that must load its model first comes last",
			es:   []*Endpoint{endpoint(0, wakes(90_000)), endpoint(1, slow(3)), endpoint(2)},
			most: 3, want: []int{2, 1, 0}, reason: Fresh,
		},
		{
			name: "and is chosen where there is no other",
			es:   []*Endpoint{endpoint(0, wakes(9000)), endpoint(1, in(NotReady))},
			most: 2, want: []int{0}, reason: Fresh,
		},
		{
			name:   "a conversation stays where it is cached",
			es:     []*Endpoint{endpoint(0), endpoint(1, slow(1.1)), endpoint(2, slow(1.2))},
			places: at(2, 950),
			most:   2, want: []int{2, 0}, reason: Sticky,
		},
		{
			name:   "and moves when waiting there takes longer",
			es:     []*Endpoint{endpoint(0), endpoint(1, busy(12, 1000)), endpoint(2, slow(4))},
			places: at(1, 950),
			most:   1, want: []int{0}, reason: Moved,
		},
		{
			name:   "a cache from before the engine's restart is none",
			es:     []*Endpoint{endpoint(0), endpoint(1, slow(1.5), func(e *Endpoint) { e.KV = prefix.NewCache(77, 0) })},
			places: at(1, 950),
			most:   1, want: []int{0}, reason: Fresh,
		},
		{
			name: "suspects only when nobody is ready",
			es:   []*Endpoint{endpoint(0, in(Suspect)), endpoint(1, slow(9)), endpoint(2, in(NotReady))},
			most: 4, want: []int{1}, reason: Fresh,
		},
		{
			name: "but then they are named",
			es:   []*Endpoint{endpoint(0, in(Suspect)), endpoint(1, in(NotReady))},
			most: 4, want: []int{0}, reason: Fallback,
		},
		{
			name: "ejected ones before suspects",
			es:   []*Endpoint{endpoint(0, in(Suspect)), endpoint(1, ejected)},
			most: 4, want: []int{1}, reason: Fallback,
		},
		{
			name: "nobody",
			es:   []*Endpoint{endpoint(0, in(NotReady))},
			most: 4, err: ErrNotReady,
		},
		{
			name: "no endpoints at all",
			most: 4, err: ErrNotReady,
		},
		{
			name: "alternatives on other nodes first",
			es:   []*Endpoint{endpoint(0, on("a", "b")), endpoint(1, slow(1.5), on("b", "c")), endpoint(2, slow(2), on("d"))},
			most: 3, want: []int{0, 2, 1}, reason: Fresh,
		},
		{
			name: "and in other zones before that",
			es:   []*Endpoint{endpoint(0, zone("x")), endpoint(1, slow(1.5), zone("x")), endpoint(2, slow(2), zone("y"))},
			most: 3, want: []int{0, 2, 1}, reason: Fresh,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := New(prometheus.NewRegistry())
			var c Choice
			err := p.Pick(&Query{Model: model(tt.es...), Prompt: 1000, Output: 50, Found: tt.places, Most: tt.most, Now: epoch}, &c)
			if err != tt.err {
				t.Fatalf("Pick() = %v, want %v", err, tt.err)
			}
			var got []int
			for _, l := range c.List {
				got = append(got, int(l.KV.ID())-1)
				if l.KV.ID() == 77 {
					got[len(got)-1] = 1
				}
			}
			if !slices.Equal(got, tt.want) || err == nil && c.Reason != tt.reason {
				t.Errorf("Pick() = %v %v, want %v %v", c.Reason, got, tt.reason, tt.want)
			}
		})
	}
}

// TestOnlyThoseWithRoomForThePrompt are named, as long as there are any.
func TestOnlyThoseWithRoomForThePrompt(t *testing.T) {
	has := func(context int) func(*Endpoint) { return func(e *Endpoint) { e.Context = context } }
	tests := []struct {
		name   string
		prompt int
		want   []int // ports - 20000
	}{
		{"all have", 1000, []int{0, 1, 2}},
		{"the fastest has not", 2048, []int{1, 2}},
		{"only one that does not say", 8192, []int{2}},
		{"cached where there is no room", 4000, []int{1, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := model(endpoint(0, has(2048)), endpoint(1, slow(2), has(8192)), endpoint(2, slow(4)))
			m.Least = 2048
			q := &Query{Model: m, Prompt: tt.prompt, Output: 10, Most: 3, Now: epoch}
			var c Choice
			if err := New(prometheus.NewRegistry()).Pick(q, &c); err != nil {
				t.Fatal(err)
			}
			var got, explained []int
			for _, l := range c.List {
				got = append(got, int(l.KV.ID())-1)
			}
			for _, e := range Explain(q) {
				if e.Out == "" {
					explained = append(explained, int(e.KV.ID())-1)
				}
			}
			if !slices.Equal(explained, tt.want) {
				t.Errorf("Explain says %v, want %v", explained, tt.want)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("named %v, want %v", got, tt.want)
			}
		})
	}
}

func TestEqualsTakeTurns(t *testing.T) {
	m := model(endpoint(0), endpoint(1), endpoint(2))
	p, n := New(prometheus.NewRegistry()), map[string]int{}
	for range 300 {
		var c Choice
		if err := p.Pick(&Query{Model: m, Prompt: 10, Output: 10, Most: 1, Now: epoch}, &c); err != nil {
			t.Fatal(err)
		}
		n[c.List[0].Address]++
	}
	for a, k := range n {
		if k != 100 {
			t.Errorf("%s was chosen %d times of 300, want 100", a, k)
		}
	}
}

// TestSpreadsBySpeed sends a burst whose requests do not end: endpoints get
// their share by speed, and nobody gets all.
func TestSpreadsBySpeed(t *testing.T) {
	m := model(endpoint(0), endpoint(1, slow(2)), endpoint(2, slow(2)))
	p, n := New(prometheus.NewRegistry()), map[string]int{}
	for range 400 {
		var c Choice
		q := Query{Model: m, Prompt: 100, Output: 50, Most: 1, Now: epoch}
		if err := p.Pick(&q, &c); err != nil {
			t.Fatal(err)
		}
		c.List[0].Reserve(&q)
		n[c.List[0].Address]++
	}
	if k := n["127.0.0.1:20000"]; k < 180 || k > 220 {
		t.Errorf("the endpoint of twice the speed got %d of 400, want about 200: %v", k, n)
	}
}

// TestPickAgainstNaive compares the choice with one that prices and sorts all.
func TestPickAgainstNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	p := New(prometheus.NewRegistry())
	for range 2000 {
		m := randomModel(r)
		q := &Query{Model: m, Prompt: 1 + r.IntN(3000), Output: r.IntN(200), Most: 1 + r.IntN(MaxCandidates), Now: epoch}
		if r.IntN(2) == 0 {
			q.Found = at(r.IntN(30), r.IntN(3000))
		}
		if r.IntN(3) == 0 {
			q.Only = randomSubset(r)
		}
		all := naive(m, q)
		var c Choice
		err := p.Pick(q, &c)
		if (err != nil) != (len(all) == 0) {
			t.Fatalf("Pick() = %v with %d candidates", err, len(all))
		}
		if err != nil {
			continue
		}
		if len(c.List) != min(q.Most, len(all)) {
			t.Fatalf("Pick() lists %d of %d, asked for %d", len(c.List), len(all), q.Most)
		}
		least := all[0].Cost()
		if got := c.List[0].Cost(); got > least*(1+stayShare)+stayMs {
			t.Fatalf("Pick() chose cost %v, the least is %v", got, least)
		}
		seen := map[string]bool{}
		for _, l := range c.List {
			if seen[l.Address] || !naiveAllows(q.Only, l.Address) || l.tier(epoch.UnixNano()) != all[0].tier(epoch.UnixNano()) {
				t.Fatalf("Pick() lists %s twice, from a worse tier, or though it is not allowed", l.Address)
			}
			seen[l.Address] = true
		}
	}
}

// randomSubset allows some endpoints, some of them by their ip alone.
func randomSubset(r *rand.Rand) Subset {
	only := Subset{}
	for range r.IntN(8) {
		only = append(only, []string{fmt.Sprintf("127.0.0.1:%d", 20000+r.IntN(40)), "10.0.0.1", "127.0.0.1:1", "127.0.0", "127.0.0.1:2000"}[r.IntN(5)])
	}
	if r.IntN(8) == 0 {
		only = append(only, "127.0.0.1")
	}
	slices.Sort(only)
	return only
}

// naiveAllows asks each entry of a subset.
func naiveAllows(s Subset, address string) bool {
	ok := s == nil
	for _, entry := range s {
		ok = ok || entry == address || strings.HasPrefix(address, entry+":")
	}
	return ok
}

func randomModel(r *rand.Rand) *Model {
	var es []*Endpoint
	for i := range r.IntN(30) {
		e := endpoint(i, slow(0.5+4*r.Float64()), in(State(r.IntN(3))), on(fmt.Sprint(r.IntN(20)), fmt.Sprint(r.IntN(20))), busy(r.IntN(10), r.IntN(500)))
		if r.IntN(4) == 0 {
			ejected(e)
		}
		es = append(es, e)
	}
	return model(es...)
}

func naive(m *Model, q *Query) []Candidate {
	var all []Candidate
	now, best := q.Now.UnixNano(), tierNone
	for _, e := range m.Endpoints {
		if naiveAllows(q.Only, e.Address) {
			best = max(best, e.tier(now))
		}
	}
	for _, e := range m.Endpoints {
		if best != tierNone && e.tier(now) == best && naiveAllows(q.Only, e.Address) {
			all = append(all, e.price(q, m.usual(), now))
		}
	}
	slices.SortFunc(all, func(a, b Candidate) int {
		if a.Cost() < b.Cost() {
			return -1
		}
		return 1
	})
	return all
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{8, 64, 512, 4096} {
		m := model()
		for i := range n {
			m.Endpoints = append(m.Endpoints, endpoint(i, slow(1+float64(i%7)/10)))
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, c := New(prometheus.NewRegistry()), new(Choice)
			q := &Query{Model: m, Prompt: 100, Output: 50, Most: 4, Now: epoch}
			b.ReportAllocs()
			for b.Loop() {
				_ = p.Pick(q, c)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	New(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("GatherAndLint() = %v, %v", problems, err)
	}
}

// choose picks for a prompt of so many tokens that is cached nowhere.
func choose(t *testing.T, m *Model, prompt int) *Choice {
	t.Helper()
	c := new(Choice)
	if err := New(prometheus.NewRegistry()).Pick(&Query{Model: m, Prompt: prompt, Output: 100, Most: 1, Now: epoch}, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestWaitingForTheNextStep has an engine that says that some requests wait though
// slots are free: they wait for room in its cache, if that is crowded, else for the
// step that runs.
func TestWaitingForTheNextStep(t *testing.T) {
	wait := func(kv float64) float64 {
		e := endpoint(0, func(e *Endpoint) { e.Slots = 64 })
		e.ReportFromFleet(Report{Requests: 6, Waiting: 4, KV: kv}, epoch)
		c := choose(t, model(e), 100)
		return c.List[0].Wait
	}
	if free, full := wait(0.2), wait(0.8); free >= full/4 {
		t.Errorf("Wait = %.0f ms with a free cache, %.0f with a crowded one", free, full)
	}
}

// TestWhatIsIdleForLongerIsEvictedFirst has two full caches, of which one turns over
// faster: the other one takes the new prompt.
func TestWhatIsIdleForLongerIsEvictedFirst(t *testing.T) {
	p := New(prometheus.NewRegistry())
	full := func(i int, every time.Duration) *Endpoint {
		e := endpoint(i, func(e *Endpoint) { e.KV = prefix.NewCache(uint32(i+1), 1600) })
		x := prefix.New(1000, time.Hour)
		for n := range 40 {
			chain := []prefix.Link{{Key: session.Key(1000*i + n), Tokens: 100}}
			x.Use(chain, e.KV, epoch.Add(time.Duration(n-40)*every))
		}
		return e
	}
	busy, calm := full(0, time.Second), full(1, 10*time.Second)
	m := model(busy, calm)
	for _, e := range m.Endpoints {
		p.Learn(m, e, &Candidate{Endpoint: e}, Usage{Prompt: 100, Completion: 10, PrefillMs: 200, DecodeMs: 200}, epoch, epoch)
	}
	c := choose(t, m, 1000)
	if first := c.List[0]; first.Endpoint != calm || first.Fill <= 0 {
		t.Errorf("chose %s, fill %.1f", first.Address, first.Fill)
	}
}

func TestTopShare(t *testing.T) {
	reg := prometheus.NewRegistry()
	p := New(reg)
	m := model(endpoint(0), endpoint(1, in(NotReady)), endpoint(2, in(NotReady)))
	p.Publish(&Table{Policy: &Policy{}, Models: map[string]*Model{"m": m}})
	for range 7 {
		if err := p.Pick(&Query{Model: m, Prompt: 10, Output: 10, Most: 1, Now: epoch}, new(Choice)); err != nil {
			t.Fatal(err)
		}
	}
	want := `# HELP millrace_extproc_top_endpoint_share Share of the requests to a model's endpoints since the last scrape that was sent to the one that got most, requests for other models there included.
# TYPE millrace_extproc_top_endpoint_share gauge
millrace_extproc_top_endpoint_share{model="m"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "millrace_extproc_top_endpoint_share"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("GatherAndLint() = %v, %v", problems, err)
	}
}

// TestExplainAgreesWithPick compares what people get to read with what is done.
func TestExplainAgreesWithPick(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	p := New(prometheus.NewRegistry())
	for range 500 {
		m := randomModel(r)
		q := &Query{Model: m, Prompt: 1 + r.IntN(3000), Output: r.IntN(200), Most: MaxCandidates, Now: epoch}
		if r.IntN(3) == 0 && len(m.Endpoints) > 0 {
			q.Only = Subset{m.Endpoints[0].Address}
		}
		all := Explain(q)
		if len(all) != len(m.Endpoints) {
			t.Fatalf("%d of %d endpoints are explained", len(all), len(m.Endpoints))
		}
		var c Choice
		err := p.Pick(q, &c)
		n := 0
		for n < len(all) && all[n].Out == "" {
			n++
		}
		if (err != nil) != (n == 0) || len(c.List) != min(n, MaxCandidates) {
			t.Fatalf("%d may be named by the explanation, Pick() lists %d, %v", n, len(c.List), err)
		}
		for _, l := range c.List {
			i := slices.IndexFunc(all, func(e Considered) bool { return e.Endpoint == l.Endpoint })
			if all[i].Terms != l.Terms || all[i].Cached != l.Cached || all[i].Out != "" {
				t.Fatalf("%s: %+v is explained, %+v was decided by", l.Address, all[i], l)
			}
		}
	}
}
