package fleet

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/xds/fleetpb"
)

const (
	// decidedEvery is how often decisions are sent, where there are new ones.
	decidedEvery = 500 * time.Millisecond
	// mostDecisions is how many are in a message.
	mostDecisions = 64
	// unknownAgain is how long it is until an xds is tried again that does not know of decisions.
	unknownAgain = time.Minute
)

// OnDecision has some of what is decided be sent to every xds that demand is reported to, for
// people. To be called before Run.
func (c *Client) OnDecision(d *stream.Decisions) { c.decisions = d }

// decidedAt sends decisions to the xds of a connection until ctx ends. Those that it does not take
// in time are lost.
func (c *Client) decidedAt(ctx context.Context, conn *grpc.ClientConn) {
	if c.decisions == nil {
		return
	}
	_, sent := c.decisions.Since(math.MaxUint64)
	wait := proc.Backoff{Min: retryFirst, Max: 10 * retryMost, Reset: time.Minute}
	for ctx.Err() == nil {
		began := time.Now()
		err := c.decidedStream(ctx, conn, &sent)
		pause := wait.Next(time.Since(began))
		if status.Code(err) == codes.Unimplemented {
			pause = unknownAgain
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// decidedStream sends decisions on one stream, which it opens when there is one.
func (c *Client) decidedStream(ctx context.Context, conn *grpc.ClientConn, sent *uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var to grpc.ClientStreamingClient[fleetpb.DecisionReport, fleetpb.DecisionsReply]
	tick := time.NewTicker(decidedEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		all, last := c.decisions.Since(*sent)
		if *sent = last; len(all) == 0 {
			continue
		}
		if to == nil {
			var err error
			if to, err = fleetpb.NewFleetClient(conn).Decisions(ctx); err != nil {
				return err
			}
		}
		r := &fleetpb.DecisionReport{}
		for _, d := range all[max(0, len(all)-mostDecisions):] {
			r.Decisions = append(r.Decisions, decided(d))
		}
		if err := to.Send(r); err != nil {
			_, err = to.CloseAndRecv() // says why
			return err
		}
	}
}

// decided is a decision as xds gets it.
func decided(d *stream.Decided) *fleetpb.Decision {
	one := &fleetpb.Decision{
		RequestId: d.ID, Arrived: timestamppb.New(d.Arrived), Model: d.Decision.Model, Priority: d.Decision.Priority, Operation: d.Decision.API.String(),
		Reason: d.Reason, PromptTokens: uint64(max(0, d.Decision.PromptTokens)), Exact: d.Decision.Exact, ExpectedTokens: uint64(max(0, d.Decision.OutputTokens)),
		Others: uint32(d.Others), Outcome: d.Outcome, Status: uint32(max(0, d.Status)), Address: d.Served, Attempts: uint32(max(0, d.Attempts)), Took: durationpb.New(max(0, d.Took)),
	}
	if q := d.Decision.Queued; !q.Since.IsZero() {
		one.Queued, one.QueuedFor = durationpb.New(max(0, q.Took)), q.For()
	}
	if d.First > 0 {
		one.FirstToken = durationpb.New(d.First)
	}
	if u := d.Usage; d.Known {
		one.Usage = &fleetpb.Decision_Usage{PromptTokens: uint64(max(0, u.Prompt)), CachedTokens: uint64(max(0, u.Cached)), OutputTokens: uint64(max(0, u.Completion))}
	}
	for _, w := range d.Candidates {
		t := &w.Terms
		one.Candidates = append(one.Candidates, &fleetpb.Decision_Candidate{
			Address: w.Address, Replica: w.Replica, Node: w.Node, Named: uint32(w.Named), CachedTokens: uint64(max(0, w.Cached)), Company: finite(w.Company), Out: w.Out,
			Wait: finite(t.Wait), Load: finite(t.Load), Prefill: finite(t.Prefill), Decode: finite(t.Decode),
			Fill: finite(t.Fill), Delay: finite(t.Delay), Shared: finite(t.Shared), Goal: finite(t.Goal),
		})
	}
	return one
}

// finite is a number as the contract has it: one that is none is 0.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return math.Round(v*10) / 10
}
