package mesh

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// rewatch is the pause after a stream broke.
const rewatch = 100 * time.Millisecond

// dial returns a connection to one of the mesh's own servers. It connects when
// first used and, after a failure, again within a second.
func dial(addr string, security grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		security,
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}))
}

// watchEngine gives each status of the engine at addr to use, until ctx ends.
func watchEngine(ctx context.Context, addr string, security grpc.DialOption, use func(*enginepb.Status)) error {
	conn, err := dial(addr, security)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := enginepb.NewEngineClient(conn)
	follow(ctx, func(ctx context.Context) (receiver[enginepb.Status], error) {
		return client.Watch(ctx, &enginepb.WatchRequest{Interval: durationpb.New(time.Second)})
	}, use)
	return nil
}

// watchFleet gives each view of xds at addr to use, until ctx ends.
func watchFleet(ctx context.Context, addr string, security grpc.DialOption, use func(*fleetpb.FleetView)) error {
	conn, err := dial(addr, security)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := fleetpb.NewFleetClient(conn)
	follow(ctx, func(ctx context.Context) (receiver[fleetpb.FleetView], error) {
		return client.Watch(ctx, &fleetpb.WatchRequest{})
	}, use)
	return nil
}

type receiver[T any] interface{ Recv() (*T, error) }

// message is a pointer to a T that is a message.
type message[T any] interface {
	*T
	proto.Message
}

// follow opens a stream again and again. What breaks it is not printed: the
// supervisor knows better whether the process at the other end runs.
func follow[T any, M message[T]](ctx context.Context, open func(context.Context) (receiver[T], error), use func(*T)) {
	for ctx.Err() == nil {
		if stream, err := open(ctx); err == nil {
			drainStream[T, M](stream, use)
		}
		sleep(ctx, rewatch)
	}
}

func drainStream[T any, M message[T]](stream receiver[T], use func(*T)) {
	for {
		msg, err := stream.Recv()
		if err != nil || trust.Finite(M(msg)) != nil {
			return // state.json is JSON, which has no NaN
		}
		use(msg)
	}
}
