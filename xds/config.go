package main

import (
	"crypto/rand"
	"fmt"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/internal/layout"
)

// randomKey is the size of a cookie key that we make, in bytes.
const randomKey = 32

// wants returns the replicas that the configuration asks for.
func wants(f config.File) []layout.Want {
	var all []layout.Want
	for _, m := range f.Models {
		for i := range m.Spec.Replicas {
			l := m.Spec.LayoutOf(i)
			all = append(all, layout.Want{
				Model:   m.Metadata.Name,
				Replica: m.ReplicaName(i),
				Backend: backend(m.Spec, f.Policy.Spec.Limits),
				Shares:  l.Shares,
				Nodes:   l.Nodes,
			})
		}
	}
	return all
}

// backend returns what the configuration says of a model's backends as the
// engines read it.
func backend(s config.ModelSpec, limits config.Limits) *enginepb.Backend {
	b := &enginepb.Backend{
		Weights:       s.Weights,
		ContextTokens: uint32(s.Backend.ContextTokens),
		Slots:         uint32(s.Backend.Slots),
		Threads:       uint32(s.Backend.Threads),
		Queue:         uint32(s.Backend.Queue),
		MaxBodyBytes:  uint64(limits.MaxBodyBytes),

		TensorParallel:   uint32(s.Backend.TensorParallel),
		PipelineParallel: uint32(s.Backend.PipelineParallel),
		DataParallel:     uint32(s.Backend.DataParallel),
		Args:             s.Backend.Args,
		Url:              s.Backend.URL,
		ServedModel:      s.Backend.Model,
	}
	switch s.Backend.Kind {
	case config.LlamaCpp:
		b.Kind = enginepb.Backend_LLAMACPP
	case config.VLLM:
		b.Kind = enginepb.Backend_VLLM
	case config.OpenAI:
		b.Kind = enginepb.Backend_OPENAI
	}
	return b
}

// cookieKeys returns the keys that sign session cookies: that of the key file,
// else one that lives as long as this process.
func cookieKeys(c config.Cookie) ([][]byte, error) {
	switch {
	case c.Name == "":
		return nil, nil
	case c.KeyFile == "":
		key := make([]byte, randomKey)
		if _, err := rand.Read(key); err != nil {
			return nil, err
		}
		return [][]byte{key}, nil
	}
	key, err := c.Key()
	if err != nil {
		return nil, fmt.Errorf("spec.sessions.cookie.keyFile: %w", err)
	}
	return [][]byte{key}, nil
}
