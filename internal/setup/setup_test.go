package setup

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/obs"
)

func TestFirstStartInstallsEverything(t *testing.T) {
	w := newWorld(t)
	if err := w.ensure(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"gate-1/gate":               "#!gate",
		"llama-1/llama/__init__.py": "import",
		"llama-1/llama/llama.so":    "ELF",
		"llama-1/libggml-rpc.so":    "int rpc;",
	} {
		if got := w.read(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"gate-1/other", "llama-1/src", tmpFolder, downloadFolder + "/*"} {
		if left, _ := filepath.Glob(filepath.Join(w.cache, name)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestSecondStartNeedsNoNetwork(t *testing.T) {
	w := newWorld(t)
	if err := w.ensure(); err != nil {
		t.Fatal(err)
	}
	w.remove("bin/g++")
	w.remove("index")
	if err := w.ensure(); err != nil {
		t.Errorf("ensure without network and compiler: %v", err)
	}
	w.remove("bin/python3")
	if err := w.ensure(); err == nil {
		t.Error("ensure without the python3 that runs llama.cpp: no error")
	}
	if got := w.downloads(); got != 3 {
		t.Errorf("%d downloads, want 3", got)
	}
}

func TestStartsAtOnceShareTheWork(t *testing.T) {
	w := newWorld(t)
	var g errgroup.Group
	for range 4 {
		g.Go(w.ensure)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := w.downloads(); got != 3 {
		t.Errorf("%d downloads, want 3", got)
	}
}

func TestInterruptedSetUpKeepsDownloads(t *testing.T) {
	w := newWorld(t)
	w.parts = w.parts[1:]
	w.compiler(`echo "x.cpp:1:2: error: no such header"; exit 1`)
	err := w.ensure()
	if err == nil || !strings.Contains(err.Error(), "x.cpp:1:2: error: no such header") {
		t.Fatalf("ensure() = %v, want the compiler's error", err)
	}
	w.compiler("")
	if err := w.ensure(); err != nil {
		t.Fatal(err)
	}
	if got := w.downloads(); got != 2 {
		t.Errorf("%d downloads, want 2: those before the interruption", got)
	}
}

func TestCancelEndsPip(t *testing.T) {
	w := newWorld(t)
	w.parts = w.parts[:1]
	if err := syscall.Mkfifo(filepath.Join(w.dir, "began"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.python(map[string]string{"BEHAVE": "echo >@DIR@/began; exec sleep 1000"})
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return ensure(ctx, w.cache, w.parts, io.Discard) })
	if _, err := os.ReadFile(filepath.Join(w.dir, "began")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("ensure() = %v, want it cancelled", err)
	}
}

func TestChangesInTheCache(t *testing.T) {
	tests := []struct {
		name      string
		change    func(file string) error
		want      error
		downloads int // after the change
	}{
		{
			name:   "a touched file is hashed and accepted",
			change: func(file string) error { return os.Chtimes(file, time.Time{}, time.Unix(1, 0)) },
		},
		{
			name:      "a removed file is fetched again",
			change:    os.Remove,
			downloads: 1,
		},
		{
			name:   "an altered file is refused",
			change: func(file string) error { return os.WriteFile(file, []byte("#!EVIL"), 0o755) },
			want:   errMismatch,
		},
		{
			name: "a stamp of another version is fetched again",
			change: func(file string) error {
				return os.WriteFile(filepath.Join(filepath.Dir(file), "..", stampFolder, "Gate-1.json"), []byte(`{"pin":"old"}`), 0o644)
			},
			downloads: 1,
		},
		{
			name: "a broken stamp is fetched again",
			change: func(file string) error {
				return os.WriteFile(filepath.Join(filepath.Dir(file), "..", stampFolder, "Gate-1.json"), []byte(`{`), 0o644)
			},
			downloads: 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.parts = w.parts[:1]
			if err := w.ensure(); err != nil {
				t.Fatal(err)
			}
			if err := tt.change(filepath.Join(w.cache, "gate-1/gate")); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := w.ensure(); !errors.Is(err, tt.want) {
					t.Fatalf("ensure() = %v, want %v", err, tt.want)
				}
			}
			if got := w.downloads() - 1; got != tt.downloads {
				t.Errorf("%d downloads after the change, want %d", got, tt.downloads)
			}
		})
	}
}

func TestOtherFilesInTheFolderStay(t *testing.T) {
	w := newWorld(t)
	w.write("cache/gate-1/mine", "the user's own")
	if err := w.ensure(); err != nil {
		t.Fatal(err)
	}
	if got := w.read("gate-1/mine"); got != "the user's own" {
		t.Errorf("mine = %q", got)
	}
}

func TestFaults(t *testing.T) {
	pip := func(line string) func(*world) {
		return func(w *world) {
			w.python(map[string]string{"BEHAVE": `echo "` + line + `" >&2; exit 1`})
		}
	}
	tests := []struct {
		name   string
		plugin bool // whether a plugin is to be compiled
		change func(*world)
		want   string // in the error
		hint   string // in the hint
	}{
		{
			name:   "no python3",
			change: func(w *world) { w.remove("bin/python3") },
			want:   "python3 is not on PATH",
			hint:   "apt-get install python3",
		},
		{
			name:   "python3 too old",
			change: func(w *world) { w.python(map[string]string{"VERSION": "3.9.2"}) },
			want:   "is Python 3.9.2; must be 3.10 or newer",
			hint:   "newer python3",
		},
		{
			name:   "python3 that doesn't run",
			change: func(w *world) { w.write("bin/python3", "#!/bin/sh\necho broken >&2; exit 3\n") },
			want:   "doesn't run: broken: exit status 3",
			hint:   "repair it",
		},
		{
			name:   "no pip",
			change: func(w *world) { w.python(map[string]string{"PIP": ""}) },
			want:   "has no pip",
			hint:   "apt-get install python3-pip",
		},
		{
			name:   "another C library",
			change: func(w *world) { w.python(map[string]string{"LIBC": "musl"}) },
			want:   "x86-64 Linux with glibc only",
			hint:   "-llama-server",
		},
		{
			name:   "no compiler",
			plugin: true,
			change: func(w *world) { w.remove("bin/g++") },
			want:   "no C++ compiler",
			hint:   "apt-get install g++",
		},
		{
			name:   "no network",
			change: pip("WARNING: Retrying: Failed to establish a new connection: [Errno -2]"),
			want:   "gate 1: pip can't reach its package index",
			hint:   "connect this machine",
		},
		{
			name:   "not in the index",
			change: pip("ERROR: No matching distribution found for gate==1"),
			want:   "gate 1: pip's package index doesn't have it",
			hint:   "pip config list",
		},
		{
			name:   "disk filled up by pip",
			change: pip("OSError: [Errno 28] No space left on device"),
			want:   "no space left on device",
			hint:   "free some space",
		},
		{
			name:   "something else of pip",
			change: pip("ERROR: the moon is full"),
			want:   "gate 1: pip: the moon is full: exit status 1",
			hint:   "python3 -m pip download --no-deps gate",
		},
		{
			name:   "another archive than pinned",
			change: func(w *world) { w.write("index/gate", "something else") },
			want:   "sha256 is " + sum("something else") + ", must be ",
			hint:   "is not used; check whether a proxy",
		},
		{
			name:   "another file inside than pinned",
			change: func(w *world) { w.parts[0].Sums["gate"] = sum("x") },
			want:   "gate: hash mismatch: sha256 is " + sum("#!gate") + ", must be " + sum("x"),
			hint:   "is not used; check whether a proxy",
		},
		{
			name:   "archive without the file",
			change: func(w *world) { w.parts[0].Archives[0].Take = []rule{{"gate/gone", "gone"}} },
			want:   "has no gate/gone",
		},
		{
			name:   "cache is a file",
			change: func(w *world) { w.write("cache", "") },
			want:   "not a directory",
			hint:   "make the folder writable",
		},
		{
			name:   "disk too small",
			change: func(w *world) { w.parts[0].Disk = 1 << 60 },
			want:   "MB free, set-up needs",
			hint:   "free some space",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if !tt.plugin {
				w.parts = w.parts[:1]
			}
			tt.change(w)
			err := w.ensure()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("ensure() = %v, want …%s…", err, tt.want)
			}
			var h *obs.Hint
			if tt.hint != "" && (!errors.As(err, &h) || !strings.Contains(h.Next, tt.hint)) {
				t.Errorf("hint of %v lacks %q", h, tt.hint)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error is more than a line: %q", err)
			}
		})
	}
}

func TestEnsureWithTheUsersOwnParts(t *testing.T) {
	dir := t.TempDir()
	own := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	program := own("envoy", "#!/bin/sh\necho $0 version: 1/1.40.0\n", 0o755)
	// No entries, no tensors: the smallest whole file.
	model := own("own.gguf", "GGUF\x03\x00\x00\x00"+strings.Repeat("\x00", 16), 0o644)
	text := own("notes.txt", "hello", 0o644)
	tests := []struct {
		name string
		o    Options
		want string // of the error
	}{
		{name: "all given", o: Options{Envoy: program, LlamaServer: program, RPCServer: program, Model: model}},
		{name: "no model needed", o: Options{Envoy: program, LlamaServer: program, RPCServer: program, NoModel: true}},
		{
			name: "llama-server alone",
			o:    Options{LlamaServer: program},
			want: "set-up: only one of llama-server and ggml-rpc-server is given",
		},
		{
			name: "model that isn't there",
			o:    Options{Model: filepath.Join(dir, "gone.gguf")},
			want: "set-up: -model: stat " + dir + "/gone.gguf: no such file or directory",
		},
		{
			name: "model that is none",
			o:    Options{Model: text},
			want: "set-up: -model: " + text + ": not a GGUF file",
		},
		{
			name: "Envoy that is none",
			o:    Options{Envoy: own("true", "#!/bin/sh\necho hello\n", 0o755)},
			want: "set-up: -envoy: " + dir + `/true: not an Envoy: it reports the version "hello"`,
		},
		{
			name: "Envoy that fails",
			o:    Options{Envoy: own("false", "#!/bin/sh\nexit 1\n", 0o755)},
			want: "set-up: -envoy: " + dir + "/false: not an Envoy: exit status 1",
		},
		{
			name: "model that was cut",
			o:    Options{Model: own("cut.gguf", "GGUF\x03\x00\x00\x00", 0o644)},
			want: "set-up: -model: " + dir + "/cut.gguf: it ends in the middle of its header",
		},
		{
			name: "program that can't be run",
			o:    Options{Envoy: text},
			want: "set-up: -envoy: " + text + ": not an executable file",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Cache = filepath.Join(dir, "cache")
			got, err := Ensure(t.Context(), tt.o)
			if tt.want != "" {
				if err == nil || err.Error() != tt.want {
					t.Errorf("Ensure() = %v, want %s", err, tt.want)
				}
				return
			}
			if want := (Paths{Envoy: tt.o.Envoy, Model: tt.o.Model}); err != nil || got != want {
				t.Errorf("Ensure() = %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func TestDefaultCache(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"go.mod", "extproc", "xds", "engine/deep"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("MILLRACE_CACHE", "")
	t.Chdir(filepath.Join(root, "engine/deep"))
	if got, want := DefaultCache(), filepath.Join(root, ".cache"); got != want {
		t.Errorf("DefaultCache() = %s in a checkout, want %s", got, want)
	}
	t.Setenv("MILLRACE_CACHE", "elsewhere")
	if got := DefaultCache(); got != "elsewhere" {
		t.Errorf("DefaultCache() = %s, want what the environment says", got)
	}
}

// TestPinsAreWhole holds that each pinned part can be distinguished from the others and
// names what to keep.
func TestPinsAreWhole(t *testing.T) {
	parts := Options{}.parts()
	if len(parts) != 3 {
		t.Fatalf("%d parts, want 3", len(parts))
	}
	seen := map[string]string{} // name by pin
	for _, p := range parts {
		if other, ok := seen[p.pin()]; ok {
			t.Errorf("%s and %s have the same pin", p.Name, other)
		}
		seen[p.pin()] = p.Name
		for _, a := range p.Archives {
			if len(a.SHA256) != 64 || a.Size == 0 || len(a.Take) == 0 {
				t.Errorf("%s: %s isn't pinned", p.Name, a.title())
			}
		}
	}
}
