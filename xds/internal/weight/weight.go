// Package weight turns what is known of a replica into the weight that Envoy's
// fallback policy uses while no extproc answers. Called by fleet, on every snapshot.
//
// Its one rule: weights are pure functions of their arguments, so that anybody can
// compute a weight by hand.
package weight

import (
	"fmt"
	"math"
	"slices"
	"time"

	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// Full is the weight of a model's fastest replica when all is well with it.
const Full = 1000

// HalfLife is how often the weight of a replica whose node is silent halves:
// once at the start of the silence's suspicion and again each HalfLife.
const HalfLife = 5 * time.Second

// Replica is what the weight of one replica is made of.
type Replica struct {
	// Capacity is what the replica is worth, in tokens per second; 0: unknown.
	Capacity float64
	// Health is the share of normal speed left, 0 to 1.
	Health float64
	// Freshness is how far the last report is still believed, 0 to 1.
	Freshness float64
}

// most is how much more than another replica one can be worth to the weights: its capacity
// counts for so many times the median of the others' at most. A node that claims more than
// all others together takes from the others what such a node would, and no more.
const most = 16

// Of returns the weights of all replicas of one model, in their order, each
// from 1 to Full: capacity × health × freshness, scaled so that the largest
// capacity has Full. The scale takes capacities only, so that one replica's
// trouble changes no other's weight: half the capacity is half the weight, down to a
// sixteenth of the median.
//
// A replica of unknown capacity counts as the mean of the known ones: just
// started, it must neither draw all traffic nor starve.
func Of(replicas []Replica) []uint32 {
	capacities := bounded(replicas)
	mean, largest := known(capacities)
	weights := make([]uint32, len(replicas))
	for i, r := range replicas {
		capacity := capacities[i]
		if capacity == 0 {
			capacity = mean
		}
		weights[i] = uint32(math.Round(trust.Clamp(Full*capacity/largest*r.Health*r.Freshness, 1, Full)))
	}
	return weights
}

// bounded returns the capacities as they count; 0: unknown.
func bounded(replicas []Replica) []float64 {
	capacities := make([]float64, len(replicas))
	var sorted []float64 // those that are known
	for i, r := range replicas {
		if trust.Within(r.Capacity, math.SmallestNonzeroFloat64, math.MaxFloat64) {
			capacities[i] = r.Capacity
			sorted = append(sorted, r.Capacity)
		}
	}
	if len(sorted) < 2 {
		return capacities
	}
	slices.Sort(sorted)
	for i, c := range capacities {
		if c > 0 {
			capacities[i] = min(c, most*medianWithout(sorted, c))
		}
	}
	return capacities
}

// medianWithout returns the median of sorted numbers but for one of them, the lower one of
// two.
func medianWithout(sorted []float64, one float64) float64 {
	middle := (len(sorted) - 2) / 2
	if at, _ := slices.BinarySearch(sorted, one); at <= middle {
		middle++
	}
	return sorted[middle]
}

// known returns the mean and the largest of the known capacities, 1 without any.
func known(capacities []float64) (mean, largest float64) {
	n := 0
	for _, c := range capacities {
		if c > 0 {
			n++
			mean += c
			largest = max(largest, c)
		}
	}
	if n == 0 {
		return 1, 1
	}
	return mean / float64(n), largest
}

// Stage is one node's part in a replica, for Capacity.
type Stage struct {
	// Share is the stage's relative number of layers.
	Share float64
	// Capacity is what the operator says its node is worth for a whole model,
	// in tokens per second; 0: not said.
	Capacity float64
}

// Capacity returns what a replica is worth, in tokens per second: what the
// operator says of its nodes, else its measured decode speed, 0 if that is
// unknown too.
//
// A token passes the stages one after the other and spends the time
// share ÷ capacity on each, so the capacities add up as a harmonic mean that is
// weighted by the shares. Nodes of which nothing is said are left out.
func Capacity(stages []Stage, decode float64) float64 {
	var shares, seconds float64
	for _, s := range stages {
		if s.Capacity > 0 && s.Share > 0 {
			shares += s.Share
			seconds += s.Share / s.Capacity
		}
	}
	if seconds > 0 {
		return shares / seconds
	}
	return max(0, decode)
}

// Freshness returns how far the last word of a node is believed that has been
// suspect for d: a half, and half of that after each HalfLife.
func Freshness(d time.Duration) float64 {
	return math.Exp2(-1 - float64(max(0, d)/HalfLife))
}

// Clocks event reasons of NVML (nvml.h, nvmlClocksEventReason*) that slow a GPU
// down against its owner's will. Idle clocks, application settings and sync
// boost are not trouble.
const (
	swPowerCap       = 0x04
	hwSlowdown       = 0x08
	swThermal        = 0x20
	hwThermal        = 0x40
	hwPowerBrake     = 0x80
	throttled        = hwSlowdown | swThermal | hwThermal | hwPowerBrake
	throttledUnknown = 0.5 // throttled, and the driver doesn't say by how much
)

// Memory in use above memoryTight makes a host slow (its page cache, and with it
// mapped weights, go first); with none left it does a quarter of its work. GPU
// memory doesn't count: engines fill it on purpose.
const (
	memoryTight = 0.94
	memoryFloor = 0.25
)

// Health returns the share of its normal speed that a node has left, 0 to 1,
// and why it is not 1, for a person. 0 means that it can't work at all.
func Health(t *fleetpb.Telemetry) (health float64, reason string) {
	health = 1
	worse := func(h float64, format string, args ...any) {
		if h < health {
			health, reason = h, fmt.Sprintf(format, args...)
		}
	}
	for i, g := range t.GetGpus() {
		if g.GetLost() {
			worse(0, "GPU %d (%s) is lost", i, g.GetUuid())
		}
		worse(clocks(g), "GPU %d (%s) is throttled (reasons %#x)", i, g.GetUuid(), g.GetClocksEventReasons())
	}
	if total := t.GetMemoryTotalBytes(); total > 0 {
		used := float64(t.GetMemoryUsedBytes()) / float64(total)
		worse(pressure(used), "memory is %.0f %% full", 100*used)
	}
	return health, reason
}

// clocks returns the share of its speed that throttling leaves a GPU. The clock
// alone says nothing: an idle GPU clocks down too.
func clocks(g *fleetpb.Gpu) float64 {
	switch reasons, ratio := g.GetClocksEventReasons(), g.GetClockRatio(); {
	case reasons&(throttled|swPowerCap) == 0:
		return 1
	case ratio > 0:
		return min(1, ratio)
	case reasons&throttled != 0:
		return throttledUnknown
	default:
		return 1 // at its power cap, as a busy GPU is
	}
}

// pressure returns the share of its speed that a host has left with so much of
// its memory in use, 0 to 1.
func pressure(used float64) float64 {
	if used <= memoryTight {
		return 1
	}
	over := min(1, (used-memoryTight)/(1-memoryTight))
	return 1 - over*(1-memoryFloor)
}
