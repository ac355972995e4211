package pick

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/apis"
)

// lies are what an engine may say of an answer that took a second.
func lies() []Usage {
	numbers := []float64{0, 5e-324, 1e-9, 1, 1e9, 1e15, math.MaxFloat64, math.Inf(1), math.NaN(), -1}
	tokens := []int{0, 1, 2, 1 << 31, math.MaxInt, -1}
	var all []Usage
	for i, n := range numbers {
		for j, k := range tokens {
			all = append(all, Usage{
				Prompt: k, Cached: tokens[(i+j)%len(tokens)], Completion: tokens[(i+2*j)%len(tokens)],
				PrefillMs: n, DecodeMs: numbers[(i+j)%len(numbers)],
			})
		}
	}
	return all
}

// liar is a model of two endpoints, the first of which lies, and what is learned of it.
type liar struct {
	t      *testing.T
	picker *Picker
	model  *Model
	now    time.Time
}

func (l *liar) answer(e *Endpoint, u Usage, measured bool) {
	l.t.Helper()
	u.Shape = Shape{API: apis.Chat, Limit: -1, Choices: 1, Prompt: 200}
	sent := l.now
	l.now = l.now.Add(time.Second)
	if measured {
		l.picker.Measured(l.model, e, u, 1, 1, l.now)
		return
	}
	c := Candidate{Endpoint: e, Output: 40, Company: 1}
	l.picker.Learn(l.model, e, &c, u, sent, l.now)
}

// finite checks that all that is learned are numbers.
func (l *liar) finite(name string) {
	l.t.Helper()
	usual := l.model.usual()
	all := []float64{usual.prompt, usual.output, usual.regret, usual.idle, usual.prefill, usual.alone, usual.crowd}
	for _, e := range l.model.Endpoints {
		p := e.pace(l.now.UnixNano(), &usual)
		all = append(all, p.prefill, p.decode, p.crowd, p.hit)
		c := e.price(&Query{Model: l.model, Prompt: 200, Output: 40, Now: l.now}, usual, l.now.UnixNano())
		all = append(all, c.Cost(), c.Finish())
	}
	for i, v := range all {
		if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 && i != 4 {
			l.t.Fatalf("%s: number %d of what is learned is %v: %v", name, i, v, all)
		}
	}
}

// near reports whether a and b differ by a factor of 2 at most.
func near(a, b float64) bool { return a <= 2*b && b <= 2*a }

// TestLearnersRecoverFromAnything has an engine say anything, once or for long, and be
// honest for a minute afterwards, at one answer a second.
func TestLearnersRecoverFromAnything(t *testing.T) {
	honest := Usage{Prompt: 200, Completion: 40, PrefillMs: 400, DecodeMs: 800 * 0.7}
	for _, measured := range []bool{false, true} {
		for _, times := range []int{1, 100} {
			for n, lie := range lies() {
				name := fmt.Sprintf("lie %d (%+v) %d times, measured %t", n, lie, times, measured)
				l := &liar{t: t, picker: New(prometheus.NewRegistry()), model: model(endpoint(0), endpoint(1)), now: epoch}
				bad := l.model.Endpoints[0]
				for range 30 {
					l.answer(bad, honest, measured)
				}
				for range times {
					l.answer(bad, lie, measured)
					l.finite(name)
				}
				for range 60 {
					l.answer(bad, honest, measured)
				}
				l.finite(name)
				usual := l.model.usual()
				pace := bad.pace(l.now.UnixNano(), &usual)
				other := l.model.Endpoints[1].pace(l.now.UnixNano(), &usual)
				for what, got := range map[string][2]float64{
					"prefill": {pace.prefill, 2}, "decode": {pace.decode, 14}, "decode of the other": {other.decode, 14}, "prefill of the other": {other.prefill, 2},
					"output": {usual.output, 40}, "prompt": {usual.prompt, 200},
				} {
					if !near(got[0], got[1]) {
						t.Errorf("%s: %s is %v after a minute, want about %v", name, what, got[0], got[1])
					}
				}
				if t.Failed() {
					return
				}
			}
		}
	}
}
