package page

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/xds/fleetpb"
)

func someDecision() *fleetpb.Decision {
	return &fleetpb.Decision{
		RequestId: "5d3e1f40", Arrived: timestamppb.New(noon), Model: "smollm2", Priority: "standard", Operation: "chat", Reason: "moved",
		PromptTokens: 40, Exact: true, ExpectedTokens: 64, Queued: durationpb.New(200 * time.Millisecond), QueuedFor: "room",
		Outcome: "ok", Status: 200, Address: "10.0.0.3:8000", Attempts: 2, Took: durationpb.New(1500 * time.Millisecond), FirstToken: durationpb.New(310 * time.Millisecond),
		Usage: &fleetpb.Decision_Usage{PromptTokens: 40, CachedTokens: 12, OutputTokens: 50},
		Candidates: []*fleetpb.Decision_Candidate{
			{Address: "10.0.0.1:8000", Replica: "smollm2-0", Node: "node-1", Named: 1, Wait: 10, Prefill: 20, Decode: 900, Fill: 1, Delay: 30, Shared: 5},
			{Address: "10.0.0.3:8000", Replica: "smollm2-1", Node: "node-3", Named: 2, CachedTokens: 12, Company: 2, Wait: 400, Prefill: 10, Decode: 800},
			{Address: "10.0.0.4:8000", Replica: "smollm2-2", Node: "node-4", Out: "not ready"},
		},
	}
}

// TestDecisionsShowPredictedAndObserved of who answered.
func TestDecisionsShowPredictedAndObserved(t *testing.T) {
	p := run(t, newWorld(wellView()), Options{})
	p.Decided(someDecision())
	items, _ := p.decisions.Since(0)
	var d Decision
	if err := json.Unmarshal(items[0], &d); err != nil {
		t.Fatal(err)
	}
	if d.Seq != 1 || d.Replica != "smollm2-1" || d.Node != "node-3" || *d.PredictedMs != 1210 || *d.TookMs != 1500 || *d.FirstTokenMs != 310 || d.QueuedMs != 200 || d.Usage.Cached != 12 ||
		!strings.Contains(d.Why, "done sooner") || len(d.Candidates) != 3 || d.Candidates[0].Cost != 956 || d.Candidates[0].Finish != 930 {
		t.Errorf("%s", items[0])
	}
}

// TestDecisionsAreBounded in rate and number, and what nobody answered has no prediction.
func TestDecisionsAreBounded(t *testing.T) {
	p := run(t, newWorld(wellView()), Options{})
	for range 10 * mostDecisions {
		p.Decided(&fleetpb.Decision{Outcome: "shed"})
	}
	items, _ := p.decisions.Since(0)
	if n := len(items); n < 2*decidedPerSecond || n > 6*decidedPerSecond {
		t.Errorf("%d are remembered of one moment, want some %d", n, 2*decidedPerSecond)
	}
	if !strings.Contains(string(items[0]), `"predicted_ms":null,"took_ms":null,"first_token_ms":null,"usage":null`) {
		t.Errorf("%s", items[0])
	}
}
