package fleet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// measuring is a Picker that notes what engines have done.
type measuring struct {
	tablesTo
	usages   []pick.Usage
	models   []*pick.Model
	requests float64
}

func (m *measuring) Measured(model *pick.Model, _ *pick.Endpoint, u pick.Usage, requests, _ float64, _ time.Time) {
	m.usages, m.models, m.requests = append(m.usages, u), append(m.models, model), m.requests+requests
}

// TestEndpointsOfOthers takes in what xds hands down of an endpoint that it probes.
func TestEndpointsOfOthers(t *testing.T) {
	const address = "127.0.0.1:1"
	version := 0
	report := func(s *state, edit func(*fleetpb.EndpointState)) {
		version++
		m := endpointState(address, func(m *fleetpb.EndpointState) {
			m.Source, m.Models, m.Epoch = "Endpoints/pool", []string{"m", "lora"}, 0
			m.Work = &fleetpb.EndpointState_Work{Requests: 2, PromptTokens: 100, CachedTokens: 40, OutputTokens: 10, PrefillSeconds: 1, DecodeSeconds: 1}
			m.Adapters = &fleetpb.EndpointState_Adapters{}
			edit(m)
		})
		apply(t, s, say(wire.EndpointType, resource(address, string(rune('a'+version)), m)))
	}
	same := func(*fleetpb.EndpointState) {}
	more := func(m *fleetpb.EndpointState) {
		m.Work.Requests, m.Work.PromptTokens, m.Work.PrefillSeconds = 3, 150, 2
	}

	s := full(t)
	apply(t, s, say(wire.ModelType, resource("lora", "1", &fleetpb.ModelState{Name: "lora"})))
	report(s, same)
	table := s.table()
	e := table.Models["m"].Endpoints[0]
	if len(table.Models["lora"].Endpoints) != 1 || !e.Unclear(table.Models["lora"]) || len(s.done) > 0 {
		t.Fatalf("models %v, done %v", table.Models, s.done)
	}
	report(s, more)
	if diff := cmp.Diff([]work{{address, scrape.Since{Requests: 1, Prompt: 50, PrefillMs: 1000}, 1}}, s.done, cmp.AllowUnexported(work{})); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	p := &measuring{}
	s.measured(p, s.table(), s.done[0], time.Now())
	if diff := cmp.Diff([]pick.Usage{{Prompt: 50, PrefillMs: 1000}}, p.usages); diff != "" || p.models[0] != nil || p.requests != 1 {
		t.Errorf("model %v, %v requests, usage (-want +got):\n%s", p.models[0], p.requests, diff)
	}

	kv := func() any { return s.table().Models["m"].Endpoints[0].KV }
	tests := []struct {
		name   string
		edit   func(*fleetpb.EndpointState)
		forget bool
	}{
		{"nothing happens", more, false},
		{"xds learns since when its process runs", func(m *fleetpb.EndpointState) { more(m); m.Epoch = 5 }, true},
		{"a new xds has not learned that yet", func(m *fleetpb.EndpointState) { m.Work = nil }, false},
		{"and then it has", func(m *fleetpb.EndpointState) { more(m); m.Epoch = 5 }, false},
		{"it has begun anew", func(m *fleetpb.EndpointState) { m.Epoch = 6; m.Work.Requests = 0 }, true},
		{"it had done more before", func(m *fleetpb.EndpointState) { m.Work = &fleetpb.EndpointState_Work{} }, true},
		{"it shows adapters", func(m *fleetpb.EndpointState) {
			m.Work, m.Adapters = nil, &fleetpb.EndpointState_Adapters{Known: true, Most: 2, Running: []string{"lora"}}
		}, false},
	}
	for _, tt := range tests {
		before := kv()
		report(s, tt.edit)
		if forgot := kv() != before; forgot != tt.forget {
			t.Errorf("%s: the cache is forgotten: %v", tt.name, forgot)
		}
	}
	table = s.table()
	if got := table.Models["m"].Endpoints[0].Adapter(table.Models["lora"]); got != "lora" {
		t.Errorf("adapter %q", got)
	}
}
