package status

import (
	"context"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/models"
	"millrace.dev/millrace/internal/regular"
)

// Loaded returns which nodes of the mesh in dir have which weights now, or would load them, by
// their path. Where no mesh runs nobody has any.
func Loaded(ctx context.Context, dir string) (map[string][]models.Place, error) {
	s, err := running(dir)
	if s == nil || err != nil {
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
	nodes := map[string][]models.Place{}
	for _, m := range file.Models {
		for _, u := range r.Unplaced {
			if u.Model == m.Metadata.Name && u.Asleep && m.Spec.Weights != "" {
				nodes[m.Spec.Weights] = append(nodes[m.Spec.Weights], models.Place{Node: u.Replica, State: asleep, Why: u.Reason})
			}
		}
		for _, n := range r.Nodes {
			if n.Model == m.Metadata.Name && m.Spec.Weights != "" {
				nodes[m.Spec.Weights] = append(nodes[m.Spec.Weights], models.Place{Node: n.Node, State: n.Loading, Why: n.Reason})
			}
		}
	}
	return nodes, nil
}
