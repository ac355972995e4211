package main

import (
	"context"
	"time"

	"millrace.dev/millrace/xds/internal/ads"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
)

// pushEvery bounds how often changing loads are pushed to extproc. Who comes and
// goes is pushed at once.
const pushEvery = 90 * time.Millisecond

// push publishes what each snapshot says, from the moment the fleet is settled,
// until ctx ends. Snapshots come at least ten times a second, so that what is
// left out of one is in the next.
func push(ctx context.Context, nodes *fleet.Service, resources *ads.Server, s translate.Settings) error {
	var last time.Time
	var changes uint64
	for {
		snap, next := nodes.Latest()
		if snap.Settled && (snap.Changes != changes || time.Since(last) >= pushEvery) {
			if err := resources.Publish(translate.Fleet(s, snap)); err != nil {
				return err
			}
			resources.Release()
			last, changes = time.Now(), snap.Changes
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
	}
}
