package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/stamp"
	"millrace.dev/millrace/xds/fleetpb"
)

// Local keeps the fleet of a file.
type Local struct {
	probed

	// Constant after NewLocal.
	path    string
	picker  Picker
	metrics *localMetrics

	// Of Run alone.
	stamps stamp.Files
	keys   [][]byte // of cookies, the present one first

	// The rest is guarded by mu, which nobody holds while a file is read.
	table *pick.Table // as published
	fault error       // of the file as it is; nil: it is in force
}

// NewLocal returns the fleet of the file at path, which must be good. It gives
// tables and findings to picker, and reads tokenizers with load.
func NewLocal(path string, picker Picker, load func(path string) (pick.Counter, error), log *slog.Logger, reg prometheus.Registerer) (*Local, error) {
	l := &Local{path: path, picker: picker, metrics: newLocalMetrics(reg)}
	l.probed.init("the file of the fleet", l, load, nil, log, reg)
	if err := l.load(time.Now()); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.publishLocked()
	return l, nil
}

// Run follows the endpoints and the file until ctx ends.
func (l *Local) Run(ctx context.Context) error { return l.keep(ctx) }

// often reads the file again when it has changed.
func (l *Local) often(now time.Time, n int) {
	if n%fileTicks == 0 {
		l.watch(now)
	}
}

func (l *Local) publishLocked() {
	l.dirty = false
	l.table = l.state.table()
	l.picker.Publish(l.table)
}

// measuredLocked takes in what an endpoint's engine has done.
func (l *Local) measuredLocked(w work, now time.Time) { l.state.measured(l.picker, l.table, w, now) }

// load reads the file and makes it the fleet.
func (l *Local) load(now time.Time) error {
	// The stamps are taken before what they are of is read: what changes meanwhile is
	// read again.
	l.stamps = stamp.Of(l.path)
	f, err := config.LoadFleet(l.path)
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
	l.mu.Lock()
	entries := l.takeLocked(f, now)
	l.mu.Unlock()
	return l.prober.Set(endpoints.Probed(entries))
}

// takeLocked makes what the file says the fleet, but for who is probed.
func (l *Local) takeLocked(f config.Fleet, now time.Time) []inventory.Entry {
	l.state.setPolicy(policy.State(f.Policy, l.keys, 1))
	names := f.ModelNames()
	maps.DeleteFunc(l.state.models, func(name string, _ *model) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		l.state.setModel(&fleetpb.ModelState{Name: name, Tokenizer: f.Tokenizer(name), ContextTokens: uint32(f.ContextTokens(name)), Default: name == f.DefaultModel()})
	}
	l.loader.want(l.state.tokenizers())
	entries := make([]inventory.Entry, len(f.Endpoints))
	for i, spec := range f.Endpoints {
		entries[i].Endpoint = spec
	}
	l.setEntriesLocked(entries, now)
	l.dirty = true // the policy and models may be others
	return entries
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
