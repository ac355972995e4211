package main

import (
	"context"
	"fmt"
	"time"

	"millrace.dev/millrace/e2e/epdriver"
)

// crowd is how many endpoints P7 has.
const crowd = 1000

// idle measures P7: what extproc costs while nobody asks, and what it remembers.
func idle(ctx context.Context, b *bench) error {
	few, stop, err := b.among(ctx, endpoints)
	if err != nil {
		return err
	}
	if _, err := b.resting(ctx, few); err != nil { // meanwhile the tokenizer is read
		return err
	}
	least, err := few.live()
	stop()
	if err != nil {
		return err
	}
	p, stop, err := b.among(ctx, crowd)
	if err != nil {
		return err
	}
	defer stop()
	cores, err := b.resting(ctx, p)
	if err != nil {
		return err
	}
	memory := p.memory()
	most, err := p.live()
	if err != nil {
		return err
	}
	each, err := b.perSession(ctx, p)
	if err != nil {
		return err
	}
	for _, f := range []figure{
		{What: fmt.Sprintf("idle, %d endpoints", crowd), Unit: "cores", Value: cores, Goal: "≤ 0.002"},
		{What: fmt.Sprintf("idle, %d endpoints, resident", crowd), Unit: "MiB", Value: memory / (1 << 20), Goal: "≤ 64"},
		{What: "an endpoint", Unit: "B", Value: (most - least) / (crowd - endpoints)},
		{What: "a remembered session or prefix, resident", Unit: "B", Value: each, Goal: "≤ 128, and its prefix blocks"},
	} {
		f.Row, f.Env = "P7", here(1)
		if err := b.out.add(f); err != nil {
			return err
		}
	}
	return nil
}

// resting returns how many cores a program uses while nobody asks it.
func (b *bench) resting(ctx context.Context, p *program) (float64, error) {
	begin := time.Now()
	before, err := p.ran()
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(4 * b.each):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := p.ran()
	return float64(after-before) / float64(time.Since(begin)), err
}

// perSession returns the memory that a session takes: every request has one of
// its own, once the memory of requests themselves has grown.
func (b *bench) perSession(ctx context.Context, p *program) (float64, error) {
	const count = "millrace_extproc_prefixes"
	drive := epdriver.Config{Addr: p.addr, Mode: epdriver.Buffered, Clients: clients, For: b.each, Corpus: epdriver.NewColdCorpus(modelName, 512), Usage: usageHeader}
	if _, err := epdriver.Run(ctx, drive); err != nil {
		return 0, err
	}
	before, err := p.metric(count)
	if err != nil {
		return 0, err
	}
	if _, err := p.live(); err != nil {
		return 0, err
	}
	memory := p.memory()
	drive.For = 4 * b.each
	if _, err := epdriver.Run(ctx, drive); err != nil {
		return 0, err
	}
	after, err := p.metric(count)
	if err != nil || after <= before {
		return 0, fmt.Errorf("%v sessions, then %v: %w", before, after, err)
	}
	if _, err := p.live(); err != nil {
		return 0, err
	}
	return (p.memory() - memory) / (after - before), nil
}
