package status

import (
	"context"
	"errors"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/state"
)

// Loaded returns which nodes of the mesh in dir have which weights now, by their path. Where
// no mesh runs nobody has any.
func Loaded(ctx context.Context, dir string) (map[string][]string, error) {
	s, running, err := state.Read(dir)
	if errors.Is(err, state.ErrNone) || err == nil && !running {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := regular.Read(s.Config, config.MaxFile)
	if err != nil {
		return nil, err
	}
	file, _, err := config.Read(s.Config, text)
	if err != nil {
		return nil, err
	}
	r, err := gather(ctx, dir)
	if err != nil {
		return nil, err
	}
	nodes := map[string][]string{}
	for _, m := range file.Models {
		for _, n := range r.Nodes {
			if n.Model == m.Metadata.Name && m.Spec.Weights != "" {
				nodes[m.Spec.Weights] = append(nodes[m.Spec.Weights], n.Node)
			}
		}
	}
	return nodes, nil
}
