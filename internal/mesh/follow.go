package mesh

import (
	"context"
	"fmt"
	"os"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/state"
)

// deriver makes what the programs read of what the user's file says, each time that it
// changes.
type deriver struct {
	nodes     int
	memory    map[string]config.Bytes // as in Options
	named     []named                 // models of -model
	vllm      string                  // path of the user's own; empty: there is none
	weights   string                  // path of those that set-up has fetched; empty: it has not
	cookieKey string                  // path
	// laid has the layout that a model got when the user chose none, by the model's
	// name: it stays, whatever other models come and go.
	laid map[string]config.ModelSpec
}

// laidOut returns the layouts of a file's models.
func laidOut(f config.File) map[string]config.ModelSpec {
	laid := map[string]config.ModelSpec{}
	for _, m := range f.Models {
		laid[m.Metadata.Name] = m.Spec
	}
	return laid
}

// derive is a desired.Derive.
func (d *deriver) derive(f config.File, at config.Source) (config.File, []config.Fault) {
	given := layoutGiven(f, at)
	f, err := withNamed(f, at, d.named)
	if err != nil {
		return f, []config.Fault{{Text: err.Error()}}
	}
	for i := range f.Models {
		m := &f.Models[i]
		if had, ok := d.laid[m.Metadata.Name]; ok && !given[m.Metadata.Name] {
			m.Spec.Replicas, m.Spec.Layout = had.Replicas, had.Layout
			given[m.Metadata.Name] = true
		}
	}
	f = layOut(f, given, d.nodes, func(m config.Model) int { return fits(m, d.nodes, d.memory) })
	var faults []config.Fault
	fault := func(name, path, format string, args ...any) {
		faults = append(faults, config.Fault{Kind: config.KindModel, Name: name, Path: path, Text: fmt.Sprintf(format, args...)})
	}
	if err := checkRoom(f, d.nodes); err != nil {
		fault(f.Models[len(f.Models)-1].Metadata.Name, "spec.replicas", "%v", err)
	}
	for _, m := range f.Models {
		if err := checkModel(m); err != nil {
			fault(m.Metadata.Name, "spec.weights", "%v", err)
		}
		if err := checkProgram(m, d.vllm); err != nil {
			fault(m.Metadata.Name, "spec.backend.kind", "%v; start the mesh again, with -vllm", err)
		}
		if takesModel(m.Spec) && d.weights == "" {
			fault(m.Metadata.Name, "spec.weights", "missing; set-up did not fetch any when this mesh started: start it again")
		}
	}
	if len(faults) == 0 {
		d.laid = laidOut(f)
	}
	return withPaths(f, d.weights, d.cookieKey), faults
}

// follow writes what the programs read whenever the user's file changes, and shows
// what is wrong with it, until ctx ends.
func (m *mesh) follow(ctx context.Context) error {
	before, next := m.config.Latest()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
		var now desired.Published
		now, next = m.config.Latest()
		if now.State != before.State {
			if err := m.write(now.State.File()); err != nil {
				m.show.progress("the configuration is not in force: %v", err)
				continue
			}
			m.show.progress("the configuration has changed, and is being put in force")
		}
		for _, f := range now.Faults {
			m.show.progress("the configuration is refused, what was in force stays: %v", f)
		}
		_ = m.store.Update(func(s *state.State) {
			s.Faults = nil
			for _, f := range now.Faults {
				s.Faults = append(s.Faults, state.Fault{Kind: f.Kind, Name: f.Name, Field: f.Path, Text: f.Error()})
			}
		})
		before = now
	}
}

// write replaces the file that xds follows.
func (m *mesh) write(f config.File) error {
	text, err := config.Marshal(f)
	if err != nil {
		return err
	}
	if err := regular.Write(m.plan.Config+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(m.plan.Config+".new", m.plan.Config)
}
