package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"millrace.dev/millrace/e2e/epdriver"
)

// What P1 sends: bodies of 2 KiB in 256 sessions with 32 system prompts, 8 at a
// time, for 8 endpoints.
const (
	endpoints = 8
	bodySize  = 2048
	sessions  = 256
	prompts   = 32
	clients   = 8
)

// usageHeader is what an engine says of such a request.
const usageHeader = "prompt=420,cached=210,completion=128,prefill_ms=42.0,decode_ms=2500.0"

// control is a real xds with a fleet of fake nodes behind it.
type control struct {
	xds   *program
	addr  string // of xds, gRPC
	fleet fakeFleet
	end   context.CancelFunc
	ended chan error
}

// control starts xds with n ready engines at the given addresses. gateway is
// where Envoy is to listen, picker where it asks.
func (b *bench) control(ctx context.Context, name, gateway, picker string, engines []string) (*control, error) {
	file := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(b.modelFile(len(engines))), 0o644); err != nil {
		return nil, err
	}
	at, err := addresses(2)
	if err != nil {
		return nil, err
	}
	c := &control{addr: at[0], ended: make(chan error, 1)}
	c.xds, err = b.launch(ctx, name, at[0], filepath.Join(b.bin, "xds"), nil,
		"-listen", at[0], "-metrics", at[1], "-config", file, "-gateway", gateway, "-extproc", picker,
		"-access-log", filepath.Join(b.dir, name+"-access.log"))
	if err != nil {
		return nil, err
	}
	ctx, c.end = context.WithCancel(ctx)
	c.fleet = fakeFleet{xds: at[0], engines: engines}
	go func() { c.ended <- c.fleet.run(ctx) }()
	if err := c.fleet.ready(ctx); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w\n%s", err, c.xds.said())
	}
	return c, nil
}

func (c *control) stop() {
	c.end()
	<-c.ended
	c.xds.stop()
}

// ours starts extproc and waits until it names hosts.
func (b *bench) ours(ctx context.Context, name, addr, xds string) (*program, error) {
	at, err := addresses(1)
	if err != nil {
		return nil, err
	}
	p, err := b.launch(ctx, name, addr, filepath.Join(b.bin, "extproc"), nil, "-listen", addr, "-metrics", at[0], "-xds", xds)
	if err != nil {
		return nil, err
	}
	corpus := epdriver.NewCorpus(modelName, bodySize, 1, 1)
	err = wait(ctx, 30*time.Second, func() error {
		r, err := epdriver.Run(ctx, epdriver.Config{Addr: addr, Mode: epdriver.Buffered, Clients: 1, For: time.Millisecond, Corpus: corpus, Usage: usageHeader})
		if err == nil && r.Decisions == 0 {
			err = fmt.Errorf("it names no host: %v", r.Errors)
		}
		return err
	})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w\n%s", name, err, p.said())
	}
	return p, nil
}

// picker measures P1: extproc's CPU time per decision against the echo picker's.
func picker(ctx context.Context, b *bench) error {
	at, err := addresses(3 + endpoints)
	if err != nil {
		return err
	}
	engines := at[3:]
	c, err := b.control(ctx, "p1-xds", at[2], at[0], engines)
	if err != nil {
		return err
	}
	defer c.stop()
	ours, err := b.ours(ctx, "p1-extproc", at[0], c.addr)
	if err != nil {
		return err
	}
	defer ours.stop()
	floor, err := b.echoPicker(ctx, "p1-echo", at[1], engines[0])
	if err != nil {
		return err
	}
	defer floor.stop()
	corpus := epdriver.NewCorpus(modelName, bodySize, sessions, prompts)
	all := map[epdriver.Mode]*series{epdriver.Buffered: {}, epdriver.FullDuplex: {}, epdriver.Headers: {}}
	for round := range b.rounds {
		for mode, s := range all {
			if err := b.decide(ctx, s, floor, ours, at, mode, corpus); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
	}
	return b.reportPicker(all)
}

func (b *bench) reportPicker(all map[epdriver.Mode]*series) error {
	goals := map[epdriver.Mode]string{epdriver.Buffered: "≤ 1.4 × floor", epdriver.FullDuplex: "≤ 1.4 × floor"}
	for _, mode := range []epdriver.Mode{epdriver.Buffered, epdriver.FullDuplex, epdriver.Headers} {
		s := all[mode]
		if len(s.value) == 0 {
			continue
		}
		f := figure{
			Row: "P1", What: fmt.Sprintf("extproc, 2 KiB, %d endpoints, %s", endpoints, mode), Unit: "CPU µs/decision",
			Value: median(s.value), Floor: median(s.floor), Ratio: s.ratio(), Goal: goals[mode], Env: here(b.rounds),
		}
		if err := b.out.add(f); err != nil {
			return err
		}
	}
	return nil
}

// decide takes one round of one mode, of the floor and of ours.
func (b *bench) decide(ctx context.Context, s *series, floor, ours *program, at []string, mode epdriver.Mode, corpus *epdriver.Corpus) error {
	low, err := b.cost(ctx, floor, epdriver.Config{Addr: at[1], Mode: mode, Clients: clients, For: b.each, Corpus: corpus, Usage: usageHeader})
	if err != nil {
		return fmt.Errorf("echo, %s: %w", mode, err)
	}
	high, err := b.cost(ctx, ours, epdriver.Config{Addr: at[0], Mode: mode, Clients: clients, For: b.each, Corpus: corpus, Usage: usageHeader})
	if err != nil {
		return fmt.Errorf("extproc, %s: %w", mode, err)
	}
	s.add(high, low)
	return nil
}

// cost returns the picker's CPU time per decision, in microseconds.
func (b *bench) cost(ctx context.Context, p *program, c epdriver.Config) (float64, error) {
	warm := c
	warm.For = b.each / 10
	if _, err := epdriver.Run(ctx, warm); err != nil {
		return 0, err
	}
	before := p.cpu()
	r, err := epdriver.Run(ctx, c)
	if err != nil {
		return 0, err
	}
	n := r.Decisions + r.Nowhere
	if len(r.Errors) > 0 || n == 0 {
		return 0, fmt.Errorf("%d decisions, %d errors: %v", n, len(r.Errors), r.Errors)
	}
	if r.Nowhere > 0 && c.Mode != epdriver.Headers {
		return 0, fmt.Errorf("%d of %d decisions named no host", r.Nowhere, n)
	}
	return float64((p.cpu() - before).Microseconds()) / float64(n), nil
}
