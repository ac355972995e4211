package status

import (
	"context"
	"errors"

	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/xds/fleetpb"
)

// View returns the mesh in dir as its xds sees it now, and the file with the configuration in
// force; nil: none runs there.
func View(ctx context.Context, dir string) (*fleetpb.FleetView, string, error) {
	s, running, err := state.Read(dir)
	if errors.Is(err, state.ErrNone) || err == nil && !running {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	me, err := s.Operator()
	if err != nil {
		return nil, "", err
	}
	view, err := askXDS(ctx, &s, me)
	return view, s.Config, err
}
