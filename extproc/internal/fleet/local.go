package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/stamp"
	"millrace.dev/millrace/xds/fleetpb"
)

// tick is how often a table is published, if it has changed.
const tick = 100 * time.Millisecond

// Local keeps the fleet of a file.
type Local struct {
	// Constant after NewLocal.
	path    string
	picker  Picker
	loader  *loader
	prober  *probe.Prober
	log     *slog.Logger
	metrics *localMetrics

	// mu guards the fields below. The prober is never called with it locked: it calls
	// back.
	mu     sync.Mutex
	state  *state
	locals map[string]*local // by address
	table  *pick.Table       // as published
	dirty  bool              // whether the table is to be made again
	keys   [][]byte          // of cookies, the present one first
	stamps stamp.Files
	fault  error // of the file as it is; nil: it is in force
}

// local is an endpoint of the file, with what was observed of it.
type local struct {
	entry inventory.Entry
	model string             // as tables have it
	last  *probe.Observation // nil: none
}

// NewLocal returns the fleet of the file at path, which must be good. It gives
// tables and findings to picker, and reads tokenizers with load.
func NewLocal(path string, picker Picker, load func(path string) (pick.Counter, error), log *slog.Logger, reg prometheus.Registerer) (*Local, error) {
	l := &Local{
		path: path, picker: picker, log: log, metrics: newLocalMetrics(reg), loader: newLoader(load, log),
		state: newState(false), locals: map[string]*local{},
	}
	l.prober = probe.New(probe.Options{Program: "extproc", Observed: l.observed, Working: l.working}, log, reg)
	l.registerKnown(reg)
	for _, t := range types {
		l.state.answered[t] = true
	}
	if err := l.load(time.Now()); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.publishLocked()
	return l, nil
}

// Run follows the endpoints and the file until ctx ends.
func (l *Local) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.loader.run(ctx) })
	g.Go(func() error { return l.prober.Run(ctx) })
	g.Go(func() error { return l.follow(ctx) })
	return g.Wait()
}

// follow publishes what has changed, and reads the file again when it changes.
func (l *Local) follow(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ; n++ {
		if n%fileTicks == 0 {
			l.watch(time.Now())
		}
		l.mu.Lock()
		if l.dirty {
			l.publishLocked()
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// working reports whether requests of our own are in flight at an endpoint.
func (l *Local) working(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.state.endpoints[address]
	if e == nil {
		return false
	}
	n, _ := e.live.InFlight()
	return n > 0
}

// observed takes in what was observed of an endpoint.
func (l *Local) observed(o *probe.Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.locals[o.Address]
	if p == nil {
		return // the file has changed meanwhile
	}
	now, last := time.Now(), p.last
	p.last = o
	if last == nil {
		last = &probe.Observation{Slots: p.entry.Slots}
	}
	if o.State != last.State || o.Epoch != last.Epoch || o.Slots != last.Slots || o.KVTokens != last.KVTokens || o.Usual != last.Usual || o.Blocks != last.Blocks {
		l.setLocked(p, now)
	}
	e := l.state.endpoints[o.Address]
	if o.Fresh {
		e.live.ReportFromFleet(pick.Report{
			Requests: int64(o.Sample.Running + o.Sample.Waiting), Waiting: int64(o.Sample.Waiting), KV: o.Sample.KV,
		}, now)
		if a := o.Adapters; a != nil && e.adapters != nil {
			e.adapters.Report(a.Most, a.Running, a.Waiting)
		}
	}
	if !o.Fresh && o.Epoch != last.Epoch || o.Done != nil && o.Usual != last.Usual {
		l.publishLocked() // before anything else is sent there, or learned of it
	}
	if o.Done != nil {
		l.state.measured(l.picker, l.table, work{o.Address, *o.Done, o.Company}, now)
	}
}

// setLocked makes what is known of an endpoint that of the next table.
func (l *Local) setLocked(p *local, now time.Time) {
	m := endpoints.State(p.entry, p.last)
	if slices.Contains(p.entry.Models, p.model) {
		m.Model = p.model // it is the same engine still
	}
	p.model = m.GetModel()
	m.Speed, m.Work = nil, nil // Measured says more of its own speed
	if o := p.last; o != nil && o.Usual != (probe.Speed{}) {
		m.Speed = &enginepb.Speed{Prefill: o.Usual.Prefill, Decode: o.Usual.Decode}
	}
	load := m.Load
	m.Load = nil // it is reported as soon as it is observed
	l.state.setEndpoint(m, now)
	m.Load = &enginepb.Load{Slots: load.GetSlots(), KvTotalTokens: load.GetKvTotalTokens()}
	e := l.state.endpoints[m.GetAddress()]
	e.kv.Resize(capacity(m))
	e.blocks = nil
	if p.last != nil {
		e.blocks = p.last.Blocks
	}
	l.dirty = true
}

func (l *Local) publishLocked() {
	l.dirty = false
	l.table = l.state.table()
	l.picker.Publish(l.table)
	l.metrics.count(l.locals)
}

// load reads the file and makes it the fleet.
func (l *Local) load(now time.Time) error {
	l.mu.Lock()
	entries, err := l.loadLocked(now)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.prober.Set(inventory.Probed(entries))
}

// loadLocked reads the file and makes it the fleet, but for who is probed.
func (l *Local) loadLocked(now time.Time) ([]inventory.Entry, error) {
	// The stamps are taken before what they are of is read: what changes meanwhile is
	// read again.
	l.stamps = stamp.Of(l.path)
	f, err := config.LoadFleet(l.path)
	if err != nil {
		return nil, err
	}
	if name := f.Policy.Sessions.Cookie.KeyFile; name != "" {
		l.stamps = append(l.stamps, stamp.Of(name)...)
	}
	key, err := cookieKey(f.Policy.Sessions.Cookie, l.keys)
	if err != nil {
		return nil, err
	}
	l.keys = policy.Rotate(l.keys, key)
	l.state.setPolicy(policy.State(f.Policy, l.keys, 1))
	names := f.ModelNames()
	maps.DeleteFunc(l.state.models, func(name string, _ *model) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		l.state.setModel(&fleetpb.ModelState{Name: name, Tokenizer: f.Tokenizer(name), Default: name == f.DefaultModel()})
	}
	l.loader.want(l.state.tokenizers())
	entries := make([]inventory.Entry, len(f.Endpoints))
	all := make(map[string]*local, len(f.Endpoints))
	for i, spec := range f.Endpoints {
		entries[i].Endpoint = spec
		p := &local{entry: entries[i]}
		if old := l.locals[spec.Address]; old != nil {
			p.model = old.model
			if probe.Same(old.entry.Endpoint, spec) {
				p.last = old.last
			}
		}
		all[spec.Address] = p
	}
	l.locals = all
	maps.DeleteFunc(l.state.endpoints, func(address string, _ *endpoint) bool { return all[address] == nil })
	for _, p := range all {
		l.setLocked(p, now)
	}
	return entries, nil
}

// deaf returns, by address, why the events of endpoints do not come, or are refused,
// though they live.
func (l *Local) deaf() []string {
	var names []string
	faults := l.prober.EventFaults()
	for _, address := range slices.Sorted(maps.Keys(faults)) {
		names = append(names, fmt.Sprintf("%s (%v)", address, faults[address]))
	}
	return names
}

// known counts the endpoints all of whose blocks are known, and the blocks.
func (l *Local) known() (endpoints, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.locals {
		if p.last == nil || p.last.Blocks == nil {
			continue
		}
		if k, _ := p.last.Blocks.Knowledge(); k == blocks.Whole {
			endpoints++
		}
		n += p.last.Blocks.Len()
	}
	return endpoints, n
}

// registerKnown registers the metrics of what is known of caches.
func (l *Local) registerKnown(reg prometheus.Registerer) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_extproc_kv_endpoints",
			Help: "Endpoints whose engines have reported all blocks in their KV caches.",
		}, func() float64 { n, _ := l.known(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_extproc_kv_blocks",
			Help: "Different blocks that engines have reported to be in their KV caches.",
		}, func() float64 { _, n := l.known(); return float64(n) }),
	)
}

// cookieKey returns the key that signs cookies: that of the file, else the one that
// we have, else a new one. nil: there are to be none.
func cookieKey(c config.Cookie, have [][]byte) ([]byte, error) {
	switch {
	case c.Name == "":
		return nil, nil
	case c.KeyFile != "":
		key, err := c.Key()
		if err != nil {
			return nil, fmt.Errorf("policy.sessions.cookie.keyFile: %w", err)
		}
		return key, nil
	case len(have) > 0:
		return have[0], nil
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return key, nil
}
