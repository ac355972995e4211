package cluster

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/e2e/rig"
)

// kit is what one module of tests makes: programs, images of them, and files of the
// modules that it requires. It is made once, into a folder of the cache that is named
// by a hash of the module and of the Go that compiles it.
type kit struct {
	name   string
	module string // folder in the repository
	target string // of the Makefile, which builds it
	make   func(ctx context.Context, b *bench) error
}

var (
	programsKit = kit{"programs", "e2e/kube", "kube-programs", makePrograms}
	suitesKit   = kit{"suites", "e2e/kube/suites", "test-conformance", makeSuites}
)

// Programs returns the folder with the programs of a cluster, or an error when Build
// has not made them.
func Programs() (string, error) { return programsKit.find() }

// Suites returns the folder with the conformance suites and what they need, or an
// error when Build has not made them.
func Suites() (string, error) { return suitesKit.find() }

// Build makes what Programs returns where it is not there yet. That takes 1,000 s of
// CPU, 5 GB of memory and, until it is done, 10 GB of disk.
func Build(ctx context.Context, log *slog.Logger) error { return programsKit.build(ctx, log) }

// BuildSuites makes what Suites returns where it is not there yet: 200 s of CPU.
func BuildSuites(ctx context.Context, log *slog.Logger) error { return suitesKit.build(ctx, log) }

// program returns the path of a program of the cluster.
func (c *Cluster) program(name string) string { return filepath.Join(c.programs, name) }

// cacheDir is where kits are kept.
func cacheDir() (string, error) {
	if dir := os.Getenv("MILLRACE_KUBE_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w; or set MILLRACE_KUBE_CACHE to a folder", err)
	}
	return filepath.Join(dir, "millrace", "kube"), nil
}

// folder returns where the kit is, or is to be.
func (k kit) folder() (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(rig.Root(), k.module)
	sum := sha256.New()
	_, _ = fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH, k.name)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != dir {
				return fs.SkipDir // a module of its own
			}
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(sum, strings.TrimPrefix(path, dir), len(b))
		_, _ = sum.Write(b)
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, k.name+"-"+hex.EncodeToString(sum.Sum(nil))[:16]), nil
}

func (k kit) find() (string, error) {
	dir, err := k.folder()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%w; run `make %s` first, which builds it once", err, k.target)
	}
	return dir, nil
}

func (k kit) build(ctx context.Context, log *slog.Logger) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s of %s: %w", k.name, k.module, err)
		}
	}()
	dir, err := k.folder()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(dir), k.name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // which unlocks it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	log.Info("build, once", "what", k.name, "into", dir)
	began := time.Now()
	b := &bench{dir: dir + ".new", module: filepath.Join(rig.Root(), k.module)}
	// Built in a cache of its own, 7 GB that nobody needs afterwards. One that was named
	// is somebody's, and stays.
	defer func() { _, _ = os.RemoveAll(b.dir), os.RemoveAll(b.ownCache()) }()
	if err := errors.Join(os.RemoveAll(b.dir), os.MkdirAll(filepath.Join(b.dir, "images"), 0o755)); err != nil {
		return err
	}
	if err := k.make(ctx, b); err != nil {
		return err
	}
	log.Info("built", "what", k.name, "after", time.Since(began).Round(time.Second).String())
	return os.Rename(b.dir, dir)
}

// bench is where a kit is made.
type bench struct {
	dir    string // what is made
	module string
}

func (b *bench) ownCache() string { return b.dir + ".gocache" }

func (b *bench) goCache() string { return cmp.Or(os.Getenv("MILLRACE_KUBE_GOCACHE"), b.ownCache()) }

// goTool runs the go command in the module and returns what it prints.
func (b *bench) goTool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -trimpath", "GOCACHE="+b.goCache())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// goBuild builds a program as out.
func (b *bench) goBuild(ctx context.Context, out, pkg, ldflags string) error {
	_, err := b.goTool(ctx, "build", "-ldflags", "-s -w "+ldflags, "-o", filepath.Join(b.dir, out), pkg)
	return err
}

// moduleDir returns the folder of a module that the kit's module requires.
func (b *bench) moduleDir(ctx context.Context, module string) (string, error) {
	return b.goTool(ctx, "list", "-m", "-f", "{{.Dir}}", module)
}

// version is of Kubernetes: what its API server and clients call themselves.
const version = "v1.37.2"

func makePrograms(ctx context.Context, b *bench) error {
	var ldflags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for key, value := range map[string]string{"gitVersion": version, "gitMajor": "1", "gitMinor": "37", "gitTreeState": "clean"} {
			ldflags = append(ldflags, "-X "+pkg+"."+key+"="+value)
		}
	}
	slices.Sort(ldflags) // so that the linker gets the same text each time
	if err := b.goBuild(ctx, "pid1", "./pid1", ""); err != nil {
		return err
	}
	if err := b.goBuild(ctx, "programs", "./programs", strings.Join(ldflags, " ")); err != nil {
		return err
	}
	for _, name := range []string{"kubectl", "helm"} {
		if err := os.Symlink("programs", filepath.Join(b.dir, name)); err != nil {
			return err
		}
	}
	if err := b.copyCRDs(ctx, map[string]string{
		"istio.io/istio":                              "manifests/charts/base/files/crd-all.gen.yaml",
		"sigs.k8s.io/gateway-api":                     "config/crd/standard/*.yaml",
		"sigs.k8s.io/gateway-api-inference-extension": "config/crd/bases/*.yaml",
	}); err != nil {
		return err
	}
	if err := b.archive("pause", []string{"/pid1", "pause"}, map[string]string{"/pid1": "pid1"}, pauseImage); err != nil {
		return err
	}
	return b.archive("programs", []string{"/programs"}, map[string]string{"/programs": "programs"}, programsImage)
}

// copyCRDs copies resource definitions of modules to the folder crds.
func (b *bench) copyCRDs(ctx context.Context, patterns map[string]string) error {
	if err := os.MkdirAll(filepath.Join(b.dir, "crds"), 0o755); err != nil {
		return err
	}
	for module, pattern := range patterns {
		dir, err := b.moduleDir(ctx, module)
		if err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("%s has no %s: %v", module, pattern, err)
		}
		for _, from := range files {
			text, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(b.dir, "crds", filepath.Base(from)), text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func makeSuites(ctx context.Context, b *bench) error {
	const gatewayAPI, inference = "sigs.k8s.io/gateway-api/conformance", "sigs.k8s.io/gateway-api-inference-extension/conformance"
	if _, err := b.goTool(ctx, "test", "-c", "-ldflags", "-s -w", "-o", filepath.Join(b.dir, "suites"), "."); err != nil {
		return err
	}
	named, err := b.images(ctx, gatewayAPI, inference)
	if err != nil {
		return err
	}
	// Gateway API's suite wants some server of DNS to run, and asks it nothing.
	named["echo-basic"] = append(named["echo-basic"], named["coredns"]...)
	for name, pkg := range map[string]string{"echo-basic": gatewayAPI + "/echo-basic", "lwepp": "sigs.k8s.io/gateway-api-inference-extension/cmd/lwepp"} {
		if err := b.goBuild(ctx, name, pkg, ""); err != nil {
			return err
		}
		if err := b.archive(name, []string{"/" + name}, map[string]string{"/" + name: name}, named[name]...); err != nil {
			return err
		}
	}
	return b.copyCRDs(ctx, map[string]string{"sigs.k8s.io/gateway-api-inference-extension": "config/crd/bases/*.yaml"})
}

// imageLine is a line of a manifest that names an image; its groups are the whole
// reference and the last part of its name.
var imageLine = regexp.MustCompile(`^\s*(?:- )?image: (\S*?([\w.-]+):\S+)\s*$`)

// images returns the images that the manifests of modules name, by the last part of
// their name. The suites can't be asked to use others.
func (b *bench) images(ctx context.Context, modules ...string) (map[string][]string, error) {
	all := map[string][]string{}
	for _, module := range modules {
		dir, err := b.moduleDir(ctx, module)
		if err != nil {
			return nil, err
		}
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			lines := bufio.NewScanner(f)
			for lines.Scan() {
				if m := imageLine.FindStringSubmatch(lines.Text()); m != nil && !slices.Contains(all[m[2]], m[1]) {
					all[m[2]] = append(all[m[2]], m[1])
				}
			}
			return lines.Err()
		}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// copyFile copies a file to a writer.
func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(w, f)
	return err
}
