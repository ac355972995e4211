package pick

import (
	"math"
	"testing"

	"millrace.dev/millrace/extproc/internal/session"
)

func TestRewriteChooses(t *testing.T) {
	serving := func(name string, s State) *Model {
		return &Model{Name: name, Endpoints: []*Endpoint{{State: NotReady}, {State: s}}}
	}
	table := &Table{Models: map[string]*Model{"a": serving("a", Ready), "b": serving("b", Ready), "c": serving("c", NotReady)}}
	const n = 20000
	share := func(r *Rewrite) (a int, names []string) {
		for i := range n {
			m := r.Choose(table, session.Next(1, []byte{byte(i), byte(i >> 8)}))
			names = append(names, m.Name)
			if m.Name == "a" {
				a++
			}
		}
		return a, names
	}
	nine := &Rewrite{To: []Target{{"a", 9}, {"b", 1}, {"c", 90}, {"gone", 5}}}
	got, before := share(nine)
	if math.Abs(float64(got)/n-0.9) > 0.01 {
		t.Errorf("a serves %d of %d conversations, want 0.9", got, n)
	}
	eight := &Rewrite{To: []Target{{"a", 8}, {"b", 2}}}
	got, after := share(eight)
	moved := 0
	for i := range before {
		if before[i] != after[i] {
			moved++
		}
	}
	if math.Abs(float64(got)/n-0.8) > 0.01 || math.Abs(float64(moved)/n-0.1) > 0.01 {
		t.Errorf("a serves %d of %d, %d moved; want 0.8 and 0.1", got, n, moved)
	}
	if m := (&Rewrite{To: []Target{{"c", 1}}}).Choose(table, 1); m == nil || m.Name != "c" {
		t.Errorf("the only one, which is not ready: %v", m)
	}
	if m := (&Rewrite{To: []Target{{"gone", 1}}}).Choose(table, 1); m != nil {
		t.Errorf("none there: %v", m)
	}
}
