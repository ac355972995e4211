package fleet

import (
	"context"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// readers is an xds that takes decisions.
type readers struct {
	fleetpb.UnimplementedFleetServer
	got chan *fleetpb.Decision
}

func (r *readers) Decisions(st grpc.ClientStreamingServer[fleetpb.DecisionReport, fleetpb.DecisionsReply]) error {
	for {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		if err := trust.Message(m); err != nil {
			return err
		}
		for _, d := range m.GetDecisions() {
			r.got <- d
		}
	}
}

// TestXDSGetsDecisions that come while it follows, by the contract's rules whatever they are.
func TestXDSGetsDecisions(t *testing.T) {
	r := &readers{got: make(chan *fleetpb.Decision, 64)}
	c, addr := reporting(t, r)
	c.OnDemand(func(func(string, int, time.Time)) {}, addr)
	decisions := stream.NewDecisions()
	c.OnDecision(decisions)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.demand(ctx) }()
	one := &stream.Decided{
		ID: "id", Arrived: time.Now(), Outcome: "ok", Status: 200, Served: "10.0.0.1:8000", Took: time.Second, Known: true, Usage: pick.Usage{Prompt: 5, Cached: -1},
		Decision:   stream.Decision{Model: "m", PromptTokens: 5, Queued: stream.Queued{Since: time.Now(), Took: -time.Second}},
		Candidates: []stream.Weighed{{Address: "10.0.0.1:8000", Named: 1, Company: math.NaN(), Terms: pick.Terms{Wait: math.Inf(1), Decode: 12.34}}},
	}
	var got *fleetpb.Decision
	for got == nil { // those from before it follows do not come
		decisions.Put(func(uint64) *stream.Decided { return one })
		select {
		case got = <-r.got:
		case <-time.After(50 * time.Millisecond):
		}
	}
	if got.GetRequestId() != "id" || got.GetUsage().GetPromptTokens() != 5 || got.GetTook().AsDuration() != time.Second || got.GetCandidates()[0].GetDecode() != 12.3 || got.GetCandidates()[0].GetWait() != 0 {
		t.Errorf("%v", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
