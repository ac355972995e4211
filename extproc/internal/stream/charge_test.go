package stream

import (
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/scrape"
)

// TestWhoAnsweredIsBlamed has the endpoint that answered be without usage, not the first choice.
func TestWhoAnsweredIsBlamed(t *testing.T) {
	for name, tt := range map[string]struct {
		first, second string // whose they are, by replica; empty: another's
		counters      bool   // of the second
		served        int
		want          [2]bool // which are without usage
	}{
		"the first":             {want: [2]bool{true, false}},
		"another with counters": {counters: true, served: 1},
		"another without":       {served: 1, want: [2]bool{false, true}},
		"one of ours":           {second: "r", served: 1},
		"another behind ours":   {first: "r", served: 1, want: [2]bool{false, true}},
		"counters behind ours":  {first: "r", counters: true, served: 1},
		"the first, of ours":    {first: "r"},
	} {
		f := newFleet(2, oneSlot)
		f.table.Policy.Flow.Budget = flow.Budget{Tokens: 300}
		first, second := f.model.Endpoints[0], f.model.Endpoints[1]
		first.Replica, second.Replica = tt.first, tt.second
		if tt.counters {
			second.Page(&pick.Page{Count: scrape.Count{How: scrape.AsMade}, Asked: epoch.Add(-time.Second)})
		}
		x := f.core.Begin()
		run(x, post(func(h *RequestHead) { h.Tenant = 7 }), bodyOf(strings.TrimSuffix(hello, "}")+`,"max_tokens":100}`))
		if x.choice.List[0].Endpoint.Address != first.Address {
			t.Fatalf("%s: %s is the first choice", name, x.choice.List[0].Endpoint.Address)
		}
		answer := answerOf(200, "")
		answer.Answer.Served = f.model.Endpoints[tt.served].Address
		run(x, answer)
		x.End(epoch)
		if got := [2]bool{first.Unpriced(), second.Unpriced()}; got != tt.want {
			t.Errorf("%s: without usage %v, want %v", name, got, tt.want)
		}
	}
}
