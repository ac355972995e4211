package endpoints

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/xds/fleetpb"
)

func TestState(t *testing.T) {
	one := config.Endpoint{Address: "10.0.0.1:1", Models: []string{"m"}, Type: "vllm", Node: "n", Zone: "z", TemplateArgs: `{"a":1}`}
	several := one
	several.Models = []string{"m", "lora"}
	keyed := one
	keyed.APIKey = config.APIKey{File: "/run/key", Header: "x-api-key", Requests: true}
	sample := &scrape.Sample{Running: 3, Waiting: 1, KV: 0.5, KVTokens: 1000, Requests: 7, Prompt: 70, Cached: 30, Output: 9, PrefillSeconds: 2, DecodeSeconds: 3, Queued: true}
	tests := []struct {
		name  string
		entry inventory.Entry
		o     *probe.Observation
		want  func(m *fleetpb.EndpointState)
	}{
		{name: "nothing was observed", want: func(*fleetpb.EndpointState) {}},
		{
			name: "it is not well", o: &probe.Observation{State: probe.NotReady, Err: errors.New(strings.Repeat("x", 2000)), Epoch: 5},
			want: func(m *fleetpb.EndpointState) {
				m.State, m.Reason, m.Epoch = fleetpb.EndpointState_NOT_READY, strings.Repeat("x", maxReason), 5
			},
		},
		{
			name: "its own speed, and that of the others where it has none",
			o:    &probe.Observation{Speed: probe.Speed{Decode: 5}, Usual: probe.Speed{Prefill: 100, Decode: 50}},
			want: func(m *fleetpb.EndpointState) { m.Speed = &enginepb.Speed{Prefill: 100, Decode: 5} },
		},
		{
			name: "its metrics", o: &probe.Observation{Sample: sample, KVTokens: 1000, Slots: 8},
			want: func(m *fleetpb.EndpointState) {
				m.Load = &enginepb.Load{Slots: 8, Running: 3, Waiting: 1, KvUsedTokens: 500, KvTotalTokens: 1000}
				m.Work = &fleetpb.EndpointState_Work{
					Requests: 7, PromptTokens: 70, CachedTokens: 30, OutputTokens: 9, PrefillSeconds: 2, DecodeSeconds: 3, Queued: true,
				}
			},
		},
		{
			name: "its engine's version", o: &probe.Observation{Version: "0.32.0"},
			want: func(m *fleetpb.EndpointState) { m.EngineVersion = "0.32.0" },
		},
		{
			name: "adapters of which nothing was shown", entry: inventory.Entry{Endpoint: several}, o: &probe.Observation{},
			want: func(m *fleetpb.EndpointState) {
				m.Models, m.Adapters = several.Models, &fleetpb.EndpointState_Adapters{}
			},
		},
		{
			name: "adapters", entry: inventory.Entry{Endpoint: several}, o: &probe.Observation{Adapters: &scrape.Adapters{Most: 2, Running: []string{"lora"}}},
			want: func(m *fleetpb.EndpointState) {
				m.Models, m.Adapters = several.Models, &fleetpb.EndpointState_Adapters{Known: true, Most: 2, Running: []string{"lora"}}
			},
		},
		{
			name: "a key of requests: where it is", entry: inventory.Entry{Endpoint: keyed},
			want: func(m *fleetpb.EndpointState) {
				m.Key = &fleetpb.EndpointState_Key{File: "/run/key", Header: "x-api-key"}
			},
		},
		{
			name: "what nobody believes", o: &probe.Observation{Sample: &scrape.Sample{Running: 1e15}, Speed: probe.Speed{Decode: 1e12}},
			want: func(m *fleetpb.EndpointState) {
				m.Load.Running, m.Speed, m.Work = math.MaxUint32, &enginepb.Speed{Decode: 1e9}, &fleetpb.EndpointState_Work{}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.entry.Address == "" {
				tt.entry = inventory.Entry{Endpoint: one}
			}
			tt.entry.Source = "Endpoints/pool"
			want := &fleetpb.EndpointState{
				Address: "10.0.0.1:1", Node: "n", Zone: "z", Model: "m", Replica: "10.0.0.1:1", State: fleetpb.EndpointState_READY,
				Weight: 1, Health: 1, Load: &enginepb.Load{}, Source: "Endpoints/pool", Engine: "vllm", TemplateArgs: `{"a":1}`,
			}
			tt.want(want)
			got := State(tt.entry, tt.o)
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := got.ValidateAll(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSampleOfAState says what a probe's sample says, as far as work goes.
func TestSampleOfAState(t *testing.T) {
	e := inventory.Entry{Endpoint: config.Endpoint{Address: "10.0.0.1:1", Models: []string{"m"}, Node: "n"}}
	before := scrape.Sample{Running: 2, Requests: 7, Prompt: 70, Cached: 30, Output: 9, PrefillSeconds: 2, DecodeSeconds: 3}
	after := before
	after.Requests, after.Prompt, after.DecodeSeconds = 9, 100, 4
	want, _ := after.Since(&before)
	a, ok := Sample(State(e, &probe.Observation{Sample: &before}))
	b, ok2 := Sample(State(e, &probe.Observation{Sample: &after}))
	got, restarted := b.Since(&a)
	if diff := cmp.Diff(want, got); diff != "" || !ok || !ok2 || restarted {
		t.Errorf("%v %v %v (-want +got):\n%s", ok, ok2, restarted, diff)
	}
	if _, ok := Sample(State(e, nil)); ok {
		t.Error("nothing was observed, and it is said what was done")
	}
}
