package status

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

const (
	// xdsWait is how long xds may take to answer; it does so at once when well.
	xdsWait = 1500 * time.Millisecond
	// engineWait is the same for an engine.
	engineWait = time.Second
)

// gather asks whoever answers: xds, else the engines.
func gather(ctx context.Context, dir string) (Report, error) {
	s, running, err := state.Read(dir)
	if err != nil {
		return Report{}, err
	}
	if !running {
		return build(s, false, fromNobody, nil, time.Now()), nil
	}
	me, err := s.Operator()
	if err != nil {
		return Report{}, err
	}
	view, err := askXDS(ctx, &s, me)
	if err == nil {
		return build(s, true, fromXDS, view, time.Now()), nil
	}
	view = askEngines(ctx, &s, me)
	if s, running, err = state.Read(dir); err != nil { // it may have changed while we waited
		return Report{}, err
	}
	return build(s, running, fromEngines, view, time.Now()), nil
}

// askXDS returns the fleet as xds sees it now.
func askXDS(ctx context.Context, s *state.State, me *mtls.Source) (*fleetpb.FleetView, error) {
	p := s.Find("xds")
	if p == nil || p.PID == 0 {
		return nil, state.ErrNone
	}
	conn, err := grpc.NewClient("passthrough:///"+p.Addrs["grpc"], me.DialOption(mtls.Is(mtls.XDS)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, xdsWait)
	defer cancel()
	stream, err := fleetpb.NewFleetClient(conn).Watch(ctx, &fleetpb.WatchRequest{})
	if err != nil {
		return nil, err
	}
	return received(stream.Recv())
}

// askEngines asks every engine at the same time and leaves out the silent ones.
func askEngines(ctx context.Context, s *state.State, me *mtls.Source) *fleetpb.FleetView {
	var (
		g    sync.WaitGroup
		mu   sync.Mutex
		view = &fleetpb.FleetView{At: timestamppb.Now()}
	)
	for _, p := range s.Processes {
		if p.Role != "engine" || p.PID == 0 {
			continue
		}
		g.Go(func() {
			st, err := askEngine(ctx, p.Addrs["grpc"], me.DialOption(mtls.IsEngineOf(p.Node)))
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			view.Nodes = append(view.Nodes, asNode(p.Node, st))
		})
	}
	g.Wait()
	return view
}

func askEngine(ctx context.Context, addr string, security grpc.DialOption) (*enginepb.Status, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, security)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, engineWait)
	defer cancel()
	stream, err := enginepb.NewEngineClient(conn).Watch(ctx, &enginepb.WatchRequest{})
	if err != nil {
		return nil, err
	}
	return received(stream.Recv())
}

// received returns a message whose numbers are numbers: a report is JSON, which has no NaN.
func received[M proto.Message](m M, err error) (M, error) {
	if err == nil {
		err = trust.Finite(m)
	}
	return m, err
}

// asNode is what an engine says of itself in the form of xds.
func asNode(node string, st *enginepb.Status) *fleetpb.NodeView {
	v := &fleetpb.NodeView{
		Node: node, State: fleetpb.EndpointState_NOT_READY, Since: st.GetSince(),
		Reason: st.GetReason(), Report: &fleetpb.NodeReport{Node: node, Engine: st},
	}
	if st.GetState() == enginepb.State_READY {
		v.State = fleetpb.EndpointState_READY
	}
	if v.Reason == "" && v.State == fleetpb.EndpointState_NOT_READY {
		v.Reason = strings.ToLower(st.GetState().String())
	}
	return v
}
