package pick

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/prefix"
)

// TestIndexAgainstWalk changes endpoints of a large model at random and compares
// what the index finds with a walk over all of them: the costs must be the same,
// at once after a change, and after a sweep where only time has passed.
func TestIndexAgainstWalk(t *testing.T) {
	seek(t, rand.New(rand.NewPCG(11, 12)), 3000)
}

// FuzzIndexAgainstWalk lets a fuzzer choose what happens.
func FuzzIndexAgainstWalk(f *testing.F) {
	f.Add([]byte("some bytes that choose what happens to endpoints"))
	f.Fuzz(func(t *testing.T, script []byte) {
		seek(t, rand.New(&tape{script, rand.NewPCG(1, 2)}), min(60, len(script)/8))
	})
}

// tape is random numbers that a script gives, and others when it is over.
type tape struct {
	script []byte
	rest   rand.Source
}

// Uint64 is rand.Source's.
func (s *tape) Uint64() uint64 {
	if len(s.script) < 4 {
		return s.rest.Uint64()
	}
	v := binary.LittleEndian.Uint32(s.script)
	s.script = s.script[4:]
	return uint64(v)<<32 | uint64(v)
}

func seek(t *testing.T, r *rand.Rand, steps int) {
	m := model()
	for i := range 4 * indexed {
		m.Endpoints = append(m.Endpoints, endpoint(i, slow(0.5+4*r.Float64()), in([]State{Ready, Ready, Ready, Suspect, NotReady}[r.IntN(5)])))
	}
	now := epoch
	for step := range steps {
		change(m, r, now)
		if step%50 == 0 {
			now = now.Add(sweep + time.Millisecond)
		}
		q := &Query{Model: m, Prompt: 1 + r.IntN(5000), Output: r.IntN(400), Most: 4, Now: now}
		for range r.IntN(4) {
			if q.Found == nil {
				q.Found = &prefix.Found{}
			}
			q.Found.Matches = append(q.Found.Matches, prefix.Match{Cache: uint32(1 + r.IntN(5*indexed)), Gen: 1, Tokens: uint32(r.IntN(5000))})
		}
		if r.IntN(2) == 0 {
			q.Goal = Goal{TTFT: 3000 * r.Float64(), TPOT: 100 * r.Float64(), E2E: 9000 * r.Float64()}
		}
		got, want := costsOf(m, q, step), costsOf(&Model{Endpoints: m.Endpoints, Learned: m.Learned}, q, step)
		if !slices.Equal(got, want) {
			t.Fatalf("step %d: the index finds costs %v, a walk %v", step, got, want)
		}
		if q.Found == nil {
			continue
		}
		// What others have the use of is taken to be worth the same everywhere: near enough.
		q.Found.Shared, q.Found.By = r.IntN(q.Prompt), 4+20*r.Float64()
		got, want = costsOf(m, q, step), costsOf(&Model{Endpoints: m.Endpoints, Learned: m.Learned}, q, step)
		if len(want) > 0 && got[0] > want[0]*(1+stayShare)+stayMs {
			t.Fatalf("step %d: the index finds cost %v where a beginning is shared, a walk %v", step, got[0], want[0])
		}
	}
}

// costsOf returns the costs of what a search finds; a model whose name is empty
// is walked over.
func costsOf(m *Model, q *Query, turn int) (all []float64) {
	c := new(Choice)
	n, home := 0, Candidate{}
	if m.Name != "" {
		n, _, home = c.search(q, q.Now.UnixNano(), turn) // where nobody is ready the index finds nobody
	} else {
		n, _, home = c.walk(&Query{Model: m, Prompt: q.Prompt, Output: q.Output, Found: q.Found, Goal: q.Goal}, m.usual(), q.Now.UnixNano(), turn, false)
	}
	for i := range n {
		all = append(all, c.found[i].Cost())
	}
	if home.Endpoint != nil {
		all = append(all, home.Cost())
	}
	return all
}

// change lets something happen to an endpoint.
func change(m *Model, r *rand.Rand, now time.Time) {
	e := m.Endpoints[r.IntN(len(m.Endpoints))]
	switch r.IntN(7) {
	case 0:
		e.Reserve(r.IntN(1000), r.IntN(200))
	case 1:
		reservation := e.Reserve(100, 10)
		reservation.Move(m.Endpoints[r.IntN(len(m.Endpoints))].Live)
	case 2:
		e.ReportFromAnswer(Report{Requests: int64(r.IntN(20)), Waiting: int64(max(0, r.IntN(9)-5)), KV: r.Float64()}, now)
	case 3:
		e.ReportFromFleet(Report{Requests: int64(r.IntN(20)), Waiting: int64(max(0, r.IntN(9)-5)), KV: r.Float64()}, now)
	case 4:
		e.eject(now, now, true)
	case 5:
		e.Reinstate()
	case 6:
		e.learn(Usage{Prompt: 100, Completion: 50, PrefillMs: 400 * r.Float64(), DecodeMs: 2000 * r.Float64()}, 1+3*r.Float64(), 0, now.UnixNano())
	}
}

func TestLargeModelsTakeTurnsToo(t *testing.T) {
	m := model()
	for i := range 2 * indexed {
		m.Endpoints = append(m.Endpoints, endpoint(i))
	}
	p, n, c := New(prometheus.NewRegistry()), map[string]int{}, new(Choice)
	for range 20 * indexed {
		if err := p.Pick(&Query{Model: m, Prompt: 10, Output: 10, Most: 1, Now: epoch}, c); err != nil {
			t.Fatal(err)
		}
		n[c.List[0].Address]++
	}
	for a, k := range n {
		if k > 30 {
			t.Errorf("%s was chosen %d times of %d among %d equals", a, k, 20*indexed, 2*indexed)
		}
	}
	if len(n) != 2*indexed {
		t.Errorf("%d of %d equals were chosen", len(n), 2*indexed)
	}
}

func TestNobodyReadyInALargeModel(t *testing.T) {
	m := model()
	for i := range indexed {
		m.Endpoints = append(m.Endpoints, endpoint(i, in(Suspect)))
	}
	p, c := New(prometheus.NewRegistry()), new(Choice)
	if err := p.Pick(&Query{Model: m, Prompt: 10, Output: 10, Most: 3, Now: epoch}, c); err != nil || c.Reason != Fallback || len(c.List) != 3 {
		t.Errorf("Pick() = %v, %v with %d hosts; want three suspects", err, c.Reason, len(c.List))
	}
}
