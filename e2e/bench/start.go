package main

import (
	"context"
	"fmt"
	"time"
)

// start measures U1: from the command to the first answer, with a full cache.
func start(ctx context.Context, b *bench) error {
	var ready, answered []float64
	for round := range b.rounds {
		m, err := b.up(fmt.Sprintf("u1-%d", round))
		if err != nil {
			return err
		}
		begin := time.Now()
		_, err = generate(ctx, m.state.Listen, "What is the capital of France?", answerTokens)
		took := m.Took + time.Since(begin)
		m.stop()
		if err != nil {
			return err
		}
		ready = append(ready, m.Took.Seconds())
		answered = append(answered, took.Seconds())
	}
	for _, f := range []figure{
		{What: "warm start to `ready`", Value: median(ready)},
		{What: fmt.Sprintf("warm start to the first answer, %d tokens", answerTokens), Value: median(answered), Goal: "≤ 10 s"},
	} {
		f.Row, f.Unit, f.Env = "U1", "s", here(b.rounds)
		if err := b.out.add(f); err != nil {
			return err
		}
	}
	return nil
}
