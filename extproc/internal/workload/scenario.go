// Package workload makes workloads that nobody tuned on, by the hundred and from a seed,
// runs policies on them in package replay's simulation, and says how ours compares.
//
// A Scenario is a family, a number and what follows from both: who comes when, how long
// prompts and answers are, what they have in common, which engines there are and what
// happens to them. Even numbers are the training half: constants of the policy may be chosen by
// them. Odd ones are for reports alone. The command extproc/replay calls
// it. Its one rule: the same family, number and load are the same requests, whatever ran before.
package workload

import (
	"hash/fnv"
	"math/rand/v2"

	"millrace.dev/millrace/extproc/internal/replay"
)

// Half is a half of the scenarios.
type Half int

const (
	// Training is the half by which constants may be chosen.
	Training Half = iota
	// Evaluation is the half that results are reported of.
	Evaluation
)

// Scenario is one workload. It never changes.
type Scenario struct {
	// Family names what it is like, Seed distinguishes those of a family.
	Family string
	Seed   uint64
	// Kind is what the engines differ in, Engines what they are, Age how old their reports
	// are, in milliseconds, Pickers how many extprocs there are.
	Kind    string
	Engines []replay.Engine
	Age     float64
	Pickers int
	// Goal is what clients want, but for those of batches. Who wants an answer to be whole within a
	// time gives it more for each token that it may have.
	Goal replay.Goal

	family *family
	trouble
}

// trouble is what happens to one engine, from a share of the time until another; its speed is 0
// if it is dead.
type trouble struct {
	engine      int // below 0: none
	from, until float64
	speed       float64
}

// Families names those that there are.
func Families() (names []string) {
	for i := range families {
		names = append(names, families[i].name)
	}
	return names
}

// Of returns the scenarios of a half: so many of each family.
func Of(h Half, each int) (all []*Scenario) {
	for i := range families {
		for n := range each {
			all = append(all, newScenario(&families[i], uint64(2*n)+uint64(h)))
		}
	}
	return all
}

// kinds of fleets.
var kinds = []string{"equal", "speeds", "caches", "roles"}

func newScenario(f *family, seed uint64) *Scenario {
	r := random(f.name, seed, "fleet")
	s := &Scenario{Family: f.name, Seed: seed, family: f, Kind: kinds[(seed/2+uint64(f.at()))%uint64(len(kinds))], trouble: trouble{engine: -1}}
	base := replay.Engine{
		Slots: []int{8, 16, 24}[r.IntN(3)], Prefill: between(r, 0.04, 0.15), Decode: between(r, 12, 25), Crowd: between(r, 0.02, 0.08),
		Chunk: []int{512, 2048, 8192}[r.IntN(3)], Cache: int(between(r, 30_000, 200_000)),
	}
	for range 3 + r.IntN(4) {
		s.Engines = append(s.Engines, base)
	}
	s.vary(r)
	s.Age = []float64{100, 500, 2000, 10_000}[r.IntN(4)]
	s.Pickers = []int{1, 1, 2, 4, 8}[r.IntN(5)]
	s.Goal = []replay.Goal{{TTFT: 2000, TPOT: 100}, {TTFT: 2000, TPOT: 100}, {TTFT: 1000, TPOT: 80}, {E2E: 3000}}[r.IntN(4)]
	if f.change != nil {
		f.change(s, r)
	}
	return s
}

// vary makes the engines differ as the kind says.
func (s *Scenario) vary(r *rand.Rand) {
	speeds := 2 + r.IntN(3)
	spread := between(r, 2, 8)
	for i := range s.Engines {
		e := &s.Engines[i]
		// From 1 to the spread in so many steps, around the base in the middle.
		by := 1 + (spread-1)*float64(i%speeds)/float64(speeds-1)
		by /= (1 + spread) / 2
		switch s.Kind {
		case "speeds":
			e.Prefill, e.Decode = e.Prefill/by, e.Decode/by
		case "caches":
			e.Cache = int(float64(e.Cache) * by)
		case "roles":
			if i%2 == 0 {
				e.Prefill, e.Decode = e.Prefill/2, e.Decode*1.4
			} else {
				e.Prefill, e.Decode = e.Prefill*2, e.Decode/1.4
			}
		}
	}
}

// random returns numbers that follow from a family, a seed and what they are for.
func random(family string, seed uint64, what string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(family + "/" + what))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

func between(r *rand.Rand, a, b float64) float64 { return a + (b-a)*r.Float64() }
