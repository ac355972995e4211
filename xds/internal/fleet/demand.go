package fleet

import (
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/turns"
)

// mostDemands bounds the streams of extprocs that report what they keep waiting, of which one
// more is refused: so many times a thousand models are remembered at most.
const mostDemands = 256

// Demand takes what one extproc keeps waiting.
func (s *Service) Demand(stream grpc.ClientStreamingServer[fleetpb.DemandReport, fleetpb.DemandReply]) error {
	if s.demands.Add(1) > mostDemands {
		s.demands.Add(-1)
		return status.Errorf(codes.ResourceExhausted, "%d streams report demand; no more are taken", mostDemands)
	}
	defer s.demands.Add(-1)
	id := s.demanded.Add(1)
	defer func() {
		select {
		case s.events <- Demanded{Stream: id}:
		case <-s.ended:
		}
	}()
	return collect(s, stream, func(r *fleetpb.DemandReport) error {
		select {
		case s.events <- Demanded{Stream: id, Models: waitingSince(r.GetModels(), time.Now()), Queued: waitingSince(r.GetQueued(), time.Now())}:
			return nil
		case <-s.ended:
			return status.Error(codes.Unavailable, "xds is ending")
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	})
}

// collect has take get each message of a stream until it ends. One against the contract's rules
// ends it.
func collect[M, R any, P interface {
	*M
	trust.Ruled
}](s *Service, stream grpc.ClientStreamingServer[M, R], take func(P) error) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(new(R))
		} else if err != nil {
			return err
		}
		if err := trust.Message(P(m)); err != nil {
			return s.refuse(status.Error(codes.InvalidArgument, err.Error()))
		}
		if err := take(P(m)); err != nil {
			return err
		}
	}
}

// waitingSince is a report as the fleet has it.
func waitingSince(models []*fleetpb.ModelDemand, now time.Time) map[string]turns.Demand {
	all := make(map[string]turns.Demand, len(models))
	for _, m := range models {
		all[m.GetModel()] = turns.Demand{Waiting: int(m.GetWaiting()), Since: now.Add(-m.GetOldest().AsDuration())}
	}
	return all
}
