package fleet

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/xds/fleetpb"
)

// mostDeciders bounds the streams of extprocs that report decisions, of which one more is refused.
const mostDeciders = 256

// OnDecision has f take what extprocs report of decisions, from many goroutines. To be called
// before the service is served.
func (s *Service) OnDecision(f func(*fleetpb.Decision)) { s.decided = f }

// Decisions takes what one extproc reports of decisions, for people.
func (s *Service) Decisions(stream grpc.ClientStreamingServer[fleetpb.DecisionReport, fleetpb.DecisionsReply]) error {
	defer s.deciders.Add(-1)
	if s.deciders.Add(1) > mostDeciders {
		return status.Errorf(codes.ResourceExhausted, "%d streams report decisions; no more are taken", mostDeciders)
	}
	return collect(s, stream, func(r *fleetpb.DecisionReport) error {
		for _, d := range r.GetDecisions() {
			if s.decided != nil {
				s.decided(d)
			}
		}
		return nil
	})
}
