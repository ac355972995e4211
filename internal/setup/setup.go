// Package setup fetches what a mesh needs and does not carry itself: Envoy,
// llama.cpp with its RPC plugin, and the default model.
//
// Called by the millrace command before anything starts, and by its doctor.
// Its one rule: nothing enters the cache folder under its final name unless its
// hash is the pinned one, so that a start may trust what it finds there.
package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/progress"
	"millrace.dev/millrace/internal/weights"
)

// who begins the lines of progress.
const who = "set-up"

// Options say where the cache is and what the user brings along.
type Options struct {
	// Cache is the folder that holds everything fetched; "" is DefaultCache.
	Cache string
	// Envoy is the user's own envoy; "" fetches the pinned one.
	Envoy string
	// LlamaServer and RPCServer are the user's own llama-server and
	// ggml-rpc-server, of one and the same build; "" fetches the runtime.
	LlamaServer, RPCServer string
	// Model is the user's own GGUF file for the default model; "" fetches it.
	Model string
	// NoModel says whether the default model isn't needed at all.
	NoModel bool
	// Out receives progress lines; nil drops them.
	Out io.Writer
}

// Paths are where things are, absolute.
type Paths struct {
	// Envoy is the program to run.
	Envoy string
	// Runtime is the folder with xllamacpp/ and libggml-rpc.so; "" if the user
	// brought native programs.
	Runtime string
	// Model is the default model's GGUF file; "" if Options.NoModel.
	Model string
}

// Ensure fetches and builds what is missing and returns where everything is.
// With a complete cache it only checks sizes and times of the files and asks
// python3 for its version: no network, no compiler. Several may run at once, on one cache too.
// Each error that a person can do something about is an obs.Hint.
func Ensure(ctx context.Context, o Options) (Paths, error) {
	o, err := o.complete()
	if err == nil && o.Envoy != "" {
		err = isEnvoy(ctx, o.Envoy)
	}
	if err == nil {
		err = ensure(ctx, o.Cache, o.parts(), o.Out)
	}
	if err != nil {
		return Paths{}, fmt.Errorf("set-up: %w", err)
	}
	return o.paths(), nil
}

// A Need is what set-up still has to do.
type Need struct {
	// Parts are the names of what isn't installed yet.
	Parts []string
	// Disk is how many bytes that takes while it is installed.
	Disk int64
	// Compiler is whether it takes a C++ compiler.
	Compiler bool
}

// Inspect returns where everything is or will be, and what Ensure would have to do.
// It changes nothing but the times that the cache remembers.
func Inspect(ctx context.Context, o Options) (Paths, Need, error) {
	o, err := o.complete()
	if err != nil {
		return Paths{}, Need{}, err
	}
	missing, err := missingParts(ctx, o.Cache, o.parts(), progress.New(io.Discard, who))
	if err != nil {
		return Paths{}, Need{}, explain(err, o.Cache)
	}
	return o.paths(), needed(missing), nil
}

func needed(missing []part) Need {
	var n Need
	for _, p := range missing {
		n.Parts = append(n.Parts, p.Name)
		n.Disk += p.Disk
		n.Compiler = n.Compiler || p.Plugin
	}
	return n
}

// ensure brings the parts into the cache. The runtime runs in Python, which
// may have gone since it was installed.
func ensure(ctx context.Context, cache string, parts []part, out io.Writer) error {
	show := progress.New(out, who)
	stop := show.Start()
	defer stop()
	if slices.ContainsFunc(parts, func(p part) bool { return p.Plugin }) {
		if _, err := FindPython(ctx); err != nil {
			return err
		}
	}
	missing, err := missingParts(ctx, cache, parts, show)
	if err == nil && len(missing) > 0 {
		err = install(ctx, cache, parts, show)
	}
	return explain(err, cache)
}

// install fetches what is missing while it holds the cache's lock.
func install(ctx context.Context, cache string, parts []part, show *progress.Progress) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	unlock, err := Lock(ctx, filepath.Join(cache, ".lock"), "another set-up that uses this cache", show)
	if err != nil {
		return err
	}
	defer unlock()
	// Another start may have done the work while this one waited.
	missing, err := missingParts(ctx, cache, parts, show)
	if err != nil || len(missing) == 0 {
		return err
	}
	py, cxx, err := preflight(ctx, cache, missing)
	if err != nil {
		return err
	}
	// What lies there belongs to a start that was killed, as the lock is ours. An
	// orphan of it may still write: what resists is removed next time.
	_ = os.RemoveAll(filepath.Join(cache, tmpFolder))
	if err := os.MkdirAll(filepath.Join(cache, tmpFolder), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Join(cache, tmpFolder))
	tmp, err := os.MkdirTemp(filepath.Join(cache, tmpFolder), "run-")
	if err != nil {
		return err
	}
	i := installer{cache: cache, tmp: tmp, python: py, compiler: cxx, show: show}
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range missing {
		g.Go(func() error { return i.install(ctx, p) })
	}
	return g.Wait()
}

// Check returns what is wrong with the user's own files, and fetches nothing.
func (o Options) Check() error {
	_, err := o.complete()
	return err
}

// complete returns o with absolute paths, once the user's own files are checked.
func (o Options) complete() (Options, error) {
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Cache == "" {
		o.Cache = DefaultCache()
	}
	if (o.LlamaServer == "") != (o.RPCServer == "") {
		return o, hint(errors.New("only one of llama-server and ggml-rpc-server is given"),
			"give both -llama-server and -rpc-server, from one and the same build of llama.cpp, or neither")
	}
	for _, f := range []struct {
		flag  string
		path  *string
		check func(string) error
	}{
		{"cache", &o.Cache, func(string) error { return nil }},
		{"envoy", &o.Envoy, executable},
		{"llama-server", &o.LlamaServer, executable},
		{"rpc-server", &o.RPCServer, executable},
		{"model", &o.Model, weights.Check},
	} {
		if *f.path == "" {
			continue
		}
		abs, err := filepath.Abs(*f.path)
		if err != nil {
			return o, err
		}
		if err := f.check(abs); err != nil {
			return o, hint(fmt.Errorf("-%s: %w", f.flag, err),
				"point -"+f.flag+" at an existing file, whole, or leave it out: set-up then fetches the pinned one")
		}
		*f.path = abs
	}
	return o, nil
}

func (o Options) paths() Paths {
	paths := Paths{Envoy: o.Envoy, Model: o.Model}
	if paths.Envoy == "" {
		paths.Envoy = filepath.Join(o.Cache, envoyFolder, "envoy")
	}
	if o.LlamaServer == "" {
		paths.Runtime = filepath.Join(o.Cache, runtimeFolder)
	}
	if paths.Model == "" && !o.NoModel {
		paths.Model = filepath.Join(o.Cache, modelFolder, modelFile)
	}
	return paths
}

// executable says why path isn't a program that can be run.
func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s: not an executable file", path)
	}
	return nil
}

// VersionMark stands before the version in what `envoy --version` prints.
const VersionMark = "version: "

// versionLimit bounds how long a program may take to print its version.
const versionLimit = 10 * time.Second

// isEnvoy asks the user's own Envoy for its version, and says why it is none.
func isEnvoy(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	printed, err := cmd.Output()
	if err == nil && !bytes.Contains(printed, []byte(VersionMark)) {
		err = fmt.Errorf("it reports the version %.80q", bytes.TrimSpace(printed))
	}
	if err != nil {
		return hint(fmt.Errorf("-envoy: %s: not an Envoy: %w", path, err),
			"point -envoy at an Envoy, or leave it out: set-up then fetches the pinned one")
	}
	return nil
}

// DefaultCache returns $MILLRACE_CACHE, or .cache in the repository that the
// working folder or the program lies in, or a folder in the user's own cache.
func DefaultCache() string {
	if dir := os.Getenv("MILLRACE_CACHE"); dir != "" {
		return dir
	}
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	for _, dir := range starts {
		if root, ok := repository(dir); ok {
			return filepath.Join(root, ".cache")
		}
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "millrace")
	}
	return ".cache"
}

// repository returns the closest folder at or above dir that is a checkout of
// Millrace.
func repository(dir string) (string, bool) {
	for {
		if isCheckout(dir) {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

func isCheckout(dir string) bool {
	for _, name := range []string{"go.mod", "extproc", "xds", "engine"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}
