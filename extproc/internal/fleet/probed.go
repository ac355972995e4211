package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/wire"
)

// tick is how often a table is published, if it has changed.
const tick = 100 * time.Millisecond

// probed keeps endpoints that extproc probes itself, whoever names them.
type probed struct {
	// Constant after init.
	owner  owner
	loader *loader
	prober *probe.Prober
	log    *slog.Logger

	// mu guards the fields below. The prober is never called with it locked: it calls
	// back.
	mu     sync.Mutex
	state  *state
	locals map[string]*local // by address
	dirty  bool              // whether the owner's tables are to be made again
}

// owner is who embeds probed. Its methods that end in Locked are called with mu locked.
type owner interface {
	// publishLocked makes the tables and publishes them.
	publishLocked()
	// measuredLocked takes in what an endpoint's engine has done.
	measuredLocked(w work, now time.Time)
	// often is called once a tick; n is the number of the tick.
	often(now time.Time, n int)
}

// local is an endpoint that is probed, with what was observed of it.
type local struct {
	entry inventory.Entry
	model string             // as tables have it
	last  *probe.Observation // nil: none
}

// getter fetches a page, as scrape.Client does; nil: over the network.
type getter = func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error)

// init makes p ready; who names the endpoints, for people. options is as far as owners
// differ.
func (p *probed) init(who string, o owner, load func(path string) (pick.Counter, error), options probe.Options, log *slog.Logger, reg prometheus.Registerer) {
	p.owner, p.log, p.loader = o, log, newLoader(load, log)
	p.state, p.locals = newState(false), map[string]*local{}
	p.state.keys = reach.NewKeys(log)
	options.Program, options.Observed, options.Working = "extproc", p.observed, p.working
	p.prober = probe.New(options, log, reg)
	p.registerProbed(who, reg)
	p.registerKnown(reg)
	for _, t := range types {
		p.state.answered[t] = true
	}
}

// keep follows the endpoints until ctx ends.
func (p *probed) keep(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.loader.run(ctx) })
	g.Go(func() error { return p.state.keys.Run(ctx) })
	g.Go(func() error { return p.prober.Run(ctx) })
	g.Go(func() error { return p.follow(ctx) })
	return g.Wait()
}

// follow publishes what has changed.
func (p *probed) follow(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ; n++ {
		p.owner.often(time.Now(), n)
		p.mu.Lock()
		if p.dirty {
			p.owner.publishLocked()
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// working reports whether requests of our own are in flight at an endpoint.
func (p *probed) working(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.state.endpoints[address]
	if e == nil {
		return false
	}
	n, _ := e.live.InFlight()
	return n > 0 || e.live.Metering()
}

// observed takes in what was observed of an endpoint.
func (p *probed) observed(o *probe.Observation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.locals[o.Address]
	if l == nil || l.entry.UID != o.UID {
		return // there is another one meanwhile, or none
	}
	now, last := time.Now(), l.last
	l.last = o
	if last == nil {
		last = &probe.Observation{Slots: l.entry.Slots}
	}
	if o.State != last.State || o.Epoch != last.Epoch || o.Slots != last.Slots || o.KVTokens != last.KVTokens || o.Context != last.Context || o.Usual != last.Usual || o.Blocks != last.Blocks {
		p.setLocked(l, now)
	}
	e := p.state.endpoints[o.Address]
	if o.Fresh() {
		e.live.ReportFromFleet(pick.Report{
			Requests: int64(o.Sample.Running + o.Sample.Waiting), Waiting: int64(o.Sample.Waiting), KV: o.Sample.KV,
		}, now)
		e.live.Page(&pick.Page{
			Asked: o.Asked, Count: endpoints.Count(l.entry, o), Answers: o.Sample.Requests, Requests: o.Sample.Running + o.Sample.Waiting,
		})
		if a := o.Adapters; a != nil && e.adapters != nil {
			e.adapters.Report(a.Most, a.Running, a.Waiting)
		}
	}
	if !o.Fresh() && o.Epoch != last.Epoch || o.Done != nil && o.Usual != last.Usual {
		p.owner.publishLocked() // before anything else is sent there, or learned of it
	}
	if o.Done != nil {
		p.owner.measuredLocked(work{o.Address, *o.Done, o.Company}, now)
	}
}

// setEntriesLocked makes these the endpoints that exist, each address once. What is known
// of those that were there before stays, if they are the same.
func (p *probed) setEntriesLocked(entries []inventory.Entry, now time.Time) {
	all := make(map[string]*local, len(entries))
	var changed []*local
	for _, entry := range entries {
		old := p.locals[entry.Address]
		switch {
		case old == nil:
		case old.entry.UID != entry.UID:
			delete(p.state.endpoints, entry.Address) // nothing of the one before is true of this one
			old = nil
		case old.entry.Equal(entry):
			all[entry.Address] = old
			continue
		}
		l := &local{entry: entry}
		if old != nil {
			l.model = old.model
			if endpoints.Same(old.entry, entry) {
				l.last = old.last
			}
		}
		all[entry.Address] = l
		changed = append(changed, l)
	}
	for address := range p.locals {
		if all[address] == nil {
			delete(p.state.endpoints, address)
			p.dirty = true
		}
	}
	p.locals = all
	for _, l := range changed {
		p.setLocked(l, now)
	}
}

// setLocked makes what is known of an endpoint that of the next table.
func (p *probed) setLocked(l *local, now time.Time) {
	m := endpoints.State(l.entry, l.last)
	if slices.Contains(l.entry.Models, l.model) {
		m.Model = l.model // it is the same engine still
	}
	l.model = m.GetModel()
	m.Speed, m.Work = nil, nil // Measured says more of its own speed
	if o := l.last; o != nil && o.Usual != (probe.Speed{}) {
		m.Speed = &enginepb.Speed{Prefill: o.Usual.Prefill, Decode: o.Usual.Decode}
	}
	load := m.Load
	m.Load = nil // it is reported as soon as it is observed
	p.state.setEndpoint(m, now)
	m.Load = &enginepb.Load{Slots: load.GetSlots(), KvTotalTokens: load.GetKvTotalTokens()}
	e := p.state.endpoints[m.GetAddress()]
	e.kv.Resize(capacity(m))
	e.blocks = nil
	if l.last != nil {
		e.blocks = l.last.Blocks
	}
	p.dirty = true
}

// deaf returns, by address, why the events of endpoints do not come, or are refused,
// though they live.
func (p *probed) deaf() []string {
	return faults(p.prober.EventFaults())
}

// known counts the endpoints all of whose blocks are known, and the blocks.
func (p *probed) known() (endpoints, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.locals {
		if l.last == nil || l.last.Blocks == nil {
			continue
		}
		if k, _ := l.last.Blocks.Knowledge(); k == blocks.Whole {
			endpoints++
		}
		n += l.last.Blocks.Len()
	}
	return endpoints, n
}

// registerKnown registers the metrics of what is known of caches.
func (p *probed) registerKnown(reg prometheus.Registerer) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_extproc_kv_endpoints",
			Help: "Endpoints whose engines have reported all blocks in their KV caches.",
		}, func() float64 { n, _ := p.known(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_extproc_kv_blocks",
			Help: "Different blocks that engines have reported to be in their KV caches.",
		}, func() float64 { _, n := p.known(); return float64(n) }),
	)
}

// shown is how many endpoints a Condition names.
const shown = 3

// remedies say what to do about endpoints, in the words of who names them.
type remedies struct{ down, metrics, events, models string }

// conditions returns what is wrong with endpoints and tokenizers.
func (p *probed) conditions(r remedies) []obs.Condition {
	now := p.count()
	var all []obs.Condition
	if len(now.down) > 0 {
		all = append(all, obs.Condition{
			Code: wire.EndpointsDown,
			Text: fmt.Sprintf("%d of %d endpoints do not answer: %s", len(now.down), now.all, list(now.down)),
			Next: r.down,
		})
	}
	if len(now.mute) > 0 {
		all = append(all, obs.Condition{
			Code: wire.NoMetrics,
			Text: fmt.Sprintf("%d of %d endpoints return no usable metrics: %s; their load is estimated from what this extproc sends them", len(now.mute), now.all, list(now.mute)),
			Next: r.metrics,
		})
	}
	if len(now.wrong) > 0 {
		all = append(all, obs.Condition{
			Code: wire.OtherModels,
			Text: fmt.Sprintf("%d of %d endpoints do not list the models that the fleet says they serve: %s; requests go there all the same", len(now.wrong), now.all, list(now.wrong)),
			Next: r.models,
		})
	}
	if len(now.files) > 0 {
		all = append(all, obs.Condition{
			Code: wire.EndpointFiles,
			Text: fmt.Sprintf("files with keys or certificates of %d of %d endpoints can't be used: %s; what was in them before is used", len(now.files), now.all, list(now.files)),
			Next: "replace each of them, certificate and key of each other, until they fit",
		})
	}
	if deaf := p.deaf(); len(deaf) > 0 {
		all = append(all, obs.Condition{
			Code: wire.NoKVEvents,
			Text: fmt.Sprintf("%d of %d endpoints send no usable cache events: %s; what they have cached is estimated", len(deaf), now.all, list(deaf)),
			Next: r.events,
		})
	}
	return slices.Concat(all, unpriced(now.unpriced), p.state.keys.Conditions(), p.loader.conditions())
}
