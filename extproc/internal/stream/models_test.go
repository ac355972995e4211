package stream

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/extproc/internal/pick"
)

// TestModelsAsked asks extproc for the models of a fleet: no engine need answer.
func TestModelsAsked(t *testing.T) {
	none := func(t *pick.Table) {
		for _, m := range t.Models {
			m.Endpoints = nil
		}
	}
	tests := []struct {
		name, method, path string
		edit               func(*pick.Table)
		ids                []string // of the list
		one                string   // the only one asked for
		err                bool     // there is no such model
	}{
		{name: "all", path: "/v1/models", ids: []string{"auto", "m", "n"}},
		{name: "without an engine", path: "/v1/models/?limit=20", edit: none, ids: []string{"auto", "m", "n"}},
		{name: "behind a prefix", path: "/team/v1/models", ids: []string{"auto", "m", "n"}},
		{name: "the head of it", method: "HEAD", path: "/models", ids: []string{"auto", "m", "n"}},
		{name: "one", path: "/v1/models/n", one: "n"},
		{name: "one that is rewritten", path: "/v1/models/auto", one: "auto"},
		{name: "one that nobody serves", path: "/v1/models/x", err: true},
		{name: "no model", path: "/v1/models", edit: func(t *pick.Table) { t.Models, t.Default, t.Policy.Rewrites = nil, nil, nil }, ids: []string{}},
		{name: "engines know names that we don't", path: "/v1/models", edit: func(t *pick.Table) { t.Any = t.Default }},
		{name: "another thing", path: "/v1/modelsx"},
		{name: "another method", method: "DELETE", path: "/v1/models/n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(2, twoModels)
			if tt.edit != nil {
				tt.edit(f.table)
			}
			if tt.method == "" {
				tt.method = "GET"
			}
			x := f.core.Begin()
			out := run(x, Event{Kind: RequestHeaders, End: true, At: epoch, Request: RequestHead{Method: tt.method, Path: tt.path, Length: -1}})
			defer f.core.Finish(x)
			last := out[len(out)-1]
			if tt.err != (last.Error != nil && last.Error.Code == "model_not_found") {
				t.Fatalf("%+v", last)
			}
			if tt.err {
				return
			}
			if tt.ids == nil && tt.one == "" {
				if last.Kind == Immediate {
					t.Errorf("%s, want it forwarded", last.Answer)
				}
				return
			}
			var got struct {
				ID   string
				Data []struct{ ID, Object string }
			}
			if err := json.Unmarshal(last.Answer, &got); err != nil {
				t.Fatalf("%q: %v", last.Answer, err)
			}
			ids := []string{}
			for _, d := range got.Data {
				ids = append(ids, d.ID)
			}
			if got.ID != tt.one || tt.one == "" && !cmp.Equal(ids, tt.ids) {
				t.Errorf("%s, want %v %q", last.Answer, tt.ids, tt.one)
			}
		})
	}
}

// TestSaidTwice has what comes behind an end be ignored: between Envoy and extproc
// something may say messages twice.
func TestSaidTwice(t *testing.T) {
	end, part := bodyOf(hello[9:]), Event{Kind: RequestBody, Body: []byte(hello[:9]), At: epoch}
	nothing := Event{Kind: RequestBody, End: true, At: epoch}
	trailers := Event{Kind: RequestTrailers, End: true, At: epoch}
	duplex, buffered := post(by(Duplex)), post()
	ok := Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200}}}
	done := Event{Kind: ResponseTrailers, End: true, At: epoch}
	tests := []struct {
		name string
		evs  []Event
		want string // of the body that is forwarded
		n    int    // messages that are ignored
	}{
		{"the last part", []Event{duplex, part, end, end}, hello, 1},
		{"an empty end behind the end", []Event{duplex, part, end, nothing}, hello, 1},
		{"an empty end, twice", []Event{duplex, part, more(end), nothing, nothing}, hello, 1},
		{"trailers, twice", []Event{duplex, part, more(end), trailers, trailers}, hello, 1},
		{"a body behind its trailers", []Event{duplex, part, more(end), trailers, end}, hello, 1},
		{"headers, twice", []Event{duplex, duplex, part, end}, hello, 1},
		{"headers behind the end", []Event{duplex, part, end, duplex}, hello, 1},
		{"a buffered body, twice", []Event{buffered, bodyOf(hello), bodyOf(hello)}, "", 1},
		{"the answer's headers and trailers, twice", []Event{buffered, bodyOf(hello), ok, ok, done, done}, "", 2},
		{"once each", []Event{duplex, part, end, ok, done}, hello, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(2)
			x := f.core.Begin()
			got, decisions := "", 0
			for _, r := range run(x, tt.evs...) {
				got += string(r.Chunk)
				if r.Decision != nil {
					decisions++
				}
				if r.Error != nil {
					t.Error(r.Error)
				}
			}
			f.core.Finish(x)
			if got != tt.want || decisions != 1 || f.leaks() != 0 {
				t.Errorf("%q is forwarded by %d decisions, %d places are left; want %q by one", got, decisions, f.leaks(), tt.want)
			}
			if n := testutil.ToFloat64(f.core.metrics.repeated); int(n) != tt.n {
				t.Errorf("%v messages are ignored, want %d", n, tt.n)
			}
		})
	}
}

// more is a part of a body that is not its last.
func more(ev Event) Event {
	ev.End = false
	return ev
}
