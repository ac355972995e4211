package probe

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/kvevents"
)

// events is how what an endpoint's engine publishes is followed.
type events struct {
	// Constant after newEvents. One of set and log is nil.
	*kvevents.Follower
	set *blocks.Set
	log *blocks.Log

	// The rest is guarded by Prober.mu.
	stop  context.CancelFunc // nil: it does not run
	epoch uint64             // of the engine when its publisher was lost
	cache *enginepb.Cache    // of log, as it was published last
}

// newEvents returns what follows an endpoint's events; nil: it publishes none.
func (p *Prober) newEvents(spec Endpoint) *events {
	k := spec.KVEvents
	if k == (config.KVEvents{}) {
		return nil
	}
	e := &events{}
	var target blocks.Target
	if p.logs {
		e.log = blocks.NewLog()
		target = e.log
	} else {
		e.set = new(blocks.Set)
		target = e.set
	}
	s := kvevents.Source{Connect: k.Connect, Listen: k.Listen, Topic: k.Topic}
	changed := func(c kvevents.Change) { p.changed(spec.Address, e, c, time.Now()) }
	e.Follower = kvevents.New(s, target, changed, p.kvMetrics, p.log.With("endpoint", spec.Address))
	return e
}

// follow runs what follows the endpoints that there are now, and ends the rest.
func (p *Prober) follow(ctx context.Context, g *errgroup.Group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for address, e := range p.following {
		if t := p.targets[address]; t == nil || t.events != e {
			e.stop()
			delete(p.following, address)
		}
	}
	for address, t := range p.targets {
		e := t.events
		if e == nil || e.stop != nil {
			continue
		}
		own, stop := context.WithCancel(ctx)
		e.stop = stop
		p.following[address] = e
		g.Go(func() error {
			defer stop()
			return e.Run(own)
		})
	}
}

// changed takes in what events say of the engine itself.
func (p *Prober) changed(address string, e *events, c kvevents.Change, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.targets[address]
	if t == nil || t.events != e {
		return
	}
	switch c {
	case kvevents.Lost:
		// The engine may be gone, too. It is probed at once; until that is known nothing may
		// be believed to be cached there, what was sent there neither.
		t.due.Store(0)
		t.restarted(now)
		e.epoch = t.epoch
	case kvevents.Restarted:
		if e.epoch != t.epoch {
			return // it has been noticed
		}
		t.restarted(now)
	}
	p.publishLocked(t, nil, 0, time.Time{})
}

// publishCachesLocked publishes the logs that have changed.
func (p *Prober) publishCachesLocked() {
	for address := range p.following {
		t := p.targets[address]
		if t == nil || t.events == nil || t.events.log == nil {
			continue
		}
		if c := t.events.log.Cache(); c != t.events.cache {
			t.events.cache = c
			p.publishLocked(t, nil, 0, time.Time{})
		}
	}
}

// EventFaults returns, by address, why the events of endpoints that live do not come, or
// are refused.
func (p *Prober) EventFaults() map[string]error {
	p.mu.Lock()
	defer p.mu.Unlock()
	faults := map[string]error{}
	for address, t := range p.targets {
		if t.events == nil || t.vital.state != Ready {
			continue
		}
		if err := t.events.Fault(); err != nil {
			faults[address] = err
		}
	}
	return faults
}
