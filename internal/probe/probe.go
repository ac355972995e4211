// Package probe observes engines that send no reports: it probes their health, scrapes
// their metrics, and follows what they publish of their KV caches.
//
// extproc runs a Prober for the endpoints of a fleet's file, xds one for those that its
// configuration names. Set names the endpoints; their state is published as
// Observations. Its one rule: an Observation is what an endpoint showed, in words that are
// the same for all types of engines, and decides nothing.
package probe

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/scrape"
)

// How a Prober works.
const (
	// tick is how often it is checked who is to be probed.
	tick = 100 * time.Millisecond
	// followTicks is after how many ticks it is checked whose events are to be followed.
	followTicks = 5
	// workers is how many endpoints are probed at a time. Those that hang take one of them
	// for probeWait each, some of the time.
	workers = 64
	// stalled is how late a tick must be to show that we ourselves were stopped or starved:
	// the silence of endpoints meanwhile says nothing about them.
	stalled = time.Second
)

// Options is what a Prober is for.
type Options struct {
	// Program is the name of the program, for metrics.
	Program string
	// Observed takes each Observation in, one at a time, those of an endpoint in order. It
	// must not call the Prober.
	Observed func(*Observation)
	// Working reports whether requests are known to be in flight at an endpoint, so that it
	// is probed often; nil: that shows in its metrics alone.
	Working func(address string) bool
	// Logs is whether what engines publish of their KV caches is kept as logs, to be
	// reported; else it is kept as Sets, to be looked up.
	Logs bool
	// Models is whether endpoints are asked which models they serve, as their entries may
	// be wrong.
	Models bool
	// Get fetches a page into a buffer, as scrape.Client does; nil: over the network.
	Get func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error)
}

// Prober probes endpoints.
type Prober struct {
	// Constant after New.
	options   Options
	logs      bool
	log       *slog.Logger
	metrics   *metrics
	kvMetrics *kvevents.Metrics
	get       getter
	close     func()
	queue     chan *target // to be probed; if it is full, they wait for the next tick

	// mu guards the fields below, and calls of options.Observed.
	mu        sync.Mutex
	targets   map[string]*target // by address
	following map[string]*events // that run, by address
	usual     map[string]*speeds // by model
	excused   time.Time          // probes that began before it and found silence do not count
}

// New returns a Prober of nobody yet.
func New(o Options, log *slog.Logger, reg prometheus.Registerer) *Prober {
	p := &Prober{
		options: o, logs: o.Logs, log: log,
		metrics: newMetrics(o.Program, reg), kvMetrics: kvevents.NewMetrics(o.Program, reg),
		get: o.Get, close: func() {}, queue: make(chan *target, 4*workers),
		targets: map[string]*target{}, following: map[string]*events{}, usual: map[string]*speeds{},
	}
	if p.get == nil {
		client := scrape.NewClient()
		p.get, p.close = client.Get, client.Close
	}
	return p
}

// Set says who exists, each address once. What is known of those that were there
// before stays, if it is true of their entries still: see Same.
func (p *Prober) Set(endpoints []Endpoint) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]*target, len(endpoints))
	models := map[string]bool{}
	for _, spec := range endpoints {
		models[spec.Models[0]] = true
		old := p.targets[spec.Address]
		if old != nil && old.spec.UID == spec.UID && old.spec.Equal(spec.Endpoint) {
			all[spec.Address] = old
			continue
		}
		t, err := newTarget(spec, p.log)
		if err != nil {
			return err
		}
		if old != nil && Same(old.spec, spec) {
			t.inherit(old)
		}
		if old != nil && old.spec.KVEvents == spec.KVEvents && Same(old.spec, spec) {
			t.events = old.events
		} else {
			t.events = p.newEvents(spec)
		}
		all[spec.Address] = t
	}
	for address, old := range p.targets {
		if all[address] != old {
			old.close()
		}
	}
	p.targets = all
	for model := range p.usual {
		if !models[model] {
			delete(p.usual, model)
		}
	}
	return nil
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	defer p.end()
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error { return p.work(ctx) })
	}
	g.Go(func() error { return p.schedule(ctx, g) })
	return g.Wait()
}

// end closes connections.
func (p *Prober) end() {
	p.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.targets {
		t.close()
	}
}

// schedule hands endpoints to the workers when they are due. What follows events runs in
// g.
func (p *Prober) schedule(ctx context.Context, g *errgroup.Group) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	last := time.Now()
	for n := 0; ; n++ {
		if n%followTicks == 0 {
			p.follow(ctx, g)
		}
		now := time.Now()
		p.step(now, now.Sub(last) > stalled)
		last = now
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// step is one tick; late is whether it comes much too late.
func (p *Prober) step(now time.Time, late bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if late {
		p.excused = now
	}
	p.publishCachesLocked()
	least := leastPause(len(p.targets))
	for _, t := range p.targets {
		due := now.UnixNano() >= t.due.Load() || now.Sub(t.scraped) >= 2*least && t.vital.lost == 0 && p.working(t)
		if !due || t.busy.Load() {
			continue
		}
		t.busy.Store(true)
		select {
		case p.queue <- t:
		default:
			t.busy.Store(false)
			return
		}
	}
}

func (p *Prober) working(t *target) bool {
	return p.options.Working != nil && p.options.Working(t.spec.Address)
}

// work probes endpoints as they come.
func (p *Prober) work(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-p.queue:
			buf := pages.Get().(*[]byte)
			*buf = p.probe(ctx, t, *buf)
			pages.Put(buf)
			t.busy.Store(false)
		}
	}
}

// pages are buffers: few workers read at the same time.
var pages = sync.Pool{New: func() any { return new([]byte) }}

// probe probes one endpoint and takes in what that finds.
func (p *Prober) probe(ctx context.Context, t *target, buf []byte) []byte {
	began := time.Now()
	p.mu.Lock()
	q, list, about := t.ask(began, p.working(t)), p.options.Models && !began.Before(t.relist), !began.Before(t.again)
	p.mu.Unlock()
	f, buf := t.probe(ctx, p.get, q, buf)
	if list && f.health == nil && ctx.Err() == nil {
		buf = t.askModels(ctx, p.get, &f, buf)
	}
	if about && ctx.Err() == nil {
		buf = t.askContext(ctx, p.get, &f, buf)
	}
	if ctx.Err() != nil {
		return buf // it was we who ended it
	}
	now := time.Now()
	p.metrics.probed(&f, now.Sub(began))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.targets[t.spec.Address] != t {
		return buf // there is another entry, or none
	}
	if late := now.Sub(began) > 3*probeWait+stalled; silent(f.health) && (late || began.Before(p.excused)) {
		t.due.Store(0) // it was we who did not run
		return buf
	}
	was, fault, untrue, models := t.vital.state, t.metrics, t.untrue, t.models
	done, company := t.take(&f, now, p.working(t), len(p.targets))
	if done != nil {
		p.learnLocked(t, done, company)
	}
	asked := began
	if f.sample == nil {
		asked = time.Time{}
	}
	p.publishLocked(t, done, company, asked)
	p.noteLocked(t, was, fault)
	if t.untrue != untrue {
		p.log.Warn("cache size not believed, it was seen to hold more", "endpoint", t.spec.Address, "tokens", t.untrue)
	}
	if (t.models == nil) != (models == nil) && t.vital.state == Ready {
		p.log.Info("models changed", "endpoint", t.spec.Address, "error", t.models)
	}
	return buf
}

// noteLocked logs what has changed about an endpoint.
func (p *Prober) noteLocked(t *target, was State, fault error) {
	if s := t.vital.state; s != was {
		p.log.Info("endpoint changed", "endpoint", t.spec.Address, "state", s.String(), "was", was.String(), "error", t.vital.err)
	}
	if (t.metrics == nil) != (fault == nil) && t.vital.state == Ready {
		p.log.Info("metrics changed", "endpoint", t.spec.Address, "url", t.spec.Metrics, "error", t.metrics)
	}
}

// learnLocked learns how fast an engine is from what it has done. If that changes how fast
// all of its model are taken to be, all are published, the engine itself last: in between
// the others would seem faster.
func (p *Prober) learnLocked(t *target, done *scrape.Since, company float64) {
	model := t.spec.Models[0]
	usual := p.usual[model]
	if usual == nil {
		usual = new(speeds)
		p.usual[model] = usual
	}
	t.speed.follow(done, company)
	t.speed.drifted()
	usual.add(done, company)
	if !usual.drifted() {
		return
	}
	for _, other := range p.targets {
		if other != t && other.seen && other.spec.Models[0] == model {
			p.publishLocked(other, nil, 0, time.Time{})
		}
	}
}

// publishLocked publishes how an endpoint is. asked is when its metrics were asked for, that
// have just come; zero: none have.
func (p *Prober) publishLocked(t *target, done *scrape.Since, company float64, asked time.Time) {
	o := &Observation{
		Address: t.spec.Address, UID: t.spec.UID, State: t.vital.state, Err: t.vital.err, Epoch: t.epoch,
		Sample: t.figures(), Asked: asked, Done: done, Company: company, Slots: t.slots, KVTokens: t.kvTokens, Context: t.context, Version: t.version,
		Speed: t.speed.published, Adapters: t.adapters, MetricsErr: t.metrics, ModelsErr: t.models, FilesErr: t.door.Fault(),
	}
	if u := p.usual[t.spec.Models[0]]; u != nil {
		o.Usual = u.published
	}
	if e := t.events; e != nil {
		o.Blocks = e.set
		if t.vital.state == Ready {
			o.EventsErr = e.Fault()
		}
		if e.log != nil {
			e.log.SetEpoch(t.epoch)
			e.cache = e.log.Cache()
			o.Cache = e.cache
		}
	}
	p.options.Observed(o)
}
