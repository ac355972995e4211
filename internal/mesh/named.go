package mesh

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/models"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
)

// named is a model of -model: it is served besides those of the configuration, or gives its
// weights to one that leaves them out.
type named struct {
	ref models.Ref
	// model is what is known of it; Weights is unfetched until it is there.
	model models.Model
	// onDemand is whether it is loaded for its first request alone.
	onDemand bool
}

// unfetched stands for weights that are not there yet.
const unfetched = "(to be fetched)"

// named says which models the mesh is asked for by name, and finds out what of them is there.
// It fetches nothing. Without any the model is that of the configuration.
func (o Options) named(ctx context.Context) (*models.Store, []named, error) {
	from := o.From
	from.Cache, from.Out = o.Cache, o.Progress
	store, err := models.Open(from)
	if err != nil {
		return nil, nil, program.Usage(err)
	}
	var all []named
	for _, text := range o.Models {
		n := named{onDemand: o.OnDemand}
		if n.ref, err = store.Parse(text); err != nil {
			return nil, nil, program.Usage(fmt.Errorf("-model: %w", err))
		}
		if i := slices.IndexFunc(all, func(o named) bool { return o.ref.Name == n.ref.Name }); i >= 0 {
			return nil, nil, program.Usage(&obs.Hint{
				Err:  fmt.Errorf("-model: %s and %s would both be called %s", all[i].ref.Text, n.ref.Text, n.ref.Name),
				Next: fmt.Sprintf("give one of them another id: -model %s-2=%s", n.ref.Name, n.ref.Text),
			})
		}
		there := false
		if n.model, there, err = store.Have(ctx, n.ref); err != nil {
			return nil, nil, program.Setup(err)
		}
		if !there {
			n.model = models.Model{Name: n.ref.Name, Format: config.GGUF, Weights: unfetched}
		}
		all = append(all, n)
	}
	return store, all, nil
}

// pull fetches the models that are not there. Of one whose backend nobody has given nothing is
// fetched.
func (o Options) pull(ctx context.Context, store *models.Store, all []named) error {
	for i, n := range all {
		if n.model.Weights != unfetched {
			continue
		}
		got, err := store.Pull(ctx, n.ref, func(format string) error {
			return checkProgram(named{ref: n.ref, model: models.Model{Format: format}}.config(), o.VLLM)
		})
		if err != nil {
			return err
		}
		all[i].model = got
	}
	for _, n := range all {
		store.Use(time.Now(), n.ref)
	}
	return nil
}

// Default reports whether the model that set-up fetches is needed: none is asked for by name, or
// that one is.
func (o Options) Default(ctx context.Context) (bool, error) {
	_, all, err := o.named(ctx)
	return len(all) == 0 || slices.ContainsFunc(all, func(n named) bool { return n.model.Weights == "" }), err
}

// Fetch fetches the models that are asked for by name, and returns the paths of their weights.
func (o Options) Fetch(ctx context.Context) (paths []string, err error) {
	store, all, err := o.named(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.model.Weights == "" {
			continue // it is set-up's
		}
		m, err := store.Pull(ctx, n.ref, nil)
		if err != nil {
			return nil, err
		}
		paths = append(paths, m.Weights)
	}
	return paths, nil
}

// config is the model as a configuration has it.
func (n named) config() config.Model {
	m := config.NewModel(n.ref.Name)
	n.fill(&m.Spec)
	if n.onDemand {
		m.Spec.Load = config.LoadOnDemand
	}
	return m
}

// fill gives a model the weights of n, and what belongs to them.
func (n named) fill(s *config.ModelSpec) {
	s.Weights = n.model.Weights
	if n.model.Tokenizer != "" {
		s.Tokenizer = n.model.Tokenizer
	}
	if n.model.ContextTokens > 0 {
		s.Backend.ContextTokens = n.model.ContextTokens
	}
	if n.model.Format == config.Safetensors {
		s.Backend.Kind = config.VLLM
	}
}

// withNamed returns the file with the models of -model. Where no object of the file is a
// model they are all there are.
func withNamed(f config.File, at config.Source, all []named) (config.File, error) {
	if len(all) == 0 {
		return f, nil
	}
	f.Models = slices.DeleteFunc(slices.Clone(f.Models), func(m config.Model) bool {
		return !m.Spec.Implied && !at.Sets(config.KindModel, m.Metadata.Name, "kind")
	})
	for _, n := range all {
		i := slices.IndexFunc(f.Models, func(m config.Model) bool { return m.Metadata.Name == n.ref.Name })
		switch {
		case i < 0:
			f.Models = append(f.Models, n.config())
		case takesModel(f.Models[i].Spec):
			n.fill(&f.Models[i].Spec)
		default:
			return f, &obs.Hint{Err: fmt.Errorf("-model %s: the configuration has a model %s, with weights", n.ref.Text, n.ref.Name),
				Next: fmt.Sprintf("give it another id: -model %s-2=%s", n.ref.Name, n.ref.Text)}
		}
	}
	if !slices.ContainsFunc(f.Models, func(m config.Model) bool { return m.Spec.Default }) {
		f.Models[0].Spec.Default = true
	}
	return f, nil
}

// spread has every node work where several models are asked for by name and nobody says how
// they lie: whole ones, on as many nodes each. Where there are more models than nodes, all nodes
// but one have a model each, the first ones, and the others take turns on the last node.
func spread(f config.File, nodes int) config.File {
	n := len(f.Models)
	for i := nodes - 1; n > nodes && i < n; i++ {
		f.Models[i].Spec.Load = config.LoadOnDemand
	}
	for i := range f.Models {
		if s := &f.Models[i].Spec; s.Backend.Kind == config.LlamaCpp && n <= nodes && s.Load != config.LoadOnDemand {
			s.Replicas = nodes / n
			if i < nodes%n {
				s.Replicas++
			}
		}
	}
	return f
}

// turns says which models take turns on nodes as there is not one for each; empty: none does.
func turns(f config.File, nodes int) string {
	var loaded, others []string
	for _, m := range f.Models {
		if m.Spec.Load == config.LoadOnDemand {
			others = append(others, m.Metadata.Name)
		} else {
			loaded = append(loaded, m.Metadata.Name)
		}
	}
	if len(others) == 0 || len(f.Models) <= nodes {
		return ""
	}
	text := strings.Join(others, ", ") + " take turns, each loaded when it is asked for"
	if len(loaded) > 0 {
		text = strings.Join(loaded, ", ") + " stays loaded; " + text
	}
	return fmt.Sprintf("%d models, nodes: %d: %s (-nodes %d keeps all of them loaded)", len(f.Models), nodes, text, len(f.Models))
}
