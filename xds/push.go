package main

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/ads"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
)

// pushEvery bounds how often changing loads, and what engines have cached, are pushed to
// extproc. Who comes and goes is pushed at once. It is less than the time between two
// snapshots, 100 ms at most: the next one would come a moment too early otherwise, and
// its news go with the one after it.
const pushEvery = 90 * time.Millisecond

// pushCaches publishes what engines have cached, from the moment the fleet is
// settled, until ctx ends. It closes first when that is done for the first time.
func pushCaches(ctx context.Context, nodes *fleet.Service, resources *ads.Server, first chan<- struct{}) error {
	var pushed *fleet.Snapshot
	var last time.Time
	for {
		snap, next := nodes.Latest()
		if snap.Settled && time.Since(last) >= pushEvery {
			changed, removed := translate.Caches(pushed, snap)
			if err := resources.UpdateCaches(changed, removed); err != nil {
				return err
			}
			if pushed == nil {
				close(first)
			}
			pushed, last = snap, time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}

// push publishes what each snapshot says, from the moment the fleet is settled,
// until ctx ends. Nobody is answered before caches are known, too. Snapshots come at
// least ten times a second, so that what is not in one is in the next.
func push(ctx context.Context, nodes *fleet.Service, resources *ads.Server, r *rollout, caches <-chan struct{}) error {
	var last time.Time
	var changes uint64
	refused := make(map[fleet.Key]string)
	for {
		snap, next := nodes.Latest()
		stepped, err := r.step(snap, resources.Busy, time.Now())
		if err != nil {
			return err
		}
		if snap.Settled && (stepped || snap.Changes != changes || time.Since(last) >= pushEvery) {
			types, err := resources.Publish(r.withheld(snap, resources.Busy, time.Now()))
			if err != nil {
				return err
			}
			r.published(types, time.Now())
			select {
			case <-caches:
				resources.Release()
			default: // they are at it: the next time
			}
			last, changes = time.Now(), snap.Changes
		}
		switch {
		case stepped && r.done():
			nodes.Post(ctx, fleet.Pushed{Version: r.target.Version})
		case stepped && !r.changed:
			continue // there was nothing to wait for
		}
		if now := objectsOf(resources.Refusals()); !maps.Equal(now, refused) {
			refused = now
			nodes.Post(ctx, fleet.Refused{Objects: now})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}

// objectsOf returns the objects of which refused resources are made, with the reason.
func objectsOf(all []ads.Refusal) map[fleet.Key]string {
	objects := make(map[fleet.Key]string)
	for _, r := range all {
		kind, name := translate.Object(r.Type, r.Resource)
		objects[fleet.Key{Kind: kind, Name: name}] = r.Client + ": " + r.Text
	}
	return objects
}

// The steps by which clients get to know a new desired state: what is named comes
// before what names it, and goes after it. Between two of them, the clients have
// answered what was pushed.
const (
	stepClusters = iota // clusters and endpoints of old and new models
	stepRoutes          // routes to old and new models
	stepPolicy          // models and policy for extproc, the new ones alone
	stepForget          // routes to the new models alone
	stepDone            // clusters of the new models alone
)

// quiet are the types whose pushes a step waits for.
var quiet = [...][]string{
	stepClusters: {translate.ClusterType, translate.EndpointsType},
	stepRoutes:   {translate.RouteType, translate.ListenerType},
	stepPolicy:   {wire.PolicyType, wire.ModelType},
	stepForget:   {translate.RouteType},
}

const (
	// pushFirst is how long a push takes until it is known to be on its way.
	pushFirst = 100 * time.Millisecond
	// pushLatest is how long a step waits for clients at most.
	pushLatest = 2 * time.Second
)

// rollout is how far a new desired state has got to the clients.
type rollout struct {
	site translate.Site
	keys keyring

	// target is what clients are to know; nil: nothing was ever desired. known has the
	// models of it and of all states before it that a client may know.
	target, known *desired.State
	// before, union and after are the resources that don't depend on the fleet: those
	// that were published when target came, those of known, and those of target.
	before, union, after translate.Resources

	arrivals arrivals

	at      int
	changed bool      // whether this step has pushed what it waits for
	since   time.Time // when it has
}

// done reports whether the clients know the new state.
func (r *rollout) done() bool { return r.at == stepDone }

// step takes up a new state, or goes to the next step if it is time. It reports whether
// there is something to publish.
func (r *rollout) step(snap *fleet.Snapshot, busy func(types ...string) bool, now time.Time) (bool, error) {
	if !snap.Settled || snap.Desired == nil {
		return false, nil
	}
	if snap.Desired != r.target {
		return true, r.begin(snap.Desired)
	}
	if r.done() {
		return false, nil
	}
	passed := now.Sub(r.since)
	if r.changed && passed < pushLatest && (passed < pushFirst || busy(quiet[r.at]...)) {
		return false, nil
	}
	r.at, r.changed = r.at+1, false
	if r.done() {
		r.known = r.target
	}
	return true, nil
}

// begin takes up a new state, at the first step.
func (r *rollout) begin(s *desired.State) (err error) {
	if r.target != nil {
		r.before = r.static()
	}
	r.keys.add(s.CookieKey)
	r.known = withModels(s, r.known)
	if r.after, err = translate.Static(r.site, s, r.keys.all); err != nil {
		return err
	}
	if r.union, err = translate.Static(r.site, r.known, r.keys.all); err != nil {
		return err
	}
	r.at, r.changed = stepClusters, false
	if r.target == nil {
		r.at = stepDone // nobody knows anything: there is no order to keep
	}
	r.target = s
	return nil
}

// published notes which types have changed by what was published for this step.
func (r *rollout) published(types []string, now time.Time) {
	if r.done() || r.changed {
		return
	}
	for _, t := range types {
		if slices.Contains(quiet[r.at], t) {
			r.changed, r.since = true, now
		}
	}
}

// withModels returns the state with the models that only the other has.
func withModels(s, other *desired.State) *desired.State {
	if other == nil {
		return s
	}
	all := *s
	all.Models = slices.Clone(s.Models)
	for _, m := range other.Models {
		if _, ok := s.Model(m.Name); !ok {
			m.Spec.Default = false
			all.Models = append(all.Models, m)
		}
	}
	return &all
}

// static returns the resources of the present step that don't depend on the fleet.
func (r *rollout) static() translate.Resources {
	take := func(at int, early, late translate.Resources) translate.Resources {
		if r.at < at {
			return early
		}
		return late
	}
	clusters := take(stepDone, r.union, r.after)
	routes := take(stepForget, take(stepRoutes, r.before, r.union), r.after)
	policy := take(stepPolicy, r.before, r.after)
	return translate.Resources{
		translate.ClusterType:  clusters[translate.ClusterType],
		translate.RouteType:    routes[translate.RouteType],
		translate.ListenerType: routes[translate.ListenerType],
		translate.SecretType:   clusters[translate.SecretType],
		wire.PolicyType:        policy[wire.PolicyType],
		wire.ModelType:         policy[wire.ModelType],
	}
}

// resources returns all that clients are to have at the present step.
func (r *rollout) resources(snap *fleet.Snapshot) translate.Resources {
	all := r.static()
	maps.Copy(all, translate.Fleet(r.known, snap))
	all[wire.ModelType] = translate.Awaited(all[wire.ModelType], snap.Awaited)
	return all
}

// keyring is the keys of session cookies, the one that signs first. Those that were in
// use still verify: no session is lost when the key changes.
type keyring struct{ all [][]byte }

// add makes a key the first one; nil: one that lives as long as this process.
func (k *keyring) add(key []byte) {
	if key == nil {
		if len(k.all) > 0 {
			return
		}
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails
	}
	k.all = policy.Rotate(k.all, key)
}
