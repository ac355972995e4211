package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// answerTokens is how long each answer is, in tokens.
const answerTokens = 32

// mesh is a real `millrace up`.
type mesh struct {
	*program
	dir   string
	state meshState
	took  time.Duration // from the start to `ready`
}

// meshState is what is needed of state.json.
type meshState struct {
	Listen    string `json:"listen"`
	Ready     bool   `json:"ready"`
	Processes []struct {
		Name  string            `json:"name"`
		Node  string            `json:"node"`
		PID   int               `json:"pid"`
		Addrs map[string]string `json:"addrs"`
	} `json:"processes"`
}

// up starts a mesh and waits until it is ready.
func (b *bench) up(ctx context.Context, name string) (*mesh, error) {
	m := &mesh{program: &program{log: filepath.Join(b.dir, name+".log")}, dir: filepath.Join(b.dir, name)}
	f, err := os.Create(m.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(filepath.Join(b.bin, "millrace"), "up", "-listen", "127.0.0.1:0", "-dir", m.dir, "-cache", b.cache)
	cmd.Stdout, cmd.Stderr = f, f
	begin := time.Now()
	if m.Process, err = proc.Start(cmd); err != nil {
		return nil, err
	}
	if err := wait(ctx, 2*time.Minute, m.isReady); err != nil {
		m.stop()
		return nil, fmt.Errorf("%w\n%s", err, m.said())
	}
	m.took = time.Since(begin)
	return m, nil
}

func (m *mesh) isReady() error {
	b, err := os.ReadFile(filepath.Join(m.dir, "state.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &m.state); err != nil {
		return err
	}
	if !m.state.Ready {
		return errors.New("the mesh is not ready")
	}
	return nil
}

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
	m, err := b.up(ctx, "e1")
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
	queue := make(chan string, w.requests)
	for range w.requests {
		queue <- fmt.Sprintf("Tell me story number %d.", rand.Uint64()) // nobody has it cached
	}
	close(queue)
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	begin := time.Now()
	for range w.clients {
		wg.Go(func() {
			for prompt := range queue {
				n, err := generate(ctx, w.addr, prompt, w.tokens)
				mu.Lock()
				tokens += n
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return tokens, time.Since(begin), first
}

// generate asks for one answer of so many tokens and returns how many came.
func generate(ctx context.Context, addr, prompt string, tokens int) (int, error) {
	body, err := json.Marshal(map[string]any{
		"model": modelName, "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
		"messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("content-type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Usage struct {
			Completion int `json:"completion_tokens"`
		} `json:"usage"`
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d: %.200s", resp.StatusCode, b)
	}
	err = json.Unmarshal(b, &answer)
	return answer.Usage.Completion, err
}
