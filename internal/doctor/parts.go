package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"millrace.dev/millrace/internal/setup"
)

// parts is what set-up installs, and needs to do so.
type parts struct {
	options setup.Options
	paths   setup.Paths
	need    setup.Need
}

// complete is whether nothing is to be fetched.
func (p parts) complete() bool { return len(p.need.Parts) == 0 }

// tools are the programs that set-up needs. Without them a complete cache still
// works, but for Python, in which llama.cpp runs.
func (p parts) tools(ctx context.Context) []finding {
	missing := fail
	if p.complete() {
		missing = warn
	}
	py, err := setup.FindPython(ctx)
	if err == nil {
		err = setup.CheckPlatform(py)
	}
	if err != nil {
		v := fail
		if p.options.LlamaServer != "" {
			v = missing // native programs need no Python
		}
		return []finding{broken(v, "python", err), p.compiler(ctx, missing)}
	}
	python := finding{verdict: ok, what: "python", found: fmt.Sprintf("%s, %s", py.Version, py.Path)}
	pip, err := setup.FindPip(ctx, py)
	if err != nil {
		return []finding{python, broken(missing, "pip", err), p.compiler(ctx, missing)}
	}
	return []finding{python, {verdict: ok, what: "pip", found: pip}, p.compiler(ctx, missing)}
}

func (p parts) compiler(ctx context.Context, missing verdict) finding {
	cxx, err := setup.FindCompiler(ctx)
	if err != nil {
		return broken(missing, "C++ compiler", err)
	}
	return finding{verdict: ok, what: "C++ compiler", found: cxx.Version}
}

// cache says what is there. err is what setup.Inspect found.
func (p parts) cache(err error) finding {
	f := finding{verdict: ok, what: "cache", found: p.options.Cache + ": complete"}
	if err != nil {
		return broken(fail, f.what, err)
	}
	if p.complete() {
		return f
	}
	if err := setup.CheckCache(p.options.Cache); err != nil {
		return broken(fail, f.what, err)
	}
	f.verdict = warn
	f.found = fmt.Sprintf("%s: lacks %s", p.options.Cache, strings.Join(p.need.Parts, ", "))
	f.next = "millrace setup fetches it, as the first start would"
	return f
}

func (p parts) disk() finding {
	const what = "disk"
	free, err := setup.FreeBytes(p.options.Cache)
	if err == nil {
		err = setup.CheckDisk(p.options.Cache, p.need.Disk)
	}
	if err != nil {
		return broken(fail, what, err)
	}
	return finding{verdict: ok, what: what, found: fmt.Sprintf("%d MiB free for the cache, %d MiB needed", free>>20, p.need.Disk>>20)}
}

func (p parts) envoy(ctx context.Context) finding {
	f := p.runs(ctx, "Envoy", p.paths.Envoy, "--version")
	if f.verdict != ok {
		return f
	}
	_, version, found := strings.Cut(f.found, setup.VersionMark)
	if !found {
		return finding{
			verdict: fail, what: f.what, found: fmt.Sprintf("%s reports the version %.80q: not an Envoy", p.paths.Envoy, f.found),
			next: "point -envoy at an Envoy, or leave it out: set-up then fetches the pinned one",
		}
	}
	f.found = version // without the program's path before it
	return f
}

const importRuntime = `
import ctypes, os, sys
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import xllamacpp
ctypes.CDLL(os.path.join(sys.argv[1], "libggml-rpc.so"))
print("xllamacpp", xllamacpp.__version__, "with RPC")
`

// llama looks whether llama.cpp can be loaded, with its RPC plugin.
func (p parts) llama(ctx context.Context) finding {
	const what = "llama.cpp"
	if p.paths.Runtime == "" {
		return p.runs(ctx, what, p.options.LlamaServer, "--version")
	}
	if _, err := os.Stat(filepath.Join(p.paths.Runtime, "libggml-rpc.so")); err != nil {
		return notYet(what)
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return finding{verdict: fail, what: what, found: "needs python3"}
	}
	return p.runs(ctx, what, python, "-c", importRuntime, p.paths.Runtime)
}

func (p parts) model() finding {
	const what = "model"
	if p.paths.Model == "" {
		return finding{verdict: ok, what: what, found: "the default one isn't needed"}
	}
	st, err := os.Stat(p.paths.Model)
	if err != nil {
		return notYet(what)
	}
	return finding{verdict: ok, what: what, found: fmt.Sprintf("%s, %d MiB", filepath.Base(p.paths.Model), st.Size()>>20)}
}

func notYet(what string) finding {
	return finding{verdict: warn, what: what, found: "not fetched yet", next: "millrace setup"}
}

// runs starts a program that prints its version and ends.
func (p parts) runs(ctx context.Context, what, program string, args ...string) finding {
	if _, err := os.Stat(program); err != nil {
		return notYet(what)
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &output, &output, time.Second
	err := cmd.Run()
	first, last := firstAndLast(output.String())
	if err != nil {
		return finding{
			verdict: fail, what: what, found: fmt.Sprintf("%s: %v: %s", program, err, last),
			next: "remove the folder " + p.options.Cache + " and run millrace setup; if that doesn't help, bring your own",
		}
	}
	return finding{verdict: ok, what: what, found: first}
}

// firstAndLast returns the first and the last line that say something.
func firstAndLast(s string) (first, last string) {
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if first == "" {
			first = line
		}
		last = line
	}
	return first, last
}
