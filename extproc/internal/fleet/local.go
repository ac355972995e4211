package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/extproc/internal/eds"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/stamp"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// Local keeps the fleet of a file.
type Local struct {
	probed

	// Constant after NewLocal.
	options LocalOptions
	names   *inventory.Names
	metrics *localMetrics

	// Of Run alone.
	stamps    stamp.Files
	keys      [][]byte          // of cookies, the present one first
	pending   *config.Fleet     // that was read, until its host names have been looked up; nil: it is in force
	endpoints []config.Endpoint // of the file in force, host names as they are

	// The rest is guarded by mu, which nobody holds while a file is read.
	table *pick.Table // as published; nil: no endpoint is known yet
	fault error       // of the file as it is; nil: it is in force
}

// LocalOptions is what a Local is for.
type LocalOptions struct {
	// File is the path of the fleet's file.
	File string
	// Picker gets tables and findings.
	Picker Picker
	// Load reads tokenizers.
	Load func(path string) (pick.Counter, error)
	// Lookup looks host names up.
	Lookup inventory.Lookup
	// Hosts gets the endpoints as Envoy is to have them, each time that a table is
	// published. It must not wait for anybody; nil: nobody wants them.
	Hosts func([]eds.Host)
}

// firstLookup is how long host names are waited for at the start.
const firstLookup = 3 * time.Second

// NewLocal returns the fleet of the file, which must be good.
func NewLocal(ctx context.Context, o LocalOptions, log *slog.Logger, reg prometheus.Registerer) (*Local, error) {
	l := &Local{options: o, names: inventory.NewNames(o.Lookup, log), metrics: newLocalMetrics(reg)}
	l.probed.init("the file of the fleet", l, o.Load, probe.Options{Models: true}, log, reg)
	if err := l.load(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, firstLookup)
	defer cancel()
	l.names.LookUp(ctx)
	if err := l.settle(time.Now()); err != nil {
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
	g.Go(func() error { return l.keep(ctx) })
	g.Go(func() error { return l.names.Run(ctx) })
	return g.Wait()
}

// often reads the file again when it has changed, and takes in what host names stand for.
func (l *Local) often(now time.Time, n int) {
	if n%fileTicks == 0 {
		l.watch()
	}
	if l.pending == nil && !l.names.Changed() {
		return
	}
	if err := l.settle(now); err != nil {
		l.log.Error("endpoints of host names refused", "error", err)
	}
}

// publishLocked publishes the fleet, once an endpoint is known: who knows none lets Envoy
// choose among those that it has.
func (l *Local) publishLocked() {
	if l.table == nil && len(l.locals) == 0 {
		return
	}
	l.dirty = false
	l.table = l.state.table()
	l.options.Picker.Publish(l.table)
	if l.state.tailors {
		l.state.tailors = false
		l.loader.again()
	}
	if l.options.Hosts != nil {
		l.options.Hosts(hosts(l.locals))
	}
}

// usualWeight is that of an endpoint of which no speed is known, or that is as fast as
// its model's others.
const usualWeight = 100

// hosts returns the endpoints as Envoy is to have them, in order. One that is twice as
// fast as another has twice its weight. Weights are multiples of ten, so that speeds that
// hardly change change nothing.
func hosts(all map[string]*local) []eds.Host {
	list := make([]eds.Host, 0, len(all))
	for _, address := range slices.Sorted(maps.Keys(all)) {
		l := all[address]
		h := eds.Host{Address: address, Models: l.entry.Models, Weight: usualWeight}
		if o := l.last; o != nil && o.Speed.Decode > 0 && o.Usual.Decode > 0 {
			h.Weight = uint32(10 * math.Round(trust.Clamp(o.Speed.Decode/o.Usual.Decode, 0.1, 10)*usualWeight/10))
		}
		list = append(list, h)
	}
	return list
}

// measuredLocked takes in what an endpoint's engine has done.
func (l *Local) measuredLocked(w work, now time.Time) {
	l.state.measured(l.options.Picker, l.table, w, now)
}

// load reads the file, for settle to make it the fleet.
func (l *Local) load() error {
	// The stamps are taken before what they are of is read: what changes meanwhile is
	// read again.
	l.stamps = stamp.Of(l.options.File)
	f, err := config.LoadFleet(l.options.File)
	if err != nil {
		return err
	}
	if name := f.Policy.Sessions.Cookie.KeyFile; name != "" {
		l.stamps = append(l.stamps, stamp.Of(name)...)
	}
	for i, e := range f.Endpoints {
		if err := reach.Check(e); err != nil {
			return fmt.Errorf("endpoints[%d]: %w", i, err)
		}
	}
	key, err := cookieKey(f.Policy.Sessions.Cookie, l.keys)
	if err != nil {
		return err
	}
	l.keys = policy.Rotate(l.keys, key)
	l.pending = &f
	l.names.Want(f.Endpoints)
	return nil
}

// settle makes a file that was read the fleet, once its host names have been looked up:
// before, its endpoints would seem to be gone. One none of whose names is known changes
// nothing until one is. Later it gives them the addresses that names have now.
func (l *Local) settle(now time.Time) error {
	if !l.names.Asked() {
		return nil
	}
	f, all := l.pending, l.endpoints
	if f != nil {
		all = f.Endpoints
	}
	entries := l.names.Entries(all)
	if len(entries) == 0 && len(l.endpoints) > 0 {
		return nil
	}
	l.endpoints, l.pending = all, nil
	l.mu.Lock()
	if f != nil {
		l.takeLocked(*f)
	}
	l.setEntriesLocked(entries, now)
	models := len(l.state.models)
	l.mu.Unlock()
	if f != nil {
		l.log.Info("fleet read", "file", l.options.File, "endpoints", len(entries), "models", models)
	}
	return l.prober.Set(endpoints.Probed(entries))
}

// takeLocked makes what the file says of models and rules the fleet's.
func (l *Local) takeLocked(f config.Fleet) {
	l.state.setPolicy(policy.State(f.Policy, l.keys, 1))
	names := f.ModelNames()
	maps.DeleteFunc(l.state.models, func(name string, _ *model) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		l.state.setModel(&fleetpb.ModelState{Name: name, Tokenizer: f.Tokenizer(name), TemplateArgs: f.TemplateArgs(name), ContextTokens: uint32(f.ContextTokens(name)), Default: name == f.DefaultModel()})
	}
	l.loader.want(l.state.tokenizers())
	l.dirty = true // the policy and models may be others
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
