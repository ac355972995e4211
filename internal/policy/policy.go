// Package policy turns a policy of the configuration into the xDS resources that
// extproc reads: the one place where config's words become the contract's. Called by
// xds, which publishes them, and by extproc, whose own fleet file has a policy, too.
//
// Its one rule: a default is written in config alone. What a message leaves unset is
// what config.Default says.
package policy

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/fleetpb"
)

// Defaults returns the policy that holds where nobody says anything.
func Defaults() *fleetpb.PolicyState { return State(config.Default().Policy.Spec, nil, 1) }

// State returns the policy as each of so many extprocs gets it, with the keys that
// sign cookies, the signing one first.
func State(p config.PolicySpec, keys [][]byte, extprocs int) *fleetpb.PolicyState {
	return &fleetpb.PolicyState{
		SessionHeader:       p.Sessions.Header,
		SessionCookie:       p.Sessions.Cookie.Name,
		CookieKeys:          keys,
		SessionIdle:         durationpb.New(p.Sessions.Idle.Duration),
		MaxSessions:         uint32(p.Sessions.Max),
		Candidates:          uint32(p.Retries.Standard),
		CandidatesCritical:  uint32(p.Retries.Critical),
		CandidatesSheddable: uint32(p.Retries.Sheddable),
		PriorityHeader:      p.Priorities.Header,
		DefaultPriority:     p.Priorities.Default,
		MaxBodyBytes:        uint64(p.Limits.MaxBodyBytes),
		MaxBytesInFlight:    uint64(p.Limits.MaxBytesInFlight) / uint64(max(1, extprocs)),
		Rewrites:            Rewrites(p.Rewrites),
		Flow:                Flow(p.Flow, extprocs),
		Explain:             p.Explain,
		HedgeAfter:          hedge(p.Retries, p.Retries.HedgeAfter),
		HedgeOthersAfter:    hedge(p.Retries, p.Retries.HedgeOthersAfter),
	}
}

// hedge is nil where nobody else is asked: beside maxPerTry, which Envoy would forget.
func hedge(r config.Retries, after config.Duration) *durationpb.Duration {
	if after.Duration == 0 || r.MaxPerTry.Duration > 0 {
		return nil
	}
	return durationpb.New(after.Duration)
}

// Complete returns the policy with what it leaves unset, as an older xds does, by
// default. No cookie is set unless the message names one. m stays as it is.
func Complete(m *fleetpb.PolicyState) *fleetpb.PolicyState {
	all := Defaults()
	all.SessionCookie = ""
	if m.GetFlow() == nil {
		all.Flow.GatewayTimeout = nil // nobody knows what the gateway allows
	} else {
		all.Flow = nil // a zero in a flow that is said is meant
	}
	if n := m.GetCandidates(); n != 0 {
		all.CandidatesCritical, all.CandidatesSheddable = n, min(n, all.GetCandidatesSheddable())
	}
	idle := all.SessionIdle
	all.SessionIdle = nil // Merge would add one's seconds to the other's nanoseconds
	proto.Merge(all, m)
	if all.GetSessionIdle().AsDuration() <= 0 {
		all.SessionIdle = idle
	}
	return all
}

// Flow returns what happens when endpoints are busy. The gateway asks extprocs in
// turn, so that each sees its part of what a tenant uses, and has that part of the
// budget.
func Flow(f config.Flow, extprocs int) *fleetpb.Flow {
	n := max(1, extprocs)
	part := func(whole int) uint64 { return uint64((whole + n - 1) / n) }
	out := &fleetpb.Flow{
		Queue: uint32(f.Queue), Allowance: uint32(f.Allowance), Reserve: float64(f.Reserve),
		MaxWaitCritical:   durationpb.New(f.MaxWait.Critical.Duration),
		MaxWaitStandard:   durationpb.New(f.MaxWait.Standard.Duration),
		MaxWaitSheddable:  durationpb.New(f.MaxWait.Sheddable.Duration),
		GatewayTimeout:    durationpb.New(f.GatewayTimeout.Duration),
		DegradeAt:         float64(f.DegradeAt),
		TenantHeader:      f.Tenants.Header,
		RequestsPerMinute: part(f.Tenants.RequestsPerMinute),
		TokensPerMinute:   part(f.Tenants.TokensPerMinute),
		AssumedMaxTokens:  uint64(f.Tenants.AssumedMaxTokens),
		Tenants:           uint32(f.Tenants.Max),
	}
	for _, d := range f.Degrade {
		out.Degrade = append(out.Degrade, &fleetpb.Flow_Degrade{Model: d.Model, To: d.To})
	}
	return out
}

// Rewrites returns the models that serve requests for other names.
func Rewrites(all []config.Rewrite) (out []*fleetpb.Rewrite) {
	for _, w := range all {
		one := &fleetpb.Rewrite{Model: w.Model}
		for _, t := range w.To {
			one.To = append(one.To, &fleetpb.Rewrite_Target{Model: t.Model, Weight: uint32(t.Weight)})
		}
		out = append(out, one)
	}
	return out
}

// kindOf is the type of engine that replicas of our own run; empty: another server's.
func kindOf(backend string) string {
	if backend == config.OpenAI {
		return ""
	}
	return backend
}

// Model returns a model as extproc knows it.
func Model(name string, m config.ModelSpec, isDefault bool) *fleetpb.ModelState {
	return &fleetpb.ModelState{
		Name:          name,
		Tokenizer:     m.TokenizerFile(),
		ContextTokens: uint32(m.Backend.ContextTokens),
		Default:       isDefault,
		TemplateArgs:  m.TemplateArgs,
		Engine:        kindOf(m.Backend.Kind),
		Rests:         m.Rests(),
	}
}
