package main

import (
	"context"
	"fmt"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/engine/enginepb"
)

// What the agents of F2 report: logs of caches that are full, in each of which one
// segment changes with every report.
const (
	logBeat    = time.Second
	logEntries = 32 // of a segment
	logNews    = 8  // entries, by a report
	logTokens  = 16 // of an entry more than of the one before
)

// caches measures F2 as far as it is about caches: what xds and one extproc use of the
// machine while a thousand engines report what they have cached; floor: they report
// nothing. What an agent costs must not depend on how many there are.
func caches(ctx context.Context, b *bench) error {
	floor, err := b.reporting(ctx, crowd, false)
	if err != nil {
		return err
	}
	few, err := b.reporting(ctx, crowd/10, true)
	if err != nil {
		return err
	}
	many, err := b.reporting(ctx, crowd, true)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		name             string
		floor, few, many load
		cores, memory    string // goals
	}{
		{name: "xds", floor: floor.xds, few: few.xds, many: many.xds, cores: "≤ 0.2", memory: "≤ 400"},
		{name: "extproc", floor: floor.extproc, few: few.extproc, many: many.extproc},
	} {
		what := fmt.Sprintf("%s, %d agents, %d segments each, one of which changes each second", p.name, crowd, enginepb.MaxSegments)
		for _, f := range []figure{
			{What: what, Unit: "cores", Value: p.many.cores, Floor: p.floor.cores, Goal: p.cores},
			{What: what + ", resident", Unit: "MiB", Value: p.many.memory, Floor: p.floor.memory, Goal: p.memory},
			{What: p.name + ", for each agent", FloorIs: "an agent of a tenth as many", Unit: "µs/s", Value: 1e6 * p.many.cores / crowd, Floor: 1e7 * p.few.cores / crowd},
		} {
			f.Row, f.Env = "F2", here(1)
			if f.Floor > 0 {
				f.Ratio = f.Value / f.Floor
			}
			if err := b.out.add(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// load is what a program uses of the machine.
type load struct {
	cores, memory float64 // memory is in MiB
}

// loads are those of a control plane and the picker behind it.
type loads struct{ xds, extproc load }

// reporting returns what is used while n agents report; logs is whether they report
// caches.
func (b *bench) reporting(ctx context.Context, n int, logs bool) (l loads, err error) {
	at, err := rig.Addresses(2)
	if err != nil {
		return l, err
	}
	var engines []string
	for i := range n {
		engines = append(engines, fmt.Sprintf("127.1.%d.%d:8000", i>>8, i&255)) // where nobody asks
	}
	name := fmt.Sprintf("f2-%d-%v", n, logs)
	c, err := b.control(ctx, name, at[0], at[1], engines, func(f *fakeFleet) { f.beat, f.logs = logBeat, logs })
	if err != nil {
		return l, err
	}
	defer c.stop()
	p, err := b.ours(ctx, name+"-extproc", at[1], c.addr)
	if err != nil {
		return l, err
	}
	defer p.stop()
	if _, err := b.resting(ctx, p); err != nil { // meanwhile all is reported
		return l, err
	}
	if l.xds.cores, l.extproc.cores, err = b.using(ctx, c.xds, p); err != nil {
		return l, err
	}
	l.xds.memory, l.extproc.memory = c.xds.memory()/(1<<20), p.memory()/(1<<20)
	return l, nil
}

// using returns how many cores each of two programs uses while nobody asks the second.
func (b *bench) using(ctx context.Context, plane, picker *program) (planes, pickers float64, err error) {
	begin := time.Now()
	before, err := plane.ran()
	if err != nil {
		return 0, 0, err
	}
	if pickers, err = b.resting(ctx, picker); err != nil {
		return 0, 0, err
	}
	after, err := plane.ran()
	return float64(after-before) / float64(time.Since(begin)), pickers, err
}

// fakeLog is the log of a full cache.
type fakeLog struct {
	seed uint64 // of its keys
	next uint64 // number of the next entry
}

// entry returns the key and tokens of an entry by its number.
func (l *fakeLog) entry(n uint64) (key uint64, tokens uint32) {
	return l.seed<<32 + n + 1, uint32(n%logEntries+1) * logTokens
}

// report returns what has come since the last one: everything at first.
func (l *fakeLog) report() *enginepb.CacheReport {
	from := l.next
	if l.next += logNews; from == 0 {
		l.next = logEntries*enginepb.MaxSegments - logNews
	}
	last := (l.next-1)/logEntries + 1
	r := &enginepb.CacheReport{Epoch: 1, Oldest: max(enginepb.MaxSegments, last) - enginepb.MaxSegments + 1}
	for ; from < l.next; from++ {
		id, n := from/logEntries+1, len(r.Segments)
		if n == 0 || r.Segments[n-1].GetId() != id {
			r.Segments = append(r.Segments, &enginepb.CacheSegment{Id: id, From: uint32(from % logEntries)})
			n++
		}
		s := r.Segments[n-1]
		key, tokens := l.entry(from)
		s.Keys, s.Tokens = append(s.Keys, key), append(s.Tokens, tokens)
	}
	return r
}
