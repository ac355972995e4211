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
	s, err := running(dir)
	if s == nil || err != nil {
		return nil, "", err
	}
	me, err := s.Operator()
	if err != nil {
		return nil, "", err
	}
	view, err := askXDS(ctx, s, me)
	return view, s.Config, err
}

// running returns the state of the mesh in dir; nil: none runs there.
func running(dir string) (*state.State, error) {
	s, up, err := state.Read(dir)
	if errors.Is(err, state.ErrNone) || err == nil && !up {
		return nil, nil
	}
	return &s, err
}
