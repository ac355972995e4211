package scale

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// BenchmarkDecide is one decision for each of 500 models, of 10,000 replicas together on four
// kinds of hardware, while demand is more than there is for a third of them.
func BenchmarkDecide(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var all []Input
	for m := range 500 {
		in := Input{Now: at, Settings: Settings{Min: 1, Max: 64, Budget: 200, DownAfter: 5 * time.Minute}}
		for v := range 4 {
			in.Variants = append(in.Variants, Variant{
				Name: fmt.Sprint(v), Cost: 1 + 5*r.Float64(), Rate: Load{0, 2000 + 8000*r.Float64(), 200 + 900*r.Float64()}, Start: time.Minute, Free: 20,
			})
		}
		for i := range 20 {
			in.Replicas = append(in.Replicas, Replica{Name: fmt.Sprintf("m%d-%d", m, i), Variant: i % 4, State: Serving, Started: at, Sessions: r.IntN(100)})
		}
		load := (4 + 24*r.Float64()) / 2
		in.Demand = Demand{Load: Load{Requests: load, Prompt: 5000 * load, Output: 500 * load}, Queued: r.IntN(20), Running: 40, Attainment: 1}
		for range 400 {
			in.Memory = Decide(in).Memory
			in.Now = in.Now.Add(time.Second)
		}
		all = append(all, in)
	}
	for b.Loop() {
		for _, in := range all {
			Decide(in)
		}
	}
}
