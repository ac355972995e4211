package stream

import (
	"fmt"
	"testing"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
)

func TestStreamedBodyOverTheLimit(t *testing.T) {
	part := Event{Kind: RequestBody, Body: make([]byte, 60000), At: epoch}
	f := newFleet(1)
	out := run(f.core.Begin(), post(by(Streamed)), part, part)
	if last := out[len(out)-1]; last.Error == nil || last.Error.Status != 413 {
		t.Errorf("reply %+v, want a 413", last)
	}
	// An answer that has begun is not cut.
	out = run(f.core.Begin(), post(by(Streamed)), part, answerBy("127.0.0.1:20000", 1), part)
	if last := out[len(out)-1]; last.Error != nil {
		t.Errorf("reply %+v, want none", last)
	}
}

// TestWithoutRequestHeaders shows what is said to an Envoy that begins with
// something else.
func TestWithoutRequestHeaders(t *testing.T) {
	long := make([]byte, 3*chunk)
	tests := []struct {
		name string
		ev   Event
		want []Reply
	}{
		{"buffered", Event{Kind: RequestBody, Body: []byte(hello), End: true, Request: RequestHead{Mode: Buffered}}, []Reply{{Kind: RequestBody}}},
		{"duplex", Event{Kind: RequestBody, Body: []byte(hello), Request: RequestHead{Mode: Duplex}}, []Reply{{Kind: RequestBody, Duplex: true, Chunk: []byte(hello)}}},
		{"duplex, an empty end", Event{Kind: RequestBody, End: true, Request: RequestHead{Mode: Duplex}}, []Reply{{Kind: RequestBody, Duplex: true, End: true}}},
		{"trailers", Event{Kind: RequestTrailers, Request: RequestHead{Mode: Duplex}}, []Reply{{Kind: RequestTrailers}}},
		{"response headers", Event{Kind: ResponseHeaders, Answer: AnswerHead{Answer: pick.Answer{Status: 500}}}, []Reply{{Kind: ResponseHeaders}}},
		{"response, duplex", Event{Kind: ResponseBody, Body: long, End: true, Request: RequestHead{AnswerMode: Duplex}}, []Reply{
			{Kind: ResponseBody, Duplex: true, Chunk: long[:chunk]},
			{Kind: ResponseBody, Duplex: true, Chunk: long[:chunk]},
			{Kind: ResponseBody, Duplex: true, Chunk: long[:chunk], End: true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1)
			x := f.core.Begin()
			if got := run(x, tt.ev); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("%d replies, want %d; the first %+v", len(got), len(tt.want), got[0])
			}
			f.core.Finish(x)
			if f.leaks() != 0 {
				t.Error("places are taken")
			}
		})
	}
}

// TestModelOfABodyThatWasCutOff: Envoy sends what it could buffer, without its end.
func TestModelOfABodyThatWasCutOff(t *testing.T) {
	two := func(t *pick.Table) {
		other := &pick.Model{Name: "other", Seed: session.Seed("other"), Learned: new(pick.Learned), Endpoints: t.Models["m"].Endpoints}
		t.Models["other"] = other
		t.Policy.Rewrites = map[string]*pick.Rewrite{"alias": {Model: "alias", To: []pick.Target{{Model: "other", Weight: 1}}}}
	}
	tests := []struct{ name, body, want string }{
		{"behind the model", `{"model":"other","messages":[{"role":"user","content":"hel`, "other"},
		{"before the model", `{"messages":[{"role":"user","content":"hel`, "m"},
		{"in the model", `{"model":"oth`, "m"},
		{"a model that nobody serves", `{"model":"nobody","messages":[`, "m"},
		{"a name that would be changed", `{"model":"alias","messages":[`, "m"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(2, two)
			x := f.core.Begin()
			cut := bodyOf(tt.body)
			cut.End = false
			out := run(x, post(), cut)
			last := out[len(out)-1]
			if last.Decision == nil || last.Decision.Model != tt.want || last.Replace || last.Decision.Exact {
				t.Errorf("got %+v, decision %+v; want %s, and the body as it is", last, last.Decision, tt.want)
			}
			f.core.Finish(x)
		})
	}
}
