package mesh

import (
	"fmt"
	"slices"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
)

// layoutGiven returns the models whose layout or number of replicas the user chose.
func layoutGiven(f config.File, at config.Source) map[string]bool {
	given := map[string]bool{}
	for _, m := range f.Models {
		name := m.Metadata.Name
		given[name] = at.Sets(config.KindModel, name, "spec.replicas") || at.Sets(config.KindModel, name, "spec.layout")
	}
	return given
}

// layOut returns the file with a layout for the only model, if the user chose
// none: every node works, and from three nodes on the first replica is sharded. What
// llama.cpp does not serve is on one node: it may want a device of its own.
func layOut(f config.File, given map[string]bool, nodes int) config.File {
	f.Models = slices.Clone(f.Models)
	if len(f.Models) != 1 || f.Models[0].Spec.Implied || f.Models[0].Spec.Backend.Kind != config.LlamaCpp || given[f.Models[0].Metadata.Name] {
		return f
	}
	spec := &f.Models[0].Spec
	if nodes < 3 {
		spec.Replicas, spec.Layout = nodes, []config.Layout{{Stages: 1}}
		return f
	}
	spec.Replicas, spec.Layout = nodes-1, []config.Layout{{Stages: 2, Shares: []float32{1, 1}}, {Stages: 1}}
	return f
}

// checkRoom refuses a file that needs more nodes than there are.
func checkRoom(f config.File, nodes int) error {
	need := 0
	for _, m := range f.Models {
		for i := range m.Spec.Replicas {
			need += m.Spec.LayoutOf(i).Stages
		}
	}
	if need <= nodes {
		return nil
	}
	return &obs.Hint{
		Err:  fmt.Errorf("the models need %d nodes, there are %d: a node holds one stage of one replica", need, nodes),
		Next: fmt.Sprintf("start with -nodes %d, or ask for fewer replicas or stages", need),
	}
}

// needsModel reports whether some model is the one that set-up fetches.
func needsModel(f config.File) bool {
	return slices.ContainsFunc(f.Models, func(m config.Model) bool { return takesModel(m.Spec) })
}

// takesModel reports whether a model's weights are those that set-up fetches.
func takesModel(s config.ModelSpec) bool {
	return s.Weights == "" && s.Backend.Kind == config.LlamaCpp && s.Replicas > 0
}

// withPaths returns the file with the paths that the user left to us.
func withPaths(f config.File, weights, cookieKey string) config.File {
	f.Models = slices.Clone(f.Models)
	for i := range f.Models {
		if spec := &f.Models[i].Spec; takesModel(*spec) {
			spec.Weights = weights
		}
	}
	if cookie := &f.Policy.Spec.Sessions.Cookie; cookie.KeyFile == "" && cookie.Name != "" {
		cookie.KeyFile = cookieKey
	}
	return f
}
