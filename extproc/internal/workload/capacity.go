package workload

import (
	"math"

	"millrace.dev/millrace/extproc/internal/replay"
)

// enough is the share of requests that must meet their goals for a rate to be within capacity.
const enough = 0.9

// Capacity is found to a share of 2 %, between an eighth and six times of what arithmetic
// says of prompts of which nothing is cached.
const (
	least, most  = 1.0 / 8, 6
	capacityRuns = 8
)

// Capacity returns the most requests a second of which the oracle has nine in ten meet their
// goals; 0: it never does. It is found by bisection, so that a load means the same on every scenario.
func (s *Scenario) Capacity() float64 {
	t, f := s.At(1)
	guess := 0.0
	for i := range f.Engines {
		guess += 1000 / f.Engines[i].Work(t)
	}
	within := func(rate float64) bool {
		t, f := s.At(rate)
		return replay.Grade(t, f, replay.Oracular, replay.Pickers{N: 1}, 1).Goodput >= enough
	}
	low, high := math.Log(guess*least), math.Log(guess*most)
	if !within(math.Exp(low)) {
		return 0
	}
	for range capacityRuns {
		if mid := (low + high) / 2; within(math.Exp(mid)) {
			low = mid
		} else {
			high = mid
		}
	}
	return math.Exp(low)
}
