package auto

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"millrace.dev/millrace/internal/planner"
)

// BenchmarkMake plans 100 models on 1,000 nodes: at first, again when a node is lost, and with
// every model due to move.
func BenchmarkMake(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 1))
	in := Input{}
	for i := range 1000 {
		n := Node{Steady: true}
		n.Node = planner.Node{Name: fmt.Sprintf("n%04d", i), Memory: uint64(2+rnd.IntN(14)) * gib, Decode: 1e9 * float64(1+rnd.IntN(4))}
		in.Nodes = append(in.Nodes, n)
	}
	for i := range 100 {
		in.Models = append(in.Models, model(fmt.Sprintf("m%02d", i), 1+rnd.IntN(6)))
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			Make(in, twelve)
		}
	})
	out := Make(in, twelve)
	for i := range in.Models {
		m := &in.Models[i]
		for _, name := range out.Models[m.Name].Names() {
			m.Runs = append(m.Runs, Run{name, out.Models[m.Name].Places[name]})
		}
	}
	in.Nodes = in.Nodes[1:]
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			Make(in, twelve)
		}
	})
	for i := range in.Models {
		in.Models[i].Due = true
	}
	b.Run("due", func(b *testing.B) {
		for b.Loop() {
			Make(in, twelve)
		}
	})
}
