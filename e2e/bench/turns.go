package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"millrace.dev/millrace/e2e/rig"
)

// What L4 sends: conversations of ten turns, some at a time, whose prompts grow to
// about a thousand tokens.
const (
	turnsEach     = 10
	turnsTogether = 2
	turnsAnswer   = 8 // tokens
)

// turns measures what sticky routing is worth on real engines: the time to the first
// token of turns 2 to 10, through `millrace up` and, in turns with it, through another
// Envoy before the same engines that takes them round robin.
func turns(ctx context.Context, b *bench) error {
	m, err := b.up("l4")
	if err != nil {
		return err
	}
	defer m.stop()
	blind, err := b.roundRobin(ctx, m.replicas())
	if err != nil {
		return err
	}
	defer blind.stop()
	var middle, tail, cached series
	for round := range b.rounds {
		ways := []string{m.state.Listen, blind.listen}
		if round%2 == 1 {
			slices.Reverse(ways)
		}
		by := map[string]*talks{}
		for _, addr := range ways {
			by[addr] = &talks{}
			if err := by[addr].hold(ctx, addr, round); err != nil {
				return err
			}
		}
		ours, other := by[m.state.Listen], by[blind.listen]
		middle.add(median(ours.ttft), median(other.ttft))
		tail.add(quantile(ours.ttft, 0.95), quantile(other.ttft, 0.95))
		cached.add(100*ours.share(), 100*other.share())
	}
	for _, f := range []struct {
		what, unit string
		s          *series
	}{
		{"time to the first token of turns 2 to 10, median", "ms", &middle},
		{"the same, 95th percentile", "ms", &tail},
		{"prompt tokens of these turns that were cached", "%", &cached},
	} {
		err := b.out.add(figure{
			Row: "L4", What: f.what, Unit: f.unit, Env: here(b.rounds),
			Value: median(f.s.value), Floor: median(f.s.floor), Ratio: f.s.ratio(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// replicas returns the addresses of the engines that answer for a replica.
func (m *mesh) replicas() (all []string) {
	http := map[string]string{} // by node
	for _, p := range m.state.Processes {
		if strings.HasPrefix(p.Name, "engine@") {
			http[p.Node] = p.Addrs["http"]
		}
	}
	for _, p := range m.state.Processes {
		if strings.HasPrefix(p.Name, "backend@") {
			all = append(all, http[p.Node])
		}
	}
	return all
}

// roundRobin starts an Envoy that asks no picker: the engines have equal weights, it takes
// them in turns.
func (b *bench) roundRobin(ctx context.Context, engines []string) (*side, error) {
	at, err := rig.Addresses(2)
	if err != nil {
		return nil, err
	}
	s := &side{listen: at[0]}
	if s.control, err = b.control(ctx, "l4-xds", at[0], "", engines); err == nil {
		err = b.startEnvoy(ctx, s, "l4", at[1])
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// talks is what was measured of the turns behind the first.
type talks struct {
	// mu guards the fields below.
	mu             sync.Mutex
	ttft           []float64 // ms
	prompt, cached int       // tokens
	failed         error
}

func (t *talks) share() float64 { return float64(t.cached) / float64(max(1, t.prompt)) }

// hold holds conversations through a gateway, that are new.
func (t *talks) hold(ctx context.Context, addr string, round int) error {
	var wg sync.WaitGroup
	for i := range turnsTogether {
		wg.Go(func() {
			if err := t.one(ctx, addr, fmt.Sprintf("%d of %d at %s", i, round, addr)); err != nil {
				t.mu.Lock()
				t.failed = err
				t.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return t.failed
}

func (t *talks) one(ctx context.Context, addr, about string) error {
	var history []rig.Message
	for turn := range turnsEach {
		history = append(history, rig.User(strings.Repeat(fmt.Sprintf("Note %d in story %s says that more will come. ", turn, about), 5)))
		a, err := rig.Stream(ctx, "http://"+addr+rig.ChatPath, map[string]any{
			"model": modelName, "messages": history, "max_tokens": turnsAnswer, "temperature": 0, "ignore_eos": true,
			"stream": true, "stream_options": map[string]any{"include_usage": true},
		}, nil)
		if err == nil && a.Text == "" {
			err = errors.New("no text came")
		}
		if err != nil {
			return fmt.Errorf("turn %d: %w", turn+1, err)
		}
		history = append(history, rig.Assistant(a.Text))
		if turn == 0 {
			continue
		}
		t.mu.Lock()
		t.ttft = append(t.ttft, a.First.Seconds()*1000)
		t.prompt += a.Usage.Prompt
		t.cached += a.Usage.Details.Cached
		t.mu.Unlock()
	}
	return nil
}

// quantile returns the value below which the share of all is.
func quantile(x []float64, share float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[int(share*float64(len(x)-1)+0.5)]
}
