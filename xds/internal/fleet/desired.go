package fleet

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/internal/layout"
)

// specs returns the replicas that are desired, of each model those with these numbers.
func specs(s *desired.State, numbers func(desired.Object[config.ModelSpec]) []int) []layout.Spec {
	var all []layout.Spec
	for _, m := range s.Models {
		b := backend(m.Spec, s.Policy.Spec.Limits)
		for _, i := range numbers(m) {
			l := m.Spec.LayoutOf(i)
			all = append(all, layout.Spec{
				Model: m.Name, Replica: desired.Replica(m.Name, i), Backend: b, Shares: l.Shares, Nodes: l.Nodes, Planned: m.Spec.Planned(),
			})
		}
	}
	return all
}

// kinds are the kinds of backend by their name in the configuration.
var kinds = map[string]enginepb.Backend_Kind{
	config.LlamaCpp: enginepb.Backend_LLAMACPP,
	config.VLLM:     enginepb.Backend_VLLM,
	config.OpenAI:   enginepb.Backend_OPENAI,
}

// goal is how long answers may take; nil: as long as they will.
func goal(g config.Goal) *enginepb.Goal {
	var v enginepb.Goal
	if d := g.FirstToken.Duration; d > 0 {
		v.FirstToken = durationpb.New(d)
	}
	if d := g.Token.Duration; d > 0 {
		v.Token = durationpb.New(d)
	}
	if v.FirstToken == nil && v.Token == nil {
		return nil
	}
	return &v
}

// backend returns what the configuration says of a model's backends as the engines
// read it.
func backend(s config.ModelSpec, limits config.Limits) *enginepb.Backend {
	var keep *durationpb.Duration
	if d := s.KeepAlive.Duration; d > 0 {
		keep = durationpb.New(max(d, time.Second))
	}
	return &enginepb.Backend{
		Kind:          kinds[s.Backend.Kind],
		Weights:       s.Weights,
		ContextTokens: uint32(s.Backend.ContextTokens),
		Slots:         uint32(s.Backend.Slots),
		Threads:       uint32(s.Backend.Threads),
		Queue:         uint32(s.Backend.Queue),
		MaxBodyBytes:  uint64(limits.MaxBodyBytes),
		// A change waits for running requests as long as these may run.
		Drain:     durationpb.New(limits.RequestTimeout.Duration),
		KeepAlive: keep,
		OnDemand:  s.Load == config.LoadOnDemand,
		Goal:      goal(s.Goal),

		TensorParallel:   uint32(s.Backend.TensorParallel),
		PipelineParallel: uint32(s.Backend.PipelineParallel),
		DataParallel:     uint32(s.Backend.DataParallel),
		Args:             s.Backend.Args,
		Url:              s.Backend.URL,
		ServedModel:      s.Backend.Model,
	}
}
