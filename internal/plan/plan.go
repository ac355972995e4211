// Package plan is `millrace plan`: it shows how models would lie on nodes, and why.
//
// Its one rule: it starts and fetches nothing. What it shows is what internal/planner
// decides of the files that it is given, or of a mesh that runs.
package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/doctor"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/placing"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/setup"
	"millrace.dev/millrace/internal/status"
	"millrace.dev/millrace/internal/weights"
	"millrace.dev/millrace/xds/fleetpb"
)

// Options are those of the command.
type Options struct {
	// Config is a file with Model objects; empty: that of the mesh, or the default model. Nodes
	// is one with nodes; empty: those of the mesh, or this machine.
	Config, Nodes string
	// Dir is the folder of a mesh: if one runs there, its nodes and configuration are taken where
	// the other two are empty.
	Dir string
	// Cache is set-up's folder; empty: its default.
	Cache string
	// JSON is whether to print JSON.
	JSON bool
	Out  io.Writer
}

// subject is a model that is laid out.
type subject struct {
	planner.Request
	spec config.ModelSpec
	// written is whether the file has a layout of its own.
	written bool
}

// Run prints the layouts of all models whose backends are started here.
func Run(ctx context.Context, o Options) error {
	var view *fleetpb.FleetView
	if o.Nodes == "" && o.Dir != "" {
		var config string
		var err error
		if view, config, err = status.View(ctx, o.Dir); err != nil {
			return fmt.Errorf("plan: the mesh in %s: %w", o.Dir, err)
		}
		o.Config = cmp.Or(o.Config, config)
	}
	file, at, err := o.file()
	if err != nil {
		return program.Config(err)
	}
	var all []subject
	for _, m := range file.Models {
		if m.Spec.Implied || m.Spec.Backend.Kind == config.OpenAI {
			continue
		}
		s, err := o.subject(m, at)
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return program.Config(errors.New("plan: no model of the file is started here: there is nothing to lay out"))
	}
	requests := make([]planner.Request, len(all))
	for i, s := range all {
		requests[i] = s.Request
	}
	p := planned{subjects: all}
	if view != nil {
		p.running = true
		fleet, previous := observed(view, all)
		p.layouts, p.steps = planner.Replan(previous, fleet, requests)
	} else {
		fleet, err := o.fleet(all)
		if err != nil {
			return err
		}
		p.layouts = planner.Make(fleet, requests)
	}
	if err := p.show(o); err != nil {
		return err
	}
	return p.missing()
}

// planned is what is shown.
type planned struct {
	subjects []subject
	layouts  []planner.Layout
	// running is whether the nodes are those of a mesh, and steps what it takes from what
	// runs there.
	running bool
	steps   []planner.Step
}

// missing is the error that some model does not reach its goal; nil: all do.
func (p planned) missing() error {
	var missing []string
	for _, l := range p.layouts {
		if l.Missing != "" {
			missing = append(missing, fmt.Sprintf("model %s %s", l.Model, l.Missing))
		}
	}
	if len(missing) > 0 {
		return &obs.Hint{
			Err:  fmt.Errorf("plan: %s", strings.Join(missing, "; ")),
			Next: "add nodes, or lower replicas, contextTokens, slots or goal of the model, or take smaller weights",
		}
	}
	return nil
}

func (o Options) file() (config.File, config.Source, error) {
	if o.Config == "" {
		return config.Default(), config.Source{}, nil
	}
	text, err := regular.Read(o.Config, config.MaxFile)
	if err != nil {
		return config.File{}, config.Source{}, err
	}
	return config.Read(o.Config, text)
}

func (o Options) subject(m config.Model, at config.Source) (subject, error) {
	name, path := m.Metadata.Name, m.Spec.Weights
	next := "set spec.weights to a GGUF file, or a folder with config.json and weights in safetensors form"
	if path == "" {
		path, next = setup.ModelPath(cmp.Or(o.Cache, setup.DefaultCache())), "fetch the default model by millrace setup, or set spec.weights"
	}
	shape, err := weights.ShapeOf(path)
	if err != nil {
		return subject{}, program.Config(&obs.Hint{Err: fmt.Errorf("plan: model %s: %w", name, err), Next: next})
	}
	s := subject{spec: m.Spec, written: at.Sets(config.KindModel, name, "spec.layout")}
	s.Request = placing.Request(name, m.Spec, shape)
	if at.Sets(config.KindModel, name, "spec.replicas") {
		s.Goal.Replicas = m.Spec.Replicas
	}
	return s, nil
}

// fleet returns the nodes of the file, their speeds as bytes of weights.
func (o Options) fleet(all []subject) (planner.Fleet, error) {
	if o.Nodes == "" {
		memory, err := doctor.Memory()
		if err != nil {
			return planner.Fleet{}, err
		}
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "this machine"
		}
		return planner.Fleet{Nodes: []planner.Node{{Name: host, Memory: uint64(max(0, memory))}}}, nil
	}
	file, err := config.LoadNodes(o.Nodes)
	if err != nil {
		return planner.Fleet{}, program.Config(&obs.Hint{Err: err, Next: "manifests/plan.md shows a file of nodes"})
	}
	with := all[0]
	if file.MeasuredWith != "" {
		found := false
		for _, s := range all {
			if s.Model.Name == file.MeasuredWith {
				with, found = s, true
			}
		}
		if !found {
			return planner.Fleet{}, program.Config(fmt.Errorf("%s: measuredWith: %.80q; must be a model that is laid out here", o.Nodes, file.MeasuredWith))
		}
	}
	return fleet(file, float64(with.Model.Bytes())), nil
}

// fleet turns nodes into those of the planner. bytes are the weights of the model that speeds
// were measured with.
func fleet(file config.Nodes, bytes float64) planner.Fleet {
	link := func(l config.PlanLink) planner.Link {
		return planner.Link{Bandwidth: float64(l.Bandwidth), Latency: l.Latency.Duration}
	}
	f := planner.Fleet{Link: link(file.Link), Links: map[[2]string]planner.Link{}}
	for _, n := range file.Nodes {
		f.Nodes = append(f.Nodes, planner.Node{
			Name: n.Name, Devices: n.Devices, Memory: uint64(n.Memory), Decode: float64(n.Decode) * bytes, Prefill: float64(n.Prefill) * bytes,
			Between: link(n.Link), Domain: n.Domain,
		})
	}
	for _, l := range file.Links {
		f.Links[[2]string{l.Between[0], l.Between[1]}] = link(l)
	}
	return f
}
