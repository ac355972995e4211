package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"millrace.dev/millrace/internal/planner"
)

// layouts measures E6: what a plan of a whole fleet takes.
func layouts(_ context.Context, b *bench) error {
	for _, size := range []struct {
		nodes, models int
		goal          string
	}{{1000, 100, "≤ 2"}, {10, 8, ""}} {
		var taken []float64
		placed := 0
		for range b.rounds {
			fleet, requests := manyNodes(size.nodes, size.models)
			before := ownCPU()
			all := planner.Make(fleet, requests)
			taken = append(taken, (ownCPU() - before).Seconds())
			placed = 0
			for _, l := range all {
				if l.Missing == "" {
					placed++
				}
			}
		}
		slices.Sort(taken)
		err := b.out.add(figure{
			Row: "E6", What: fmt.Sprintf("%d models on %d nodes, of which %d reach their goal", size.models, size.nodes, placed),
			Unit: "CPU s", Value: taken[len(taken)/2], Goal: size.goal, Env: here(b.rounds),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ownCPU is what this process has taken of CPUs.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it can't fail with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// manyNodes returns a fleet of nodes of several kinds in racks of 16, and models from 0.5 to
// some hundred GiB.
func manyNodes(nodes, models int) (planner.Fleet, []planner.Request) {
	const gib = 1 << 30
	rnd := rand.New(rand.NewPCG(1, 1))
	fleet := planner.Fleet{Link: planner.Link{Bandwidth: 1e9, Latency: 100 * time.Microsecond}}
	for i := range nodes {
		speed := []float64{50, 400, 900, 3000}[rnd.IntN(4)] * gib
		fleet.Nodes = append(fleet.Nodes, planner.Node{
			Name: fmt.Sprintf("n%d", i), Devices: []int{1, 1, 2, 8}[rnd.IntN(4)], Memory: uint64([]int{8, 16, 24, 80}[rnd.IntN(4)]) * gib,
			Decode: speed, Prefill: 20 * speed, Between: planner.Link{Bandwidth: 50e9, Latency: 10 * time.Microsecond}, Domain: fmt.Sprintf("rack-%d", i/16),
		})
	}
	var requests []planner.Request
	for i := range models {
		n, tensor := 16+rnd.IntN(80), rnd.IntN(2) == 0
		requests = append(requests, planner.Request{
			Model: planner.Model{
				Name: fmt.Sprintf("m%d", i), Layers: n, LayerBytes: uint64(gib * (0.02 + 0.4*rnd.ExpFloat64())), EmbeddingBytes: gib / 4, HeadBytes: gib / 4,
				KVBytesPerToken: uint64(n * 4096), Hidden: 8192, Heads: 64, KVHeads: 8, Overhead: gib / 4, Overlap: rnd.IntN(2) == 0, Tensor: tensor, Spans: !tensor,
			},
			Goal: planner.Goal{Replicas: rnd.IntN(4), Context: 8192, Slots: 1 + rnd.IntN(8)},
		})
	}
	return fleet, requests
}
