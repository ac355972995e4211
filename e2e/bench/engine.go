package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// engine measures E1: tokens per second through engine against the bare backend.
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
	for _, clients := range []int{1, 4} {
		if err := b.through(ctx, p, clients); err != nil {
			return err
		}
	}
	return nil
}

// through compares both ways with a number of clients.
func (b *bench) through(ctx context.Context, p pair, clients int) error {
	s := series{}
	requests := 6 * clients
	var cpu time.Duration
	for range b.rounds {
		bare, err := speed(ctx, p.backend, clients, requests)
		if err != nil {
			return fmt.Errorf("backend: %w", err)
		}
		before, _ := proc.State(p.pid)
		with, err := speed(ctx, p.engine, clients, requests)
		if err != nil {
			return fmt.Errorf("engine: %w", err)
		}
		after, _ := proc.State(p.pid)
		cpu += after.CPU - before.CPU
		s.add(with, bare)
	}
	err := b.out.add(figure{
		Row: "E1", What: fmt.Sprintf("through engine, %d clients, against the bare backend", clients), Unit: "tokens/s",
		Value: median(s.value), Floor: median(s.floor), Ratio: s.ratio(), Goal: "≥ 0.98 × floor", Env: here(b.rounds),
	})
	if err != nil {
		return err
	}
	each := float64(cpu.Microseconds()) / 1000 / float64(b.rounds*requests)
	return b.out.add(figure{
		Row: "E1", What: fmt.Sprintf("engine's own CPU, %d clients", clients), Unit: "ms/request",
		Value: each, Goal: "≤ 2 ms", Env: here(b.rounds),
	})
}

// speed returns the tokens generated per second in all.
func speed(ctx context.Context, addr string, clients, requests int) (float64, error) {
	work := make(chan int, requests)
	for i := range requests {
		work <- i
	}
	close(work)
	var (
		mu     sync.Mutex
		tokens int
		first  error
		wg     sync.WaitGroup
	)
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			for i := range work {
				n, err := generate(ctx, addr, fmt.Sprintf("Tell me story number %d.", i))
				mu.Lock()
				tokens += n
				if err != nil && first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return float64(tokens) / time.Since(begin).Seconds(), first
}

// generate asks for one answer of answerTokens and returns how many came.
func generate(ctx context.Context, addr, prompt string) (int, error) {
	body, err := json.Marshal(map[string]any{
		"model": modelName, "max_tokens": answerTokens, "ignore_eos": true, "temperature": 0,
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
