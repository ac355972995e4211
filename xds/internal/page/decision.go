package page

import (
	"encoding/json"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/explain"
	"millrace.dev/millrace/xds/fleetpb"
)

// Decision is why one request went where it went, and how it ended. It is the data of the event
// "decision", and an item of /page/decisions.json. It has nothing of what the prompt or the
// answer says, nor who asked. Times are in milliseconds.
type Decision struct {
	// Seq numbers the decisions of this start of xds, from 1.
	Seq uint64 `json:"seq"`
	// RequestID is x-request-id, for `millrace explain` and `millrace trace`; empty: it had none.
	RequestID string    `json:"request_id"`
	At        time.Time `json:"at"`
	Model     string    `json:"model"`
	Priority  string    `json:"priority"`
	Operation string    `json:"operation"`
	// Reason is "new", "sticky", "moved" or "fallback", Why what that means; empty: no endpoint
	// was chosen.
	Reason string `json:"reason"`
	Why    string `json:"why"`
	// PromptTokens were counted, or estimated where not Exact; OutputTokens were expected.
	PromptTokens uint64 `json:"prompt_tokens"`
	Exact        bool   `json:"exact"`
	OutputTokens uint64 `json:"expected_output_tokens"`
	// QueuedMs is how long it has waited in extproc, for "load" or "room".
	QueuedMs  float64 `json:"queued_ms"`
	QueuedFor string  `json:"queued_for"`
	// Candidates are what there was to choose from, the cheapest first, Others how many more.
	Candidates []Candidate `json:"candidates"`
	Others     uint32      `json:"others"`
	// Outcome is "ok", "refused", "failed", "shed" or "gone"; Status is what the client got, 0:
	// extproc's own, or none. Address answered, at attempt Attempts, as replica Replica of node Node.
	Outcome  string `json:"outcome"`
	Status   uint32 `json:"status"`
	Address  string `json:"address"`
	Replica  string `json:"replica"`
	Node     string `json:"node"`
	Attempts uint32 `json:"attempts"`
	// PredictedMs is what was predicted of who answered, without the queue; null: nobody did, or
	// it was not predicted. TookMs is from the arrival to the end, the queue included, and
	// FirstTokenMs to the first token; null: not known.
	PredictedMs  *float64 `json:"predicted_ms"`
	TookMs       *float64 `json:"took_ms"`
	FirstTokenMs *float64 `json:"first_token_ms"`
	// Usage is what the engine says that it needed; null: it says nothing.
	Usage *Usage `json:"usage"`
}

// Usage is what a request needed, in tokens.
type Usage struct {
	Prompt uint64 `json:"prompt"`
	Cached uint64 `json:"cached"`
	Output uint64 `json:"output"`
}

// Candidate is an endpoint that a request could go to. Cost is Finish + Fill + Delay - Shared +
// Goal, Finish is Wait + Load + Prefill + Decode; extproc/README.md explains each.
type Candidate struct {
	Address string `json:"address"`
	Replica string `json:"replica"`
	Node    string `json:"node"`
	// Named is which of those that Envoy was to try it is, from 1; 0: none.
	Named uint32 `json:"named"`
	// Out is why it might not be named; empty: it might.
	Out string `json:"out"`
	// Cached are prompt tokens that were expected there, Company the requests at a time.
	Cached  uint64  `json:"cached_tokens"`
	Company float64 `json:"company"`
	Cost    float64 `json:"cost"`
	Finish  float64 `json:"finish"`
	Wait    float64 `json:"wait"`
	Load    float64 `json:"load"`
	Prefill float64 `json:"prefill"`
	Decode  float64 `json:"decode"`
	Fill    float64 `json:"fill"`
	Delay   float64 `json:"delay"`
	Shared  float64 `json:"shared"`
	Goal    float64 `json:"goal"`
}

// Decided takes in what an extproc reports. Beyond a rate that a page can show it is dropped.
func (p *Page) Decided(d *fleetpb.Decision) {
	if !p.rate.Take(time.Now()) {
		return
	}
	one := decision(d)
	p.decisions.Put(func(n uint64) json.RawMessage {
		one.Seq = n
		return encode(one)
	})
}

func decision(d *fleetpb.Decision) Decision {
	one := Decision{
		RequestID: d.GetRequestId(), At: d.GetArrived().AsTime(), Model: d.GetModel(), Priority: d.GetPriority(), Operation: d.GetOperation(),
		Reason: d.GetReason(), Why: explain.Why(d.GetReason()), PromptTokens: d.GetPromptTokens(), Exact: d.GetExact(), OutputTokens: d.GetExpectedTokens(),
		QueuedFor: d.GetQueuedFor(), Candidates: []Candidate{}, Others: d.GetOthers(),
		Outcome: d.GetOutcome(), Status: d.GetStatus(), Address: d.GetAddress(), Attempts: d.GetAttempts(),
		TookMs: millis(d.GetTook()), FirstTokenMs: millis(d.GetFirstToken()),
	}
	if q := millis(d.GetQueued()); q != nil {
		one.QueuedMs = *q
	}
	if u := d.GetUsage(); u != nil {
		one.Usage = &Usage{Prompt: u.GetPromptTokens(), Cached: u.GetCachedTokens(), Output: u.GetOutputTokens()}
	}
	for _, c := range d.GetCandidates() {
		one.Candidates = append(one.Candidates, candidate(c))
		if last := &one.Candidates[len(one.Candidates)-1]; c.GetAddress() == one.Address && one.Address != "" {
			one.Replica, one.Node, one.PredictedMs = last.Replica, last.Node, &last.Finish
		}
	}
	return one
}

func candidate(c *fleetpb.Decision_Candidate) Candidate {
	one := Candidate{
		Address: c.GetAddress(), Replica: c.GetReplica(), Node: c.GetNode(), Named: c.GetNamed(), Out: c.GetOut(), Cached: c.GetCachedTokens(), Company: tenth(c.GetCompany()),
		Wait: c.GetWait(), Load: c.GetLoad(), Prefill: c.GetPrefill(), Decode: c.GetDecode(), Fill: c.GetFill(), Delay: c.GetDelay(), Shared: c.GetShared(), Goal: c.GetGoal(),
	}
	one.Finish = tenth(one.Wait + one.Load + one.Prefill + one.Decode)
	one.Cost = tenth(one.Finish + one.Fill + one.Delay - one.Shared + one.Goal)
	return one
}

// millis is a duration in milliseconds; nil: none was given.
func millis(d *durationpb.Duration) *float64 {
	if d == nil {
		return nil
	}
	ms := tenth(float64(d.AsDuration()) / float64(time.Millisecond))
	return &ms
}

// tenth rounds; what is no number is 0.
func tenth(v float64) float64 {
	if v = math.Round(v*10) / 10; math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}
