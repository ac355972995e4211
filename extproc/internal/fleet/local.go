package fleet

import (
	"cmp"
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
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/xds/fleetpb"
)

// How Local works.
const (
	// tick is how often it is checked who is to be looked at.
	tick = 100 * time.Millisecond
	// lookers is how many endpoints are looked at at a time. Those that hang hold
	// one of them for lookWait each, some of the time.
	lookers = 64
	// keysKept is how many cookie keys verify: the one of the file, and those that
	// it had before.
	keysKept = 4
)

// Picker takes what Local finds out.
type Picker interface {
	// Publish replaces the table.
	Publish(t *pick.Table)
	// Measured takes in what an engine has done.
	Measured(m *pick.Model, e *pick.Endpoint, u pick.Usage, requests, company float64, now time.Time)
}

// Local keeps the fleet of a file.
type Local struct {
	// Constant after NewLocal.
	path    string
	picker  Picker
	loader  *loader
	log     *slog.Logger
	metrics *localMetrics
	events  *kvevents.Metrics
	get     getter
	close   func()
	queue   chan *plain // to be looked at; if it is full, they wait for the next tick

	// mu guards the fields below.
	mu       sync.Mutex
	state    *state
	plains   map[string]*plain   // by address
	hearings map[string]*hearing // that run, by address
	table    *pick.Table         // as published
	dirty    bool                // whether the table is to be made again
	speeds   map[string]*speed   // by model
	keys     [][]byte            // of cookies, the present one first
	stamps   stamps
	fault    error // of the file as it is; nil: it is in force
}

// NewLocal returns the fleet of the file at path, which must be good. It gives
// tables and findings to picker, and reads tokenizers with load.
func NewLocal(path string, picker Picker, load func(path string) (pick.Counter, error), log *slog.Logger, reg prometheus.Registerer) (*Local, error) {
	client := scrape.NewClient()
	l := &Local{
		path: path, picker: picker, log: log, metrics: newLocalMetrics(reg), loader: newLoader(load, log),
		get: client.Get, close: client.Close, queue: make(chan *plain, 4*lookers),
		state: newState(false), plains: map[string]*plain{}, speeds: map[string]*speed{},
		events: kvevents.NewMetrics("extproc", reg), hearings: map[string]*hearing{},
	}
	l.registerKnown(reg)
	for _, t := range types {
		l.state.answered[t] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.loadLocked(time.Now()); err != nil {
		return nil, err
	}
	l.publishLocked()
	return l, nil
}

// Run looks at the endpoints and at the file until ctx ends.
func (l *Local) Run(ctx context.Context) error {
	defer l.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.loader.run(ctx) })
	for range lookers {
		g.Go(func() error { return l.look(ctx) })
	}
	g.Go(func() error { return l.schedule(ctx, g) })
	return g.Wait()
}

// schedule hands endpoints to the lookers when they are due, publishes what these
// have found, and reads the file again when it changes. What it starts runs in g.
func (l *Local) schedule(ctx context.Context, g *errgroup.Group) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ; n++ {
		if n%fileTicks == 0 {
			l.watch(time.Now())
			l.hear(ctx, g)
		}
		l.step(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// step is one tick.
func (l *Local) step(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dirty {
		l.publishLocked()
	}
	least := max(lookFirst, time.Duration(len(l.plains))*time.Second/looksMost)
	for _, p := range l.plains {
		due := now.UnixNano() >= p.due.Load() || now.Sub(p.looked) >= 2*least && p.vital.lost == 0 && p.working()
		if !due || p.busy.Load() {
			continue
		}
		p.busy.Store(true)
		select {
		case l.queue <- p:
		default:
			p.busy.Store(false)
			return
		}
	}
}

// look looks at endpoints as they come.
func (l *Local) look(ctx context.Context) error {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-l.queue:
			buf = l.lookAt(ctx, p, buf)
			p.busy.Store(false)
		}
	}
}

// lookAt looks at one endpoint and takes in what it finds.
func (l *Local) lookAt(ctx context.Context, p *plain, buf []byte) []byte {
	l.mu.Lock()
	page := p.wantsPage(time.Now())
	l.mu.Unlock()
	began := time.Now()
	f, buf := p.look(ctx, l.get, page, buf)
	if ctx.Err() != nil {
		return buf // it was we who ended it
	}
	l.metrics.looked(&f, time.Since(began))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.plains[p.spec.Address] != p {
		return buf // the file has changed meanwhile
	}
	was, fault := p.vital.state, p.fault
	changed, done, company := p.take(&f, time.Now(), len(l.plains))
	if changed {
		l.setLocked(p, time.Now())
	}
	if done != nil {
		l.measuredLocked(p, done, company)
	}
	l.noteLocked(p, was, fault, f.health)
	return buf
}

// noteLocked logs what has changed about an endpoint.
func (l *Local) noteLocked(p *plain, was pick.State, fault, health error) {
	if s := p.vital.state; s != was {
		l.log.Info("endpoint changed", "endpoint", p.spec.Address, "state", stateNames[s], "was", stateNames[was], "error", health)
	}
	if (p.fault == nil) != (fault == nil) && p.vital.state == pick.Ready {
		l.log.Info("metrics changed", "endpoint", p.spec.Address, "url", p.spec.Metrics, "error", p.fault)
	}
}

// measuredLocked hands on what an engine has done.
func (l *Local) measuredLocked(p *plain, d *scrape.Since, company float64) {
	model := p.said.GetModel()
	s := l.speeds[model]
	if s == nil {
		s = new(speed)
		l.speeds[model] = s
	}
	s.add(d, company)
	// First the others, then the engine itself: in between they would seem faster.
	if said := s.drifted(); said != nil {
		l.saySpeedLocked(model, said, time.Now())
	}
	m := l.table.Models[model]
	if m == nil {
		return
	}
	e := m.Endpoint(p.spec.Address)
	if e == nil {
		return
	}
	if len(p.spec.Models) > 1 {
		m = nil // the page doesn't tell them apart
	}
	l.picker.Measured(m, e, pick.Usage{
		Prompt: int(d.Prompt), Cached: int(d.Cached), Completion: int(d.Output), PrefillMs: d.PrefillMs, DecodeMs: d.DecodeMs,
	}, d.Requests, company, time.Now())
}

// saySpeedLocked lets tables say how fast engines are that have not shown it yet.
func (l *Local) saySpeedLocked(model string, said *enginepb.Speed, now time.Time) {
	for _, p := range l.plains {
		if p.said.GetModel() == model {
			p.said.Speed = said
			l.setLocked(p, now)
		}
	}
	l.publishLocked()
}

// setLocked tells state what is known of an endpoint.
func (l *Local) setLocked(p *plain, now time.Time) {
	p.said.State = saidStates[p.vital.state]
	m := proto.Clone(p.said).(*fleetpb.EndpointState)
	m.Load = nil // it goes to live by itself
	l.state.setEndpoint(m, now)
	e := l.state.endpoints[p.spec.Address]
	e.kv.Resize(capacity(p.said))
	m.Load = proto.CloneOf(p.said.GetLoad())
	if p.hearing != nil {
		e.blocks = p.hearing.blocks
	} else {
		e.blocks = nil
	}
	e.base, e.adapters = p.spec.Models[0], p.adapters
	e.also = slices.DeleteFunc(slices.Clone(p.spec.Models), func(name string) bool { return name == m.GetModel() })
	p.live = e.live
	l.dirty = true
}

func (l *Local) publishLocked() {
	l.dirty = false
	l.table = l.state.table()
	l.picker.Publish(l.table)
	l.metrics.count(l.plains)
}

// loadLocked reads the file and makes it the fleet.
func (l *Local) loadLocked(now time.Time) error {
	// The stamps are taken before what they are of is read: what changes meanwhile is
	// read again.
	l.stamps = stampsOf(l.path)
	f, err := config.LoadFleet(l.path)
	if err != nil {
		return err
	}
	if name := f.Policy.Sessions.Cookie.KeyFile; name != "" {
		l.stamps = append(l.stamps, stampsOf(name)...)
	}
	key, err := cookieKey(f.Policy.Sessions.Cookie, l.keys)
	if err != nil {
		return err
	}
	plains, err := l.plainsLocked(f)
	if err != nil {
		return err
	}
	l.keys = rotate(l.keys, key)
	l.state.setPolicy(policy.State(f.Policy, l.keys, 1))
	names := f.ModelNames()
	maps.DeleteFunc(l.state.models, func(name string, _ *model) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		l.state.setModel(&fleetpb.ModelState{Name: name, Tokenizer: f.Tokenizer(name), Default: name == f.DefaultModel()})
	}
	l.loader.want(l.state.tokenizers())
	maps.DeleteFunc(l.state.endpoints, func(address string, _ *endpoint) bool { return plains[address] == nil })
	l.plains = plains
	maps.DeleteFunc(l.speeds, func(model string, _ *speed) bool { return !slices.Contains(names, model) })
	for _, p := range plains {
		if s := l.speeds[p.said.GetModel()]; s != nil {
			p.said.Speed = s.said
		}
		l.setLocked(p, now)
	}
	return nil
}

// plainsLocked returns the file's endpoints. Those that it had before go on as they
// are, if all that matters is the same.
func (l *Local) plainsLocked(f config.Fleet) (map[string]*plain, error) {
	all := make(map[string]*plain, len(f.Endpoints))
	for _, spec := range f.Endpoints {
		p, err := newPlain(spec)
		if err != nil {
			return nil, err
		}
		if old := l.plains[spec.Address]; old != nil && old.spec.Type == spec.Type && old.spec.Metrics == spec.Metrics {
			p.inherit(old)
		}
		if p.hearing == nil {
			p.hearing = l.newHearing(spec)
		}
		all[spec.Address] = p
	}
	return all, nil
}

// inherit takes over what was found out of the same endpoint.
func (p *plain) inherit(old *plain) {
	p.vital, p.live, p.last, p.seen = old.vital, old.live, old.last, old.seen
	if p.adapters != nil && old.adapters != nil && p.spec.Models[0] == old.spec.Models[0] {
		p.adapters = old.adapters
	}
	p.looked, p.fault, p.later = old.looked, old.fault, old.later
	p.due.Store(old.due.Load())
	p.said.Epoch = old.said.GetEpoch()
	p.said.Load.KvTotalTokens = old.said.GetLoad().GetKvTotalTokens()
	p.said.Load.Slots = cmp.Or(p.said.GetLoad().GetSlots(), old.said.GetLoad().GetSlots())
	if p.spec.KVEvents == old.spec.KVEvents {
		p.hearing = old.hearing
	}
	if slices.Contains(p.spec.Models, old.said.GetModel()) {
		p.said.Model = old.said.GetModel() // it is the same engine still
	}
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

// rotate puts key first among the keys. Those that were in use still verify: no
// session is lost when the key changes.
func rotate(keys [][]byte, key []byte) [][]byte {
	if key == nil {
		return nil
	}
	all := [][]byte{key}
	for _, k := range keys {
		if !slices.Equal(k, key) && len(all) < keysKept {
			all = append(all, k)
		}
	}
	return all
}

var saidStates = map[pick.State]fleetpb.EndpointState_State{
	pick.Ready: fleetpb.EndpointState_READY, pick.Suspect: fleetpb.EndpointState_SUSPECT, pick.NotReady: fleetpb.EndpointState_NOT_READY,
}

var stateNames = map[pick.State]string{pick.Ready: "ready", pick.Suspect: "suspect", pick.NotReady: "not_ready"}
