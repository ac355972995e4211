package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
)

// onlineWait is how long CheckOnline takes at most.
const onlineWait = 30 * time.Second

// CheckOnline looks up the host names of a file that is in order, and asks its endpoints
// how they are and which models they serve. It returns all that is wrong. get is nil, or
// what probe.Options.Get is.
func CheckOnline(path string, lookup inventory.Lookup, get getter) error {
	f, err := config.LoadFleet(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), onlineWait)
	defer cancel()
	names := inventory.NewNames(lookup, slog.New(slog.DiscardHandler))
	names.Want(f.Endpoints)
	names.LookUp(ctx)
	unknown := names.Faults()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		errs = append(errs, fmt.Errorf("host name %s: %w", name, unknown[name]))
	}
	if get == nil {
		client := scrape.NewClient()
		defer client.Close()
		get = client.Get
	}
	return errors.Join(append(errs, askAll(ctx, endpoints.Probed(names.Entries(f.Endpoints)), get)...)...)
}

// askAll asks endpoints, some at a time, and returns what is wrong in their order.
func askAll(ctx context.Context, all []probe.Endpoint, get getter) []error {
	errs := make([]error, len(all))
	places := make(chan struct{}, askers)
	var wait sync.WaitGroup
	for i, e := range all {
		places <- struct{}{}
		wait.Go(func() {
			defer func() { <-places }()
			if err := probe.Ask(ctx, get, e); err != nil {
				errs[i] = fmt.Errorf("endpoint %s: %w", e.Address, err)
			}
		})
	}
	wait.Wait()
	return errs
}
