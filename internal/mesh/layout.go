package mesh

import (
	"fmt"
	"slices"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/doctor"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/placing"
	"millrace.dev/millrace/internal/weights"
	"millrace.dev/millrace/xds/fleetpb"
)

// layoutGiven returns the models whose layout or number of replicas the user chose.
func layoutGiven(f config.File, at config.Source) map[string]bool {
	given := map[string]bool{}
	for _, m := range f.Models {
		name := m.Metadata.Name
		given[name] = m.Spec.Scaled() || at.Sets(config.KindModel, name, "spec.replicas") || at.Sets(config.KindModel, name, "spec.layout")
	}
	return given
}

// layOut completes the only model, if the user chose no layout: every node works. The model
// that set-up fetches is laid out here, and so is one of which nothing is known yet: from three
// nodes on the first replica is sharded. Of any other, xds plans as many replicas as fit. What
// llama.cpp does not serve is on one node: it may want a device of its own.
func layOut(f config.File, given map[string]bool, nodes int, fit func(config.Model) int) config.File {
	f.Models = slices.Clone(f.Models)
	if len(f.Models) != 1 || f.Models[0].Spec.Implied || f.Models[0].Spec.Backend.Kind != config.LlamaCpp || given[f.Models[0].Metadata.Name] {
		return f
	}
	spec := &f.Models[0].Spec
	if n := fit(f.Models[0]); n > 0 {
		spec.Replicas, spec.Layout = n, nil
		return f
	}
	if nodes < 3 {
		spec.Replicas, spec.Layout = nodes, []config.Layout{{Stages: 1}}
		return f
	}
	spec.Replicas, spec.Layout = nodes-1, []config.Layout{{Stages: 2, Shares: []float32{1, 1}}, {Stages: 1}}
	return f
}

// fits returns how many replicas of a model have a place on the nodes of this machine, at
// least 1; 0: its weights are not there yet, or can't be understood.
func fits(m config.Model, nodes int, memory map[string]config.Bytes) int {
	if m.Spec.Weights == "" || m.Spec.Weights == unfetched {
		return 0
	}
	shape, err := weights.ShapeOf(m.Spec.Weights)
	if err != nil {
		return 0
	}
	total, err := doctor.Memory()
	if err != nil {
		return 0
	}
	var room []uint64
	for _, name := range nodeNames(nodes) {
		t := &fleetpb.Telemetry{MemoryTotalBytes: uint64(max(0, total)), ModelMemoryBytes: uint64(memory[name])}
		room = append(room, placing.Memory(t, nodes))
	}
	return max(1, placing.Fit(placing.Request(m.Metadata.Name, m.Spec, shape), room))
}

// checkRoom refuses a file that needs more nodes than there are.
func checkRoom(f config.File, nodes int) error {
	need, most := 0, 0
	for _, m := range f.Models {
		n := m.Spec.LayoutOf(0).Stages
		if m.Spec.Scaled() && m.Spec.Replicas == 0 {
			most = max(most, n) // it is to have room for the first one
		}
		for i := range m.Spec.Replicas {
			if n = m.Spec.LayoutOf(i).Stages; m.Spec.Load == config.LoadOnDemand {
				most = max(most, n) // they take turns
			} else {
				need += n
			}
		}
	}
	if need += most; need <= nodes {
		return nil
	}
	return &obs.Hint{
		Err:  fmt.Errorf("the models need %d nodes, there are %d: a node holds one stage of one replica", need, nodes),
		Next: fmt.Sprintf("start with -nodes %d, ask for fewer replicas or stages, or have models take turns (load: onDemand)", need),
	}
}

// needsModel reports whether some model is the one that set-up fetches.
func needsModel(f config.File) bool {
	return slices.ContainsFunc(f.Models, func(m config.Model) bool { return takesModel(m.Spec) })
}

// takesModel reports whether a model's weights are those that set-up fetches.
func takesModel(s config.ModelSpec) bool {
	return s.Weights == "" && s.Backend.Kind == config.LlamaCpp && s.Most() > 0
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
