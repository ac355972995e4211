package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/wire"
)

// outlives measures E2: the time to the first token of a conversation's next turn whose backend
// was killed, restored and computed, and what saving takes from the backend.
func outlives(ctx context.Context, b *bench) error {
	m, err := b.up("e2")
	if err != nil {
		return err
	}
	defer m.stop()
	p, err := m.whole()
	if err != nil {
		return err
	}
	for _, tokens := range []int{500, 1500, 3000} {
		restored, undisturbed := series{}, series{}
		for range b.rounds {
			t, err := m.killed(ctx, p, tokens)
			if err != nil {
				return fmt.Errorf("%d tokens: %w", tokens, err)
			}
			restored.add(t.restored, t.computed)
			undisturbed.add(t.undisturbed, t.computed)
		}
		goal := ""
		if tokens == 3000 {
			goal = "≤ 0.05 × floor"
		}
		for _, f := range []figure{
			{What: fmt.Sprintf("time to the first token of the next turn, %d tokens, backend killed, restored against computed", tokens), Value: median(restored.value), Floor: median(restored.floor), Ratio: restored.ratio(), Goal: goal},
			{What: fmt.Sprintf("the same undisturbed, %d tokens", tokens), Value: median(undisturbed.value), Floor: median(undisturbed.floor), Ratio: undisturbed.ratio()},
		} {
			f.Row, f.Unit, f.Env = "E2", "s", here(b.rounds)
			if err := b.out.add(f); err != nil {
				return err
			}
		}
	}
	return b.stalls(ctx, m, p)
}

// firsts are times to the first token, in seconds.
type firsts struct{ computed, undisturbed, restored float64 }

// killed holds a conversation of so many tokens with an engine, past Envoy, and kills its backend
// before the third turn.
func (m *mesh) killed(ctx context.Context, p pair, tokens int) (t firsts, err error) {
	const perLine = 13 // tokens, about
	text := strings.Repeat("The rivers of Europe are listed by their length and by their source. ", tokens/perLine)
	messages := []rig.Message{rig.User(fmt.Sprintf("Number %d. ", rand.Uint64()) + text + "Name one.")}
	var keys []string
	length := tokens
	turn := func() (float64, error) {
		keys = append(keys, fmt.Sprintf("%016x.%d", rand.Uint64()|1, length))
		s, err := rig.Stream(ctx, "http://"+p.engine+rig.ChatPath, map[string]any{
			"model": modelName, "max_tokens": 8, "temperature": 0, "messages": messages, "stream": true, "stream_options": map[string]bool{"include_usage": true},
		}, nil, wire.PrefixHeader, strings.Join(keys, ","))
		messages = append(messages, rig.Assistant(s.Text), rig.User("One more."))
		length = s.Usage.Total + perLine
		return s.First.Seconds(), err
	}
	for _, first := range []*float64{&t.computed, &t.undisturbed} {
		if *first, err = turn(); err != nil {
			return t, err
		}
	}
	if err := m.restart(ctx, p); err != nil {
		return t, err
	}
	if _, err := generate(ctx, p.engine, "Warm up.", 2); err != nil { // as any backend does before it serves long
		return t, err
	}
	t.restored, err = turn()
	return t, err
}

// settling is 1 while an engine saves.
const settling = "millrace_engine_snapshots_settling"

// restart kills the backend of an engine that has saved all, and waits until it serves again.
func (m *mesh) restart(ctx context.Context, p pair) error {
	var engine, backend rig.MeshProcess
	for _, one := range m.state.Processes {
		switch p.engine {
		case one.Addrs["http"]:
			engine, backend = one, m.state.Find("backend@"+one.Node)
		}
	}
	if err := await(ctx, func() error {
		if n, err := rig.Metric(engine.Addrs["metrics"], settling); err != nil || n > 0 {
			return fmt.Errorf("it is saving: %v, %v", n, err)
		}
		return nil
	}); err != nil {
		return err
	}
	now, err := m.ReadState()
	if err != nil {
		return err
	}
	backend = now.Find(backend.Name)
	if err := syscall.Kill(backend.PID, syscall.SIGKILL); err != nil {
		return err
	}
	return await(ctx, func() error {
		if err := m.Restarted(backend); err != nil {
			return err
		}
		return rig.Healthy(p.engine)
	})
}

// await waits until what returns no error.
func await(ctx context.Context, what func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := what()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// stalls measures which part of the time a busy backend stands still to save.
func (b *bench) stalls(ctx context.Context, m *mesh, p pair) error {
	metrics := ""
	for _, one := range m.state.Processes {
		if one.Addrs["http"] == p.engine {
			metrics = one.Addrs["metrics"]
		}
	}
	const stall, saved = `millrace_engine_snapshot_seconds_sum{phase="stall"}`, `millrace_engine_snapshots_saved_total{outcome="saved"}`
	before, err := rig.Metric(metrics, stall)
	if err != nil {
		return err
	}
	had, err := rig.Metric(metrics, saved)
	if err != nil {
		return err
	}
	began := time.Now()
	text := strings.Repeat("The rivers of Europe are listed by their length and by their source. ", 20)
	var first error
	rig.Each(8*b.rounds, 4, func(int) {
		_, err := rig.Stream(ctx, "http://"+p.engine+rig.ChatPath, map[string]any{
			"model": modelName, "max_tokens": answerTokens, "ignore_eos": true, "stream": true, "messages": []rig.Message{rig.User(fmt.Sprint(rand.Uint64(), text))},
		}, nil, wire.PrefixHeader, fmt.Sprintf("%016x.280", rand.Uint64()|1))
		if err != nil {
			first = err
		}
	})
	if first != nil {
		return first
	}
	after, err := rig.Metric(metrics, stall)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	has, err := rig.Metric(metrics, saved)
	if err != nil {
		return err
	}
	if err := b.out.add(figure{
		Row: "E2", What: "part of the answers of 4 clients in 4 slots that were saved before the slot was taken again", Unit: "%",
		Value: 100 * (has - had) / float64(8*b.rounds), Env: here(b.rounds),
	}); err != nil {
		return err
	}
	return b.out.add(figure{
		Row: "E2", What: "part of the time for which the backend stands still to save, 4 clients, prompts of 280 tokens", Unit: "%",
		Value: 100 * (after - before) / took, Goal: "≤ 5 %", Env: here(b.rounds),
	})
}
