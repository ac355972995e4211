// Package mesh is `millrace up`: it starts every program of a mesh on this
// machine as a process of its own, keeps them up, and shows what is true of them.
//
// Called by the millrace command. Its one rule: nothing that it started is left
// when it ends, however it ends.
package mesh

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/setup"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/usable"
)

// Up runs a mesh until ctx ends. It returns nil when it stopped because of ctx.
// Everything that can be known to be wrong is found before anything starts.
func Up(ctx context.Context, o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	undo, err := makeDir(o.Dir)
	if err != nil {
		return err
	}
	lock, err := takeDir(o.Dir)
	if err != nil {
		undo()
		return err
	}
	defer lock.Close()
	catalogue, all, err := o.named(ctx)
	var file config.File
	if err == nil {
		file, err = o.prepare(all)
	}
	if err != nil {
		undo()
		return err
	}
	show := &console{out: o.Out, err: o.Progress}
	if text := turns(file, o.Nodes); text != "" && len(all) > 0 {
		show.progress("%s", text)
	}
	store, err := state.Create(firstState(o, file))
	if err != nil {
		undo()
		return err
	}
	paths, err := setup.Ensure(ctx, o.Setup(!needsModel(file)))
	if err == nil {
		err = o.pull(ctx, catalogue, all)
	}
	if ctx.Err() != nil {
		return program.Interrupted()
	}
	if err != nil {
		return program.Setup(err)
	}
	if file, err = load(o, all); err != nil { // now with what was fetched
		return err
	}
	return start(ctx, o, file, all, paths, store, show)
}

// prepare finds out all that can be wrong before anything is written, and completes o.
func (o *Options) prepare(all []named) (file config.File, err error) {
	if o.Listen, err = checkListen(o.Listen); err != nil {
		return file, err
	}
	if o.HTTPS.Listen != "" {
		if o.HTTPS.Listen, err = checkListen(o.HTTPS.Listen); err != nil {
			return file, fmt.Errorf("-https: %w", err)
		}
	}
	if file, err = load(*o, all); err != nil {
		return file, err
	}
	o.Programs, err = programs(o.Programs)
	return file, err
}

// makeDir makes the mesh's folder. undo takes back what was made, where the mesh does not
// come into being: what was there before stays.
func makeDir(dir string) (undo func(), err error) {
	made := dir
	if exists(dir) {
		made = state.LockFile(dir)
		if exists(made) {
			made = ""
		}
	} else {
		for parent := filepath.Dir(dir); !exists(parent); parent = filepath.Dir(parent) {
			made = parent
		}
	}
	undo = func() {
		if made != "" {
			_ = os.RemoveAll(made)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		undo()
		return undo, &obs.Hint{Err: err, Next: "name a writable folder with -dir"}
	}
	return undo, nil
}

// start plans the mesh and runs it.
func start(ctx context.Context, o Options, file config.File, all []named, paths setup.Paths, store *state.Store, show *console) error {
	spans, err := openTraces(o.Traces)
	if err != nil {
		return err
	}
	ports, err := freePorts(portsNeeded(o.Nodes, o.ExtProcs), o.Listen)
	if err != nil {
		return err
	}
	plan := NewPlan(Input{
		Listen: o.Listen, Dir: o.Dir, Nodes: o.Nodes, ExtProcs: o.ExtProcs, Ports: ports, Programs: o.Programs,
		Envoy: paths.Envoy, Runtime: paths.Runtime, LlamaServer: o.LlamaServer, RPCServer: o.RPCServer, VLLM: o.VLLM,
		Traces: spans.target, Capacity: o.Capacity, Memory: o.Memory, TLS: o.tlsDir(), HTTPS: o.HTTPS, APIKeys: o.keyFiles(), Records: o.Records, Snapshots: o.Snapshots, ProbeKey: rand.Text(),
	})
	own, err := o.ownKey()
	if err != nil {
		return err
	}
	var certs *certificates
	if o.TLS {
		if certs, err = newCertificates(plan.TLS, o.Nodes, o.TLSLife, time.Now()); err != nil {
			return err
		}
	}
	me, err := state.State{TLS: plan.TLS}.Operator()
	if err != nil {
		return err
	}
	key := filepath.Join(o.Dir, "cookie.key")
	if err := writeFiles(plan, withPaths(file, paths.Model, key)); err != nil {
		return err
	}
	if err := store.Update(func(s *state.State) { s.Processes = rows(plan.Specs) }); err != nil {
		return err
	}
	m := &mesh{plan: plan, first: replicas(file), example: example(file), store: store, show: show, certs: certs, operator: me, key: own}
	if o.Config != "" {
		d := deriver{nodes: o.Nodes, memory: o.Memory, named: all, vllm: o.VLLM, weights: paths.Model, cookieKey: key, laid: laidOut(file)}
		if m.config, err = desired.Open(o.Config, d.derive, nil, slog.New(slog.DiscardHandler)); err != nil {
			return program.Config(err)
		}
	}
	return spans.during(ctx, m.run)
}

// Check says whether Up would take the options and the configuration. It
// starts, fetches and writes nothing.
func Check(o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	_, all, err := o.named(context.Background())
	if err != nil {
		return err
	}
	file, err := load(o, all)
	if err != nil {
		return err
	}
	for _, at := range []struct{ flag, address string }{{"-listen", o.Listen}, {"-https", o.HTTPS.Listen}} {
		if at.address == "" {
			continue
		}
		if _, err := usable.Address(at.address); err != nil {
			return program.Usage(fmt.Errorf("%s: %w", at.flag, err))
		}
	}
	if err := o.Setup(!needsModel(file)).Check(); err != nil {
		return program.Setup(err)
	}
	return nil
}

// takeDir takes the mesh's folder for this process.
func takeDir(dir string) (*os.File, error) {
	lock, err := state.Lock(dir)
	if !errors.Is(err, state.ErrRunning) {
		return lock, err
	}
	if s, _, readErr := state.Read(dir); readErr == nil {
		err = fmt.Errorf("%w: process %d, http://%s", err, s.PID, s.Listen)
	}
	return nil, &obs.Hint{Err: err, Next: "end it with millrace down, or start this one with another -dir and another -listen"}
}

// load reads the configuration and completes it for the nodes that there are.
func load(o Options, all []named) (config.File, error) {
	file, err := loadFor(o, all)
	if err != nil {
		return config.File{}, program.Config(err)
	}
	for _, m := range file.Models {
		if err := checkProgram(m, o.VLLM); err != nil {
			return config.File{}, program.Setup(err)
		}
	}
	return file, nil
}

// checkProgram finds a backend whose program set-up does not fetch and nobody has given.
func checkProgram(m config.Model, vllm string) error {
	if m.Spec.Backend.Kind != config.VLLM || vllm != "" {
		return nil
	}
	return &obs.Hint{
		Err:  fmt.Errorf("model %s: spec.backend.kind: %s: no vLLM was named", m.Metadata.Name, config.VLLM),
		Next: "name a Python environment with vLLM by -vllm; set-up does not fetch it, as it is too large",
	}
}

func loadFor(o Options, all []named) (config.File, error) {
	path, nodes := o.Config, o.Nodes
	file, given := config.Default(), map[string]bool{}
	var at config.Source
	if path != "" {
		text, err := regular.Read(path, config.MaxFile)
		if err == nil {
			file, at, err = config.Read(path, text)
		}
		if err != nil {
			return config.File{}, &obs.Hint{Err: err, Next: "correct the file named with -config, or leave -config out: everything has a default"}
		}
		given = layoutGiven(file, at)
	}
	file, err := withNamed(file, at, all)
	if err != nil {
		return config.File{}, err
	}
	if path == "" && len(all) > 1 {
		file = spread(file, nodes)
	}
	file = layOut(file, given, nodes, func(m config.Model) int { return fits(m, nodes, o.Memory) })
	return file, errors.Join(checkRoom(file, nodes), checkWeights(file))
}

// checkWeights finds weights that are not there, or not all of them, before a
// backend does.
func checkWeights(f config.File) error {
	for _, m := range f.Models {
		if err := checkModel(m); err != nil {
			return err
		}
	}
	return nil
}

// checkModel finds whether a model can be used as named, but for weights that are yet to be fetched.
func checkModel(m config.Model) error {
	if m.Spec.Weights == unfetched {
		m.Spec.Weights = ""
	}
	return usable.Model(m)
}

func firstState(o Options, f config.File) state.State {
	return state.State{
		Listen: o.Listen, Processes: []state.Process{}, PID: os.Getpid(), Started: time.Now().UTC(), Dir: o.Dir,
		TLS: o.tlsDir(), Logs: filepath.Join(o.Dir, "logs"), Config: filepath.Join(o.Dir, "config.yaml"), Model: f.DefaultModel().Metadata.Name,
		Traces: o.tracesFile(),
	}
}

// tlsDir is the folder of the certificates; empty: there are none.
func (o Options) tlsDir() string {
	if !o.TLS {
		return ""
	}
	return filepath.Join(o.Dir, "tls")
}

// programs finds the folder with our own programs: beside the millrace command.
func programs(dir string) (string, error) {
	if dir == "" {
		exe, err := os.Executable()
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(exe)
	}
	for _, name := range []string{"xds", "extproc", "nodeagent", "engine"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.IsDir() {
			return "", program.Setup(&obs.Hint{
				Err:  fmt.Errorf("no program %s in %s", name, dir),
				Next: "build all programs with `make build` and run bin/millrace",
			})
		}
	}
	return filepath.Abs(dir)
}
