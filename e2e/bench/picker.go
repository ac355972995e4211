package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"millrace.dev/millrace/e2e/epdriver"
	"millrace.dev/millrace/e2e/rig"
)

// Most of what is measured: bodies of 2 KiB in 256 sessions with 32 system
// prompts, 8 at a time, for 8 endpoints.
const (
	endpoints = 8
	bodySize  = 2 << 10
	sessions  = 256
	prompts   = 32
	clients   = 8
)

// usageHeader is what an engine reports of such a request.
const usageHeader = "prompt=420,cached=210,completion=128,prefill_ms=42.0,decode_ms=2500.0"

// decision is one kind of decision whose cost is measured.
type decision struct {
	row       string
	endpoints int
	size      int // of the body, in bytes
	mode      epdriver.Mode
	cold      bool // whether every conversation is new
	chunks    int  // of the answer's body that the picker gets
	goal      string
	extra     bool // whether it is left out by default
}

// decisions are those of the goals, then what lies between them.
func decisions() []decision {
	const p1, p2, p3, p4, cold = "≤ 1.0 × floor", "≤ 1.1 × floor", "≤ 0.9 × floor", "≤ 1.0 × floor", "≤ 1.7 × floor"
	all := []decision{
		{row: "P1", endpoints: 8, size: 2 << 10, mode: epdriver.Headers, goal: p1},
		{row: "P1", endpoints: 8, size: 2 << 10, mode: epdriver.Buffered, goal: p1},
		{row: "P1", endpoints: 8, size: 2 << 10, mode: epdriver.Streamed, goal: p1},
		{row: "P1", endpoints: 8, size: 2 << 10, mode: epdriver.FullDuplex, goal: p1},
		{row: "P2", endpoints: 512, size: 2 << 10, mode: epdriver.Buffered, goal: p2},
		{row: "P2", endpoints: 512, size: 2 << 10, mode: epdriver.FullDuplex, goal: p2},
		{row: "P2", endpoints: 4096, size: 2 << 10, mode: epdriver.Buffered, goal: "≤ 1.2 × floor"},
		{row: "P3", endpoints: 64, size: 64 << 10, mode: epdriver.Buffered, goal: p3},
		{row: "P3", endpoints: 64, size: 64 << 10, mode: epdriver.FullDuplex, goal: p3},
		{row: "P3", endpoints: 64, size: 64 << 10, mode: epdriver.Buffered, cold: true, goal: cold},
		{row: "P4", endpoints: 64, size: 400 << 10, mode: epdriver.Buffered, goal: p4},
		{row: "P4", endpoints: 64, size: 400 << 10, mode: epdriver.FullDuplex, goal: p4},
		{row: "P4", endpoints: 64, size: 400 << 10, mode: epdriver.Buffered, cold: true, goal: "≤ 2.0 × floor"},
		{row: "P5", endpoints: 8, size: 2 << 10, mode: epdriver.Buffered, chunks: 200, goal: "≤ 1.0 × floor"},
	}
	for _, n := range []int{8, 64, 512, 4096} {
		for _, size := range []int{2 << 10, 16 << 10, 64 << 10, 400 << 10, 1 << 20} {
			for _, cold := range []bool{false, true} {
				for _, mode := range []epdriver.Mode{epdriver.Headers, epdriver.Buffered, epdriver.FullDuplex} {
					all = append(all, decision{row: "P1", endpoints: n, size: size, mode: mode, cold: cold, extra: true})
				}
			}
		}
	}
	return all
}

// String describes the decision to a person.
func (d decision) String() string {
	turn := "multi-turn"
	if d.cold {
		turn = "cold"
	}
	s := fmt.Sprintf("%d KiB %s, %d endpoints, %s", d.size>>10, turn, d.endpoints, d.mode)
	if d.chunks > 0 {
		s += fmt.Sprintf(", %d chunks of answer", d.chunks)
	}
	return s
}

// corpus returns the decision's requests.
func (d decision) corpus() *epdriver.Corpus {
	if d.cold {
		return epdriver.NewColdCorpus(modelName, d.size)
	}
	n := min(sessions, max(16, 16<<20/d.size))
	return epdriver.NewCorpus(modelName, d.size, n, n*prompts/sessions)
}

// counted is whether allocations are counted of a decision.
func (d decision) counted() bool {
	return d.mode == epdriver.Buffered && d.size == bodySize && d.chunks == 0 && !d.cold
}

// measures is whether the run's flags ask for a decision.
func (b *bench) measures(d decision) bool {
	wanted := b.rows[d.row] || b.rows["P6"] && d.counted()
	return wanted && (b.whole || !d.extra) && strings.Contains(d.String(), b.match)
}

// costs are what one decision takes.
type costs struct{ cpu, allocations float64 } // µs, objects

// picker measures P1 to P6: what a decision costs extproc, and what the echo
// picker.
func picker(ctx context.Context, b *bench) error {
	at, err := rig.Addresses(2)
	if err != nil {
		return err
	}
	floor, err := b.echoPicker(ctx, "echo", at[0], "10.0.0.1:8000")
	if err != nil {
		return err
	}
	defer floor.stop()
	nothing, err := b.echoPicker(ctx, "bare", at[1], bare)
	if err != nil {
		return err
	}
	defer nothing.stop()
	for _, n := range []int{8, 64, 512, 4096} {
		var some []decision
		for _, d := range decisions() {
			if d.endpoints == n && b.measures(d) {
				some = append(some, d)
			}
		}
		if len(some) == 0 {
			continue
		}
		if err := b.decide(ctx, n, some, floor, nothing); err != nil {
			return fmt.Errorf("%d endpoints: %w", n, err)
		}
	}
	return nil
}

// decide measures decisions among n endpoints, in turns.
func (b *bench) decide(ctx context.Context, n int, some []decision, floor, nothing *program) error {
	ours, stop, err := b.among(ctx, n)
	if err != nil {
		return err
	}
	defer stop()
	cpu := make([]series, len(some))
	var allocations series
	for range b.rounds {
		for i, d := range some {
			high, low, err := b.compareDecisions(ctx, d, ours, floor)
			if err != nil {
				return fmt.Errorf("%v: %w", d, err)
			}
			cpu[i].add(high.cpu, low.cpu)
			if !d.counted() || !b.rows["P6"] {
				continue
			}
			least, err := b.cost(ctx, nothing, d, d.corpus())
			if err != nil {
				return fmt.Errorf("gRPC alone: %w", err)
			}
			allocations.add(high.allocations-least.allocations, least.allocations)
		}
	}
	for i, d := range some {
		err := b.out.add(figure{
			Row: d.row, What: d.String(), Unit: "CPU µs/decision", Goal: d.goal, Env: here(b.rounds),
			Value: median(cpu[i].value), Floor: median(cpu[i].floor), Ratio: cpu[i].ratio(),
		})
		if err != nil {
			return err
		}
	}
	if !b.rows["P6"] {
		return nil
	}
	return b.reportMemory(n, &allocations, ours)
}

func (b *bench) reportMemory(n int, allocations *series, ours *program) error {
	if len(allocations.value) > 0 {
		err := b.out.add(figure{
			Row: "P6", What: fmt.Sprintf("allocations beyond the floor, 2 KiB, %d endpoints", n), Unit: "allocations/decision", Goal: "≤ 8", Env: here(b.rounds),
			Value: median(allocations.value), Floor: median(allocations.floor),
		})
		if err != nil {
			return err
		}
	}
	return b.out.add(figure{
		Row: "P6", What: fmt.Sprintf("resident after these decisions, %d endpoints", n), Unit: "MiB", Value: ours.memory() / (1 << 20), Env: here(b.rounds),
	})
}

// compareDecisions takes one round of one kind, of ours and of the floor.
func (b *bench) compareDecisions(ctx context.Context, d decision, ours, floor *program) (high, low costs, err error) {
	corpus := d.corpus()
	if low, err = b.cost(ctx, floor, d, corpus); err != nil {
		return high, low, fmt.Errorf("echo: %w", err)
	}
	if high, err = b.cost(ctx, ours, d, corpus); err != nil {
		return high, low, fmt.Errorf("extproc: %w", err)
	}
	return high, low, nil
}

// among starts extproc with a fleet of n endpoints.
func (b *bench) among(ctx context.Context, n int) (p *program, stop func(), err error) {
	at, err := rig.Addresses(2)
	if err != nil {
		return nil, nil, err
	}
	k, err := b.newBook(at[0], n)
	if err != nil {
		return nil, nil, err
	}
	p, err = b.ours(ctx, fmt.Sprintf("extproc-%d", n), at[1], k.addr)
	if err != nil {
		k.stop()
		return nil, nil, err
	}
	return p, func() { p.stop(); k.stop() }, nil
}

// cost returns what a decision costs a picker.
func (b *bench) cost(ctx context.Context, p *program, d decision, corpus *epdriver.Corpus) (c costs, err error) {
	drive := epdriver.Config{Addr: p.addr, Mode: d.mode, Clients: clients, For: b.each, Corpus: corpus, Usage: usageHeader, Chunks: d.chunks}
	warm := drive
	warm.For = b.each / 4
	if _, err := epdriver.Run(ctx, warm); err != nil {
		return c, err
	}
	const mallocs = "go_memstats_mallocs_total"
	earlier, err := p.metric(mallocs)
	if err != nil {
		return c, err
	}
	objects, err := p.metric(mallocs)
	if err != nil {
		return c, err
	}
	reading := objects - earlier // to read the counter is to make all other series, too
	before := p.cpu()
	r, err := epdriver.Run(ctx, drive)
	if err != nil {
		return c, err
	}
	used := p.cpu() - before
	after, err := p.metric(mallocs)
	if n := r.Decisions + r.Nowhere; err == nil && (len(r.Errors) > 0 || n == 0) {
		err = fmt.Errorf("%d decisions, %d errors: %v", n, len(r.Errors), r.Errors)
	}
	n := float64(r.Decisions + r.Nowhere)
	return costs{cpu: float64(used.Microseconds()) / n, allocations: (after - objects - reading) / n}, err
}

// ours starts extproc and waits until it names hosts.
func (b *bench) ours(ctx context.Context, name, addr, xds string) (*program, error) {
	at, err := rig.Addresses(1)
	if err != nil {
		return nil, err
	}
	p, err := b.launch(ctx, name, addr, filepath.Join(b.bin, "extproc"), nil, "-listen", addr, "-metrics", at[0], "-xds", xds)
	if err != nil {
		return nil, err
	}
	p.admin = at[0]
	corpus := epdriver.NewCorpus(modelName, bodySize, 1, 1)
	err = rig.PollContext(ctx, 30*time.Second, func() error {
		r, err := epdriver.Run(ctx, epdriver.Config{Addr: addr, Mode: epdriver.Buffered, Clients: 1, For: time.Millisecond, Corpus: corpus, Usage: usageHeader})
		if err == nil && r.Decisions == 0 {
			err = fmt.Errorf("it names no host: %v", r.Errors)
		}
		return err
	})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w\n%s", name, err, p.out.Tail())
	}
	return p, nil
}
