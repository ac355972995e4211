package stream

import (
	"encoding/json"
	"math"
	"testing"

	"millrace.dev/millrace/extproc/internal/pick"
)

// answeredBy is the headers of an answer of the host.
func answeredBy(host string) Event {
	return Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200, Attempts: 1, Served: host}}}
}

func TestExplanation(t *testing.T) {
	tests := []struct {
		name          string
		allowed, asks bool
	}{
		{"who asks gets it", true, true},
		{"who doesn't, doesn't", true, false},
		{"the policy forbids it", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(3, func(t *pick.Table) { t.Policy.Explain = tt.allowed; t.Models["m"].Endpoints[2].State = pick.NotReady })
			x := f.core.Begin()
			out := run(x, post(func(h *RequestHead) { h.Debug = tt.asks }), bodyOf(hello), answeredBy("127.0.0.1:20000"))
			got := out[len(out)-1].Explanation
			if (got != nil) != (tt.allowed && tt.asks) {
				t.Fatalf("explanation %s", got)
			}
			if got == nil {
				return
			}
			var e explanation
			if err := json.Unmarshal(got, &e); err != nil {
				t.Fatalf("%s: %v", got, err)
			}
			if e.Reason != "new" || e.PromptTokens != len(hello)/4 || !e.Exact || len(e.Candidates) != 3 || len(e.Named) != 2 {
				t.Fatalf("%s", got)
			}
			best, bad := e.Candidates[0], e.Candidates[2]
			if best.Address != e.Named[0] || best.Out != "" || bad.Address != "127.0.0.1:20002" || bad.Out != "not ready" {
				t.Errorf("%s", got)
			}
			var terms struct{ Candidates []map[string]any }
			if err := json.Unmarshal(got, &terms); err != nil {
				t.Fatal(err)
			}
			ms := func(name string) float64 { return terms.Candidates[0][name].(float64) }
			sum := ms("wait") + ms("load") + ms("prefill") + ms("decode")
			if sum < best.Finish-0.2 || sum > best.Finish+0.2 || math.Abs(best.Finish+ms("fill")+ms("delay")-ms("shared")-best.Cost) > 0.3 {
				t.Errorf("the terms don't add up: %s", got)
			}
		})
	}
}

func TestExplanationFitsInAHeader(t *testing.T) {
	f := newFleet(500, func(t *pick.Table) { t.Policy.Explain = true })
	x := f.core.Begin()
	out := run(x, post(func(h *RequestHead) { h.Debug = true }), bodyOf(hello), answeredBy("127.0.0.1:20000"))
	got := out[len(out)-1].Explanation
	var e explanation
	if err := json.Unmarshal(got, &e); err != nil || len(e.Candidates)+e.Others != 500 {
		t.Fatalf("%v: %d candidates and %d others of 500", err, len(e.Candidates), e.Others)
	}
	if len(got) > 6<<10 {
		t.Errorf("%d bytes", len(got))
	}
}
