package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/obs"
)

// hearing is how the events of an endpoint's engine are heard.
type hearing struct {
	// Constant after newHearing.
	*kvevents.Follower
	blocks *blocks.Set

	// The rest is guarded by Local.mu.
	stop  context.CancelFunc // nil: it does not run
	epoch uint64             // of the engine when its publisher was lost
}

// newHearing returns what hears the events that a file says an endpoint has; nil:
// none.
func (l *Local) newHearing(spec config.Endpoint) *hearing {
	k := spec.KVEvents
	if k == (config.KVEvents{}) {
		return nil
	}
	h := &hearing{blocks: new(blocks.Set)}
	s := kvevents.Source{Connect: k.Connect, Listen: k.Listen, Topic: k.Topic}
	changed := func(c kvevents.Change) { l.heard(spec.Address, h, c, time.Now()) }
	h.Follower = kvevents.New(s, h.blocks, changed, l.events, l.log.With("endpoint", spec.Address))
	return h
}

// hear runs those that endpoints have now, and ends the others.
func (l *Local) hear(ctx context.Context, g *errgroup.Group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for address, h := range l.hearings {
		if p := l.plains[address]; p == nil || p.hearing != h {
			h.stop()
			delete(l.hearings, address)
		}
	}
	for address, p := range l.plains {
		h := p.hearing
		if h == nil || h.stop != nil {
			continue
		}
		own, stop := context.WithCancel(ctx)
		h.stop = stop
		l.hearings[address] = h
		g.Go(func() error {
			defer stop()
			return h.Run(own)
		})
	}
}

// heard takes in what the events tell of the engine itself.
func (l *Local) heard(address string, h *hearing, c kvevents.Change, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.plains[address]
	if p == nil || p.hearing != h {
		return
	}
	switch c {
	case kvevents.Lost:
		// The engine may be gone, too. It is looked at at once; until that is known nothing
		// may be believed to be cached there, not what we have sent either.
		h.epoch = p.said.GetEpoch()
		p.due.Store(0)
		l.state.emptyCache(address)
		l.publishLocked()
	case kvevents.Restarted:
		if h.epoch != p.said.GetEpoch() {
			return // it has been noticed
		}
		p.restart()
		l.setLocked(p, now)
		l.publishLocked()
	}
}

// deafLocked names the endpoints whose events do not come, or are refused, though they live.
func (l *Local) deafLocked() (names []string) {
	for _, p := range l.sortedLocked() {
		if p.hearing == nil || p.vital.state != pick.Ready {
			continue
		}
		if err := p.hearing.Fault(); err != nil {
			names = append(names, fmt.Sprintf("%s (%v)", p.spec.Address, err))
		}
	}
	return names
}

// deaf is the condition that events of so many endpoints do not come or are refused.
func deaf(names []string, n int) obs.Condition {
	return obs.Condition{
		Code: "no-kv-events",
		Text: fmt.Sprintf("cache events of %d of %d endpoints do not come or are refused: %s; what they have cached is guessed", len(names), n, list(names)),
		Next: "start vLLM with --kv-events-config and publisher zmq: an endpoint with a * is for kvEvents.connect, one without for kvEvents.listen",
	}
}

// known counts the endpoints all of whose blocks are known, and the blocks.
func (l *Local) known() (endpoints, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.plains {
		if p.hearing == nil {
			continue
		}
		if k, _ := p.hearing.blocks.Knowledge(); k == blocks.Whole {
			endpoints++
		}
		n += p.hearing.blocks.Len()
	}
	return endpoints, n
}

// registerKnown registers the metrics of what is known of caches.
func (l *Local) registerKnown(reg prometheus.Registerer) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_extproc_kv_endpoints",
			Help: "Endpoints whose engines have told of all blocks in their KV caches.",
		}, func() float64 { n, _ := l.known(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_extproc_kv_blocks",
			Help: "Different blocks that engines have told are in their KV caches.",
		}, func() float64 { _, n := l.known(); return float64(n) }),
	)
}
