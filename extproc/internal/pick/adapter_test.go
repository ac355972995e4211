package pick

import (
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// loads makes an endpoint serve a base and adapters, of which two may be loaded.
func loads(running, waiting []string, before ...string) func(*Endpoint) {
	return func(e *Endpoint) {
		e.Base, e.Adapters = "base", new(Adapters)
		e.Adapters.Report(2, before, nil)
		e.Adapters.Report(2, running, waiting)
	}
}

func TestLoadingAnAdapterTakesTime(t *testing.T) {
	decode := 128 * 20.0 // what a request takes to end, until more is known
	tests := []struct {
		name  string
		model string
		edit  func(*Endpoint)
		want  float64
	}{
		{"the base", "base", loads(nil, nil), 0},
		{"an endpoint of one model", "m", func(*Endpoint) {}, 0},
		{"an engine without adapters", "m", func(e *Endpoint) { loads(nil, nil)(e); e.Adapters.Report(0, nil, nil) }, 0},
		{"it is at work", "m", loads([]string{"m"}, nil), 0},
		{"it is asked for", "m", loads([]string{"x"}, []string{"m"}), 0},
		{"it was at work before", "m", loads([]string{"x"}, nil, "m"), 0},
		{"nothing is loaded", "m", loads(nil, nil), loadAdapter},
		{"others are, and there is room", "m", loads([]string{"x"}, nil), loadAdapter},
		{"others take all the room", "m", loads(nil, nil, "x", "y"), 2 * loadAdapter},
		{"two others came since", "m", loads([]string{"x", "y"}, nil, "m"), 2*loadAdapter + decode},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := endpoint(0, tt.edit)
			m := model(e)
			m.Name = tt.model
			c := e.price(&Query{Model: m, Prompt: 10, Output: 1, Now: epoch}, m.usual(), epoch.UnixNano())
			if c.Load != tt.want {
				t.Errorf("load takes %v ms, want %v", c.Load, tt.want)
			}
			if f := c.Wait + c.Load + c.Prefill + c.Decode; c.Finish() != f {
				t.Errorf("finish %v, want %v", c.Finish(), f)
			}
		})
	}
}

// TestAdaptersStayWhereTheyAre asks for an adapter again and again.
func TestAdaptersStayWhereTheyAre(t *testing.T) {
	for _, n := range []int{4, 2 * indexed} {
		var es []*Endpoint
		for i := range n {
			es = append(es, endpoint(i, loads(nil, nil)))
		}
		loads([]string{"m"}, nil)(es[n-2])
		m := model(es...)
		var c Choice
		p := New(prometheus.NewRegistry())
		for range 5 {
			q := Query{Model: m, Prompt: 10, Output: 1, Most: 2, Now: epoch}
			if err := p.Pick(&q, &c); err != nil || c.List[0].Endpoint != es[n-2] {
				t.Fatalf("of %d endpoints %s was chosen (%v), want the one that has it", n, c.List[0].Address, err)
			}
			r := c.List[0].Reserve(&q)
			r.Release()
		}
	}
}

// TestAnAdapterThatWasSentForIsLoaded does not wait until the engine shows it.
func TestAnAdapterThatWasSentForIsLoaded(t *testing.T) {
	e := endpoint(0, loads([]string{"x"}, nil, "y"))
	m := model(e)
	c := Candidate{Endpoint: e}
	r := c.Reserve(&Query{Model: m, Now: epoch})
	r.Release()
	if names := e.Adapters.state.Load().names; !slices.Equal(names, []string{"m", "x"}) {
		t.Errorf("loaded are %v", names)
	}
	e.Adapters.Forget()
	e.Adapters.use("m")
	if e.Adapter(m) != "" {
		t.Error("an engine that shows nothing has adapters")
	}
}

// BenchmarkAdaptersInTurn sends for all adapters of an engine in turn.
func BenchmarkAdaptersInTurn(b *testing.B) {
	for _, n := range []int{4, 64, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var names []string
			for i := range n {
				names = append(names, fmt.Sprintf("organisation/adapter-%d", i))
			}
			a := new(Adapters)
			a.Report(n, names, nil)
			for i := 0; b.Loop(); i++ {
				a.use(names[i%n])
			}
		})
	}
}
