package workload

import (
	"math"
	"math/rand/v2"
	"slices"

	"millrace.dev/millrace/extproc/internal/replay"
)

// family is what workloads of one kind have in common.
type family struct {
	name string
	// arrivals are when conversations begin, at one a second on average; nil: they are chained,
	// each agent beginning its next one when it is done with the last.
	arrivals func(r *rand.Rand, n int) []float64
	// turns is the mean number of requests of a conversation, abandoned the share of
	// conversations that end early, forked that of those that another one branches from.
	turns             float64
	abandoned, forked float64
	// preludes is how many different beginnings there are (system prompts, lists of tools,
	// documents), of which the n-th most frequent one comes 1/n as often; prelude is their
	// lengths. 0: conversations have nothing in common.
	preludes int
	prelude  length
	// message is what a turn adds to the prompt, answer what an engine makes of it; think is
	// what passes between an answer and the next turn, in milliseconds.
	message, answer, think length
	// batch is the share of requests that are jobs of batches: alone, patient, and in clumps.
	batch float64
	// adapters is how many LoRA adapters there are.
	adapters int
	// change makes a scenario special; nil: it is not.
	change func(s *Scenario, r *rand.Rand)
}

// length is how lengths are distributed, in tokens or milliseconds: log-normally about a median, or,
// if there are quantiles, by these.
type length struct {
	median, sigma float64
	quantiles     []float64
}

// Quantiles of the prompts and answers of a chat service of Azure's: each twentieth of the
// conversation trace of 2023 of the Azure Public Dataset (CC-BY; Patel et al., Splitwise, ISCA 2024).
var (
	azurePrompts = length{quantiles: []float64{2, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876, 2735, 4083, 14050}}
	azureAnswers = length{quantiles: []float64{7, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 1000}}
)

// at is its number.
func (f *family) at() int {
	return slices.IndexFunc(families, func(g family) bool { return g.name == f.name })
}

// mostLength is by what factor something is longer than usual at most.
const mostLength = 30

func (l *length) draw(r *rand.Rand) float64 {
	if q := l.quantiles; q != nil {
		at := r.Float64() * float64(len(q)-1)
		i := int(at)
		return q[i] + (at-float64(i))*(q[i+1]-q[i])
	}
	return l.median * min(mostLength, math.Exp(l.sigma*r.NormFloat64()))
}

var (
	message = length{median: 150, sigma: 1.1}
	answer  = length{median: 80, sigma: 0.8}
	think   = length{median: 1500, sigma: 0.8}
	system  = length{median: 600, sigma: 0.8}
)

var families = []family{
	{name: "chat", arrivals: poisson, turns: 3, abandoned: 0.2, preludes: 20, prelude: system, message: message, answer: answer, think: think},
	{name: "bursts", arrivals: bursts, turns: 3, preludes: 20, prelude: system, message: message, answer: answer, think: think},
	{name: "day", arrivals: day, turns: 3, abandoned: 0.2, preludes: 40, prelude: system, message: message, answer: answer, think: think},
	{name: "flash", arrivals: flash, turns: 2, preludes: 10, prelude: system, message: message, answer: answer, think: think},
	{name: "agents", turns: 12, preludes: 6, prelude: length{median: 3000, sigma: 0.5}, message: length{median: 500, sigma: 1.2},
		answer: length{median: 60, sigma: 0.9}, think: length{median: 700, sigma: 1}, change: patient},
	{name: "batch", arrivals: poisson, turns: 3, preludes: 20, prelude: system, message: message, answer: answer, think: think, batch: 0.5},
	{name: "documents", arrivals: poisson, turns: 1.5, preludes: 60, prelude: length{median: 6000, sigma: 0.6}, message: length{median: 60, sigma: 0.6},
		answer: answer, think: think, change: patient},
	{name: "single", arrivals: bursts, turns: 1, message: azurePrompts, answer: azureAnswers},
	{name: "forks", arrivals: poisson, turns: 4, abandoned: 0.3, forked: 0.5, preludes: 20, prelude: system, message: message, answer: answer, think: think},
	{name: "adapters", arrivals: poisson, turns: 3, preludes: 10, prelude: system, message: message, answer: answer, think: think, adapters: 24, change: swapping},
	{name: "slowed", arrivals: poisson, turns: 3, preludes: 20, prelude: system, message: message, answer: answer, think: think, change: slowed},
	{name: "died", arrivals: poisson, turns: 3, preludes: 20, prelude: system, message: message, answer: answer, think: think, change: died},
}

// patient is for long prompts, for which nobody expects the first token at once.
func patient(s *Scenario, _ *rand.Rand) {
	if s.Goal.TTFT > 0 {
		s.Goal.TTFT *= 2
	}
}

// swapping has engines load adapters.
func swapping(s *Scenario, r *rand.Rand) {
	for i := range s.Engines {
		s.Engines[i].Adapters, s.Engines[i].Load = 4, between(r, 50, 300)
	}
}

// slowed takes one engine to 30 % of its speed, of which it says nothing.
func slowed(s *Scenario, r *rand.Rand) {
	s.trouble = trouble{engine: r.IntN(len(s.Engines)), from: 0.25, until: 0.85, speed: 0.3}
}

// died takes one engine down for a while.
func died(s *Scenario, r *rand.Rand) {
	s.trouble = trouble{engine: r.IntN(len(s.Engines)), from: 0.3, until: 0.5}
}

// At returns the requests and the engines at a rate of requests a second.
func (s *Scenario) At(rate float64) (*replay.Trace, *replay.Fleet) {
	t := s.trace(rate)
	f := &replay.Fleet{Name: s.Kind, Engines: s.Engines, Age: s.Age}
	if s.engine >= 0 {
		span := float64(len(t.Requests)) / rate * 1000
		f.Troubles = []replay.Trouble{{Engine: s.engine, At: s.from * span, Until: s.until * span, Speed: s.speed}}
	}
	return t, f
}
