package rig

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/xds/fleetpb"
)

// DialXDS connects to the mesh's xds, with the operator's certificate if it has TLS.
func (m *Mesh) DialXDS() (*grpc.ClientConn, error) {
	s, err := m.ReadState()
	if err != nil {
		return nil, err
	}
	me, err := state.State{TLS: s.TLS}.Operator()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(s.Find("xds").Addrs["grpc"], me.DialOption(mtls.Is(mtls.XDS)))
}

// Watch hands each view of the fleet to fn until ctx, the stream or fn ends it.
func (m *Mesh) Watch(ctx context.Context, fn func(*fleetpb.FleetView) error) error {
	conn, err := m.DialXDS()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := fleetpb.NewFleetClient(conn).Watch(ctx, &fleetpb.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		v, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}

// errEnough ends Watch.
var errEnough = errors.New("enough")

// Fleet returns the fleet as xds publishes it now.
func (m *Mesh) Fleet(ctx context.Context) (*fleetpb.FleetView, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var view *fleetpb.FleetView
	err := m.Watch(ctx, func(v *fleetpb.FleetView) error {
		view = v
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return view, err
}

// unready says which nodes of a view aren't READY.
func unready(v *fleetpb.FleetView) error {
	var errs []error
	for _, n := range v.GetNodes() {
		if n.GetState() != fleetpb.EndpointState_READY {
			errs = append(errs, fmt.Errorf("%s is %v: %s", n.GetNode(), n.GetState(), n.GetReason()))
		}
	}
	return errors.Join(errs...)
}

// Whole says what is missing until every process runs, every node is READY, and
// Envoy has m.Engines healthy engines and a healthy extproc.
func (m *Mesh) Whole(ctx context.Context) error {
	s, err := m.ReadState()
	if err != nil {
		return err
	}
	if err := s.Down(); err != nil {
		return err
	}
	if !s.Ready {
		return errors.New("state.json: ready is false")
	}
	v, err := m.Fleet(ctx)
	if err != nil {
		return fmt.Errorf("xds: %w", err)
	}
	if err := unready(v); err != nil {
		return err
	}
	return m.Serving(m.Engines)
}

// AwaitWhole waits until the mesh is Whole.
func (m *Mesh) AwaitWhole(t testing.TB) time.Duration {
	t.Helper()
	return Wait(t, BackLimit, "the mesh is whole", func() error { return m.Whole(t.Context()) })
}
