// Package endpoints combines what the configuration says of an endpoint that sends no
// reports with what was observed of it: the one place where inventory and probe meet.
//
// extproc calls it for the endpoints of a fleet's file, xds for those of its desired
// state. Its one rule: it is pure, and what comes of it is what extproc's tables are made
// of, whoever has probed.
package endpoints

import (
	"math"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// Probed returns what a Prober is to be set to.
func Probed(entries []inventory.Entry) []probe.Endpoint {
	all := make([]probe.Endpoint, len(entries))
	for i, e := range entries {
		all[i] = probed(e)
	}
	return all
}

// Same reports whether what was observed of an endpoint is true of another entry of its
// address, too.
func Same(a, b inventory.Entry) bool { return probe.Same(probed(a), probed(b)) }

func probed(e inventory.Entry) probe.Endpoint {
	return probe.Endpoint{Endpoint: e.Endpoint, UID: e.UID}
}

var states = map[probe.State]fleetpb.EndpointState_State{
	probe.Ready: fleetpb.EndpointState_READY, probe.Suspect: fleetpb.EndpointState_SUSPECT, probe.NotReady: fleetpb.EndpointState_NOT_READY,
}

// maxReason bounds the reason for a state, in bytes.
const maxReason = 900

// State returns an endpoint as it is in tables and resources. o is what was observed of
// it last; nil: nothing yet, it is taken to be well.
func State(e inventory.Entry, o *probe.Observation) *fleetpb.EndpointState {
	m := &fleetpb.EndpointState{
		Address: e.Address, Node: e.Node, Zone: e.Zone, Model: e.Models[0], Replica: e.Address, Source: e.Source,
		State: fleetpb.EndpointState_READY, Weight: 1, Health: 1,
		Load:   &enginepb.Load{Slots: uint32(e.Slots)},
		Engine: e.Type, TemplateArgs: e.TemplateArgs,
	}
	if len(e.Models) > 1 {
		m.Models = e.Models
		if scrape.Named(e.Type).Adapters() {
			m.Adapters = &fleetpb.EndpointState_Adapters{}
		}
	}
	if k := e.APIKey; k.Requests {
		m.Key = &fleetpb.EndpointState_Key{File: k.File, Env: k.Env, Header: k.Header}
	}
	if o == nil {
		return m
	}
	m.State, m.Epoch = states[o.State], o.Epoch
	if o.Err != nil {
		text := o.Err.Error()
		m.Reason = text[:min(len(text), maxReason)]
	}
	m.ContextTokens, m.EngineVersion = uint32(o.Context), o.Version
	m.Load.Slots, m.Load.KvTotalTokens = uint32(o.Slots), uint64(o.KVTokens)
	if s := o.Sample; s != nil {
		m.Load.Running, m.Load.Waiting = count(s.Running), count(s.Waiting)
		m.Load.KvUsedTokens = uint64(s.KV * s.KVTokens)
		m.Work = &fleetpb.EndpointState_Work{
			Requests: s.Requests, PromptTokens: s.Prompt, CachedTokens: s.Cached, OutputTokens: s.Output,
			PrefillSeconds: s.PrefillSeconds, DecodeSeconds: s.DecodeSeconds, Queued: s.Queued,
		}
	}
	if c := Count(e, o); c.How != scrape.Uncounted {
		m.Work.GeneratedTokens, m.Work.Counting, m.Work.Prefilled = c.Tokens, fleetpb.EndpointState_Work_Counting(c.How), c.Prefilled
		if o.Fresh() {
			m.Work.Asked = timestamppb.New(o.Asked)
		}
	}
	if a := o.Adapters; a != nil && m.Adapters != nil {
		m.Adapters = &fleetpb.EndpointState_Adapters{Known: true, Most: uint32(a.Most), Running: a.Running, Waiting: a.Waiting}
	}
	m.Speed = speed(o)
	return m
}

// speed is the endpoint's own, and that of all of its model where it has shown none.
func speed(o *probe.Observation) *enginepb.Speed {
	s := o.Speed
	if s.Prefill == 0 {
		s.Prefill = o.Usual.Prefill
	}
	if s.Decode == 0 {
		s.Decode = o.Usual.Decode
	}
	if s == (probe.Speed{}) {
		return nil
	}
	return &enginepb.Speed{Prefill: within(s.Prefill), Decode: within(s.Decode)}
}

// within returns a speed as the contract has it, in tokens per second; 0: not known.
func within(speed float64) float64 {
	if speed == 0 {
		return 0
	}
	return trust.Clamp(speed, 1e-3, 1e9)
}

// Count returns how many tokens an endpoint has generated, as its metrics said.
func Count(e inventory.Entry, o *probe.Observation) scrape.Count {
	if o.Sample == nil {
		return scrape.Count{}
	}
	return scrape.Named(e.Type).Count(o.Sample)
}

// Counted returns what Count said of an endpoint.
func Counted(m *fleetpb.EndpointState) scrape.Count {
	w := m.GetWork()
	return scrape.Count{How: scrape.Counting(w.GetCounting()), Tokens: w.GetGeneratedTokens(), Prefilled: w.GetPrefilled()}
}

func count(n float64) uint32 { return uint32(min(n, math.MaxUint32)) }

// Sample returns what an endpoint has done and has to do, to be compared with another
// Sample of it; false: it does not say.
func Sample(m *fleetpb.EndpointState) (scrape.Sample, bool) {
	w := m.GetWork()
	return scrape.Sample{
		Has:     scrape.Requests | scrape.Prompt | scrape.Cached | scrape.Output | scrape.PrefillSeconds | scrape.DecodeSeconds,
		Running: float64(m.GetLoad().GetRunning()), Waiting: float64(m.GetLoad().GetWaiting()), Queued: w.GetQueued(),
		Requests: w.GetRequests(), Prompt: w.GetPromptTokens(), Cached: w.GetCachedTokens(), Output: w.GetOutputTokens(),
		PrefillSeconds: w.GetPrefillSeconds(), DecodeSeconds: w.GetDecodeSeconds(),
	}, w != nil
}
