package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

// answerTokens is how long each answer is, in tokens.
const answerTokens = 32

// mesh is a real `millrace up`.
type mesh struct {
	*rig.Mesh
	state rig.State
}

// up starts a mesh and waits until it is ready.
func (b *bench) up(name string) (*mesh, error) {
	m, err := rig.StartMesh(filepath.Join(b.dir, name))
	if err != nil {
		return nil, err
	}
	if err := m.Ready(); err != nil {
		m.Abandon()
		return nil, err
	}
	state, err := m.ReadState()
	if err != nil {
		m.Abandon()
		return nil, err
	}
	return &mesh{m, state}, nil
}

func (m *mesh) stop() { _ = m.Proc.Stop(5 * time.Second) }

// pair is an engine and the bare backend behind it.
type pair struct {
	engine, backend string
	pid             int // of the engine
}

// whole returns the pair of the node that holds a whole model.
func (m *mesh) whole() (pair, error) {
	byNode := map[string]*pair{}
	shards := map[string]bool{}
	for _, p := range m.state.Processes {
		if byNode[p.Node] == nil {
			byNode[p.Node] = &pair{}
		}
		switch role, _, _ := strings.Cut(p.Name, "@"); role {
		case "engine":
			byNode[p.Node].engine, byNode[p.Node].pid = p.Addrs["http"], p.PID
		case "backend":
			byNode[p.Node].backend = p.Addrs["http"]
		case "shard":
			shards[p.Node] = true
		}
	}
	for n, p := range byNode {
		if !shards[n] && p.backend != "" {
			return *p, nil
		}
	}
	return pair{}, errors.New("no node has a whole model")
}

// engine measures E1: tokens per second through engine against the bare backend,
// and what engine itself costs.
func engine(ctx context.Context, b *bench) error {
	m, err := b.up("e1")
	if err != nil {
		return err
	}
	defer m.stop()
	p, err := m.whole()
	if err != nil {
		return err
	}
	for _, clients := range []int{1, 4, 8} {
		if err := b.through(ctx, p, clients); err != nil {
			return err
		}
	}
	return b.overhead(ctx, p)
}

// through compares both ways with a number of clients. Each way goes first in
// every other round.
func (b *bench) through(ctx context.Context, p pair, clients int) error {
	s := series{}
	for round := range b.rounds {
		speeds := map[string]float64{} // by address
		order := []string{p.backend, p.engine}
		if round%2 == 1 {
			order[0], order[1] = order[1], order[0]
		}
		for _, addr := range order {
			w := work{addr: addr, clients: clients, requests: 6 * clients, tokens: answerTokens}
			n, took, err := w.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", addr, err)
			}
			speeds[addr] = float64(n) / took.Seconds()
		}
		s.add(speeds[p.engine], speeds[p.backend])
	}
	return b.out.add(figure{
		Row: "E1", What: fmt.Sprintf("through engine, clients: %d, against the bare backend", clients), Unit: "tokens/s",
		Value: median(s.value), Floor: median(s.floor), Ratio: s.ratio(), Goal: "≥ 0.98 × floor", Env: here(b.rounds),
	})
}

// overhead measures engine's own CPU time on short requests.
func (b *bench) overhead(ctx context.Context, p pair) error {
	const requests = 200
	var each []float64
	for range b.rounds {
		before, err := proc.State(p.pid)
		if err != nil {
			return err
		}
		w := work{addr: p.engine, clients: 1, requests: requests, tokens: 1}
		if _, _, err := w.run(ctx); err != nil {
			return err
		}
		after, err := proc.State(p.pid)
		if err != nil {
			return err
		}
		each = append(each, float64((after.CPU-before.CPU).Microseconds())/1000/requests)
	}
	return b.out.add(figure{
		Row: "E1", What: "engine's own CPU, all its work included, requests of one token", Unit: "CPU ms/request",
		Value: median(each), Goal: "≤ 2 ms", Env: here(b.rounds),
	})
}

// work is a number of requests for answers of some tokens.
type work struct {
	addr                      string
	clients, requests, tokens int
}

// run sends the requests and returns how many tokens came, in which time.
func (w work) run(ctx context.Context) (tokens int, took time.Duration, first error) {
	var mu sync.Mutex
	begin := time.Now()
	rig.Each(w.requests, w.clients, func(int) {
		prompt := fmt.Sprintf("Write story number %d.", rand.Uint64()) // nobody has it cached
		n, err := generate(ctx, w.addr, prompt, w.tokens)
		mu.Lock()
		defer mu.Unlock()
		tokens += n
		if first == nil {
			first = err
		}
	})
	return tokens, time.Since(begin), first
}

// generate asks for one answer of so many tokens and returns how many came.
func generate(ctx context.Context, addr, prompt string, tokens int) (int, error) {
	c, _, err := rig.Complete(ctx, "http://"+addr+rig.ChatPath, map[string]any{
		"model": modelName, "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "messages": []rig.Message{rig.User(prompt)},
	})
	return c.Usage.Completion, err
}
