package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/wire"
)

// What E3 sends: a load that rises to twice what the backend can do, and falls.
const (
	traceRequests = 60 // about, where that takes less than traceLongest
	traceLongest  = 4 * time.Minute
	tracePeak     = 2.0 // times what calibration had answered
	// tokenGoal and firstGoal are how many times as long tokens and first tokens may take as
	// for one client.
	tokenGoal, firstGoal = 3, 5
	sheddableShare       = 0.3
	unlimited            = 64 // more than ever come at once
)

// limit is a way to bound what runs at a time: a model of its own, on a node of its own.
type limit struct {
	name, what string
	slots      int
	addr       string
	good       []float64
}

func limits() []*limit {
	return []*limit{
		{name: "goal", what: "the limit follows the goal", slots: unlimited},
		{name: "fixed1", what: "1 at a time", slots: 1},
		{name: "fixed4", what: "4 at a time", slots: 4},
		{name: "fixed16", what: "16 at a time", slots: 16},
		{name: "unlimited", what: "unlimited", slots: unlimited},
	}
}

// goals are what an answer is to keep.
type goals struct{ first, token time.Duration }

// kept reports whether an answer of so many tokens kept them.
func (g goals) kept(s rig.Streamed) bool {
	return s.First <= g.first && (s.Usage.Completion < 2 || (s.Took-s.First)/time.Duration(s.Usage.Completion-1) <= g.token)
}

// goodput measures E3: how many answers keep a goal where the limit of what runs follows it,
// against fixed limits. All get the same requests at the same moments, each at a backend of
// its own: so whatever else the machine does slows all of them down.
func goodput(ctx context.Context, b *bench) error {
	all := limits()
	path := filepath.Join(b.dir, "e3.yaml")
	write := func(g goals) error { return b.writeLimits(path, all, g) }
	if err := write(goals{}); err != nil {
		return err
	}
	m, err := b.up("e3", "-config", path, "-nodes", fmt.Sprint(len(all)))
	if err != nil {
		return err
	}
	defer m.stop()
	http := map[string]string{} // by node
	for _, p := range m.state.Processes {
		if strings.HasPrefix(p.Name, "engine@") {
			http[p.Node] = p.Addrs["http"]
		}
	}
	for i, l := range all {
		l.addr = http[nodeOf(i)]
	}
	ratio, before := series{}, goals{}
	for round := range b.rounds {
		g, rate, err := calibrate(ctx, all)
		if err != nil {
			return err
		}
		if err := write(g); err != nil {
			return err
		}
		if g != before {
			if err := m.follows(ctx); err != nil {
				return err
			}
		}
		before = g
		var wg sync.WaitGroup
		for _, l := range all {
			wg.Go(func() {
				good, sent := l.trace(ctx, uint64(round), rate, g)
				fmt.Fprintf(os.Stderr, "bench: E3 round %d: %s: %d of %d kept %s and %s\n", round, l.what, good, sent, g.first, g.token)
				l.good = append(l.good, float64(good))
			})
		}
		wg.Wait()
		best := 0.0
		for _, l := range all[1:] {
			best = max(best, l.good[round])
		}
		ratio.add(all[0].good[round], best)
	}
	for _, l := range all[1:] {
		err := b.out.add(figure{Row: "E3", What: "answers that kept the goal, " + l.what, Unit: "answers", Value: median(l.good), Env: here(b.rounds)})
		if err != nil {
			return err
		}
	}
	return b.out.add(figure{
		Row: "E3", What: "answers that kept the goal, " + all[0].what, Unit: "answers", Env: here(b.rounds),
		Value: median(ratio.value), Floor: median(ratio.floor), Ratio: ratio.ratio(), Goal: "≥ 1.2 × floor",
	})
}

// nodeOf is the node of a limit.
func nodeOf(i int) string { return "node-" + string(rune('a'+i)) }

// writeLimits writes the configuration, with a goal for the limit that follows it.
func (b *bench) writeLimits(path string, all []*limit, g goals) error {
	weights, err := rig.Cached("models/*.gguf")
	if err != nil {
		return err
	}
	var text strings.Builder
	for i, l := range all {
		fmt.Fprintf(&text, "---\napiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: %s}\nspec:\n  weights: %s\n  default: %t\n  replicas: 1\n"+
			"  backend: {slots: %d, contextTokens: 256, queue: 1000}\n  layout: [{stages: 1, nodes: [%s]}]\n", l.name, weights, i == 0, l.slots, nodeOf(i))
		if i == 0 && g != (goals{}) {
			fmt.Fprintf(&text, "  goal: {firstToken: %s, token: %s}\n", g.first, g.token)
		}
	}
	next := path + ".next"
	if err := os.WriteFile(next, []byte(text.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// follows waits until a limit follows a goal that is new.
func (m *mesh) follows(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var status struct {
			Nodes []struct {
				Why string `json:"limit_why"`
			}
		}
		if err := m.Status(ctx, &status); err == nil {
			for _, n := range status.Nodes {
				if strings.HasPrefix(n.Why, "nothing is measured") {
					return nil
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no limit follows the goal: %w", ctx.Err())
		}
	}
}

// calibrate measures what each backend can do now, while all work: the goals follow the answers
// to one client each, the rate is of requests that four clients each have answered in a second.
func calibrate(ctx context.Context, all []*limit) (g goals, rate float64, failed error) {
	var mu sync.Mutex
	var firsts, tokens, rates []float64
	together := func(clients, requests int) error {
		var wg sync.WaitGroup
		for _, l := range all {
			wg.Go(func() {
				began := time.Now()
				rig.Each(requests, clients, func(i int) {
					s, err := l.ask(ctx, rand.Uint64(), middle, "")
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						failed = err
					}
					if clients == 1 {
						firsts, tokens = append(firsts, s.First.Seconds()), append(tokens, (s.Took-s.First).Seconds()/(middle-1))
					}
				})
				mu.Lock()
				defer mu.Unlock()
				if clients > 1 && l.slots > 1 {
					rates = append(rates, float64(requests)/time.Since(began).Seconds())
				}
			})
		}
		wg.Wait()
		return failed
	}
	if err := errors.Join(together(1, 3), together(4, 8)); err != nil {
		return g, 0, err
	}
	return goals{first: seconds(firstGoal * median(firsts)), token: seconds(tokenGoal * median(tokens))}, median(rates), nil
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond)
}

// middle is how many tokens half of the answers have at most.
const middle = 12

// length is how many tokens an answer has.
func length(r *rand.Rand) int { return max(2, min(48, int(middle*math.Exp(0.6*r.NormFloat64())))) }

// ask asks for one answer of so many tokens.
func (l *limit) ask(ctx context.Context, about uint64, tokens int, priority string) (rig.Streamed, error) {
	header := []string{}
	if priority != "" {
		header = append(header, wire.PriorityHeader, priority)
	}
	return rig.Stream(ctx, "http://"+l.addr+rig.ChatPath, map[string]any{
		"model": l.name, "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "stream": true,
		"stream_options": map[string]any{"include_usage": true}, "messages": []rig.Message{rig.User(fmt.Sprintf("Write story number %d.", about))},
	}, nil, header...)
}

// trace sends the load, the same for each limit of a round, and returns how many answers kept
// the goals.
func (l *limit) trace(ctx context.Context, round uint64, rate float64, g goals) (good, sent int) {
	lasts := min(traceLongest.Seconds(), traceRequests/rate)
	r := rand.New(rand.NewPCG(round, 3))
	var wg sync.WaitGroup
	var mu sync.Mutex
	began := time.Now()
	for at := 0.0; at < lasts; sent++ {
		now := rate * (0.1 + (tracePeak-0.1)*math.Pow(math.Sin(math.Pi*at/lasts), 2))
		at += r.ExpFloat64() / now
		tokens, priority, about := length(r), "", r.Uint64()
		if r.Float64() < sheddableShare {
			priority = wire.Sheddable
		}
		time.Sleep(time.Until(began.Add(seconds(at))))
		wg.Go(func() {
			s, err := l.ask(ctx, about, tokens, priority)
			if err != nil || !g.kept(s) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			good++
		})
	}
	wg.Wait()
	return good, sent
}
