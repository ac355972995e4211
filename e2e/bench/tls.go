package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// shardedConfig asks for one replica that is split over two nodes: whatever it
// computes goes from one to the other.
const shardedConfig = `
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {replicas: 1, layout: [{stages: 2}]}
`

// oneTokens is how many requests of one token are measured at a time.
const oneTokens = 150

// tlsCost measures T1: what mutual TLS on every link costs, by two meshes that take
// turns.
func tlsCost(ctx context.Context, b *bench) error {
	config := filepath.Join(b.dir, "t1.yaml")
	if err := os.WriteFile(config, []byte(shardedConfig), 0o600); err != nil {
		return err
	}
	clear, err := b.up("t1-clear", "-nodes", "2", "-config", config)
	if err != nil {
		return err
	}
	defer clear.stop()
	secure, err := b.up("t1-tls", "-nodes", "2", "-config", config, "-tls")
	if err != nil {
		return err
	}
	defer secure.stop()
	cost, speed := series{}, series{}
	for round := range b.rounds {
		var cpu, rate [2]float64 // with TLS, without
		order := []int{0, 1}
		if round%2 == 1 {
			order = []int{1, 0}
		}
		for _, i := range order {
			m := []*mesh{secure, clear}[i]
			if cpu[i], err = m.cpuPerRequest(ctx); err != nil {
				return err
			}
			n, took, err := (work{addr: m.state.Listen, clients: 1, requests: 6, tokens: 3 * answerTokens}).run(ctx)
			if err != nil {
				return err
			}
			rate[i] = float64(n) / took.Seconds()
		}
		cost.add(cpu[0], cpu[1])
		speed.add(rate[0], rate[1])
	}
	for _, f := range []figure{
		{What: "Envoy, extproc and the head's engine with TLS, requests of one token", Unit: "CPU ms/request", Value: median(cost.value), Floor: median(cost.floor), Ratio: cost.ratio()},
		{What: "a replica split over two nodes, its shards' traffic through the tunnel, one client", Unit: "tokens/s", Value: median(speed.value), Floor: median(speed.floor), Ratio: speed.ratio()},
	} {
		f.Row, f.Env = "T1", here(b.rounds)
		if err := b.out.add(f); err != nil {
			return err
		}
	}
	return nil
}

// cpuPerRequest returns what the mesh's own programs on the path of a request cost, in
// milliseconds.
func (m *mesh) cpuPerRequest(ctx context.Context) (float64, error) {
	before, err := m.cpu()
	if err != nil {
		return 0, err
	}
	if _, _, err := (work{addr: m.state.Listen, clients: 2, requests: oneTokens, tokens: 1}).run(ctx); err != nil {
		return 0, err
	}
	after, err := m.cpu()
	return (after - before).Seconds() * 1000 / oneTokens, err
}

// cpu is the CPU time of Envoy, extproc and the engine of the head.
func (m *mesh) cpu() (all time.Duration, err error) {
	for _, name := range []string{"envoy", "extproc", "engine@node-a"} {
		p, err := proc.State(m.state.Find(name).PID)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		all += p.CPU
	}
	return all, nil
}
