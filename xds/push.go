package main

import (
	"context"
	"time"

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
// least ten times a second, so that what is left out of one is in the next.
func push(ctx context.Context, nodes *fleet.Service, resources *ads.Server, s translate.Settings, caches <-chan struct{}) error {
	var last time.Time
	var changes uint64
	for {
		snap, next := nodes.Latest()
		if snap.Settled && (snap.Changes != changes || time.Since(last) >= pushEvery) {
			if err := resources.Publish(translate.Fleet(s, snap)); err != nil {
				return err
			}
			select {
			case <-caches:
				resources.Release()
			default: // they are at it: the next time
			}
			last, changes = time.Now(), snap.Changes
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}
