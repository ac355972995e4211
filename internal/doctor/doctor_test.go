package doctor

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/setup"
	"millrace.dev/millrace/internal/state"
)

// healthy returns options for a mesh of the user's own parts, all of which work,
// on a machine with a python3 and a g++.
func healthy(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	script := func(name, says string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+says+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	script("python3", `case "$2" in *import\ pip*) echo 23.0 ;; *) echo '{"path": "'$0'", "version": "3.11.2", "libc": "glibc"}' ;; esac`)
	script("g++", "echo g++ 12")
	t.Setenv("PATH", dir)
	t.Setenv("CXX", "")
	server := script("llama-server", "echo; echo version: 1234 >&2")
	return Options{
		Setup: setup.Options{
			Cache:       filepath.Join(dir, "cache"),
			Envoy:       script("envoy", "echo envoy  version: abc/1.40.0/Clean"),
			LlamaServer: server,
			RPCServer:   server,
			NoModel:     true,
		},
		Dir:    dir,
		Listen: "127.0.0.1:0",
	}
}

func TestRunOnAHealthyMachine(t *testing.T) {
	var out bytes.Buffer
	if err := Run(t.Context(), healthy(t), &out); err != nil {
		t.Errorf("Run() = %v", err)
	}
	for _, want := range []string{"python        3.11.2", "pip           23.0", "C++ compiler  g++ 12", "Envoy         abc/1.40.0/Clean", "llama.cpp     version: 1234"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line %q", want)
		}
	}
	if strings.Contains(out.String(), "FAIL") {
		t.Error("a line says FAIL")
	}
	t.Log("\n" + out.String())
}

func TestRunFindsWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	remove := func(t *testing.T, o *Options, name string) {
		t.Helper()
		if err := os.Remove(filepath.Join(o.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		change func(*testing.T, *Options)
		want   []string // in one line of the table
		fails  bool
	}{
		{
			name:   "no python3, but nothing that runs in it",
			change: func(t *testing.T, o *Options) { remove(t, o, "python3") },
			want:   []string{"warn", "python", "not on PATH", "→ install Python 3.10"},
		},
		{
			name: "no python3",
			change: func(t *testing.T, o *Options) {
				remove(t, o, "python3")
				o.Setup.LlamaServer, o.Setup.RPCServer = "", ""
			},
			want:  []string{"FAIL", "python", "not on PATH", "→ install Python 3.10"},
			fails: true,
		},
		{
			name:   "no compiler, but nothing to compile",
			change: func(t *testing.T, o *Options) { remove(t, o, "g++") },
			want:   []string{"warn", "C++ compiler", "→ install g++"},
		},
		{
			name: "no compiler, and a plugin to compile",
			change: func(t *testing.T, o *Options) {
				remove(t, o, "g++")
				o.Setup.LlamaServer, o.Setup.RPCServer = "", ""
			},
			want:  []string{"FAIL", "C++ compiler", "→ install g++"},
			fails: true,
		},
		{
			name:   "an empty cache",
			change: func(_ *testing.T, o *Options) { o.Setup.NoModel = false },
			want:   []string{"warn", "cache", "lacks SmolLM2-135M", "→ millrace setup"},
		},
		{
			name: "a cache that can't be written",
			change: func(_ *testing.T, o *Options) {
				o.Setup.NoModel = false
				o.Setup.Cache = filepath.Join(o.Dir, "envoy", "cache")
			},
			want:  []string{"FAIL", "cache", "not a directory", "MILLRACE_CACHE"},
			fails: true,
		},
		{
			name: "an Envoy that doesn't run",
			change: func(t *testing.T, o *Options) {
				if err := os.WriteFile(o.Setup.Envoy, []byte("#!/bin/sh\necho no such symbol >&2\nexit 127\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want:  []string{"FAIL", "Envoy", "exit status 127: no such symbol"},
			fails: true,
		},
		{
			name: "an Envoy that is none",
			change: func(t *testing.T, o *Options) {
				if err := os.WriteFile(o.Setup.Envoy, []byte("#!/bin/sh\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want:  []string{"FAIL", "Envoy", `reports the version "": not an Envoy`, "→ point -envoy"},
			fails: true,
		},
		{
			name:   "an address in use",
			change: func(_ *testing.T, o *Options) { o.Listen = taken.Addr().String() },
			want:   []string{"FAIL", "address", "in use", "→ choose another one with -listen"},
			fails:  true,
		},
		{
			name:   "a model that isn't there",
			change: func(_ *testing.T, o *Options) { o.Setup.Model = filepath.Join(o.Dir, "gone.gguf") },
			want:   []string{"FAIL", "gone.gguf", "→ point -model at an existing file"},
			fails:  true,
		},
		{
			name: "a state that can't be read",
			change: func(t *testing.T, o *Options) {
				if err := os.WriteFile(filepath.Join(o.Dir, "state.json"), []byte("{"), 0o644); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"warn", "mesh", "state.json", "→ millrace up writes it anew"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := healthy(t)
			tt.change(t, &o)
			var out bytes.Buffer
			if err := Run(t.Context(), o, &out); errors.Is(err, ErrFailed) != tt.fails {
				t.Errorf("Run() = %v, want it to fail: %v", err, tt.fails)
			}
			if !hasLine(out.String(), tt.want) {
				t.Errorf("no line with %q in\n%s", tt.want, out.String())
			}
		})
	}
}

// hasLine is whether a line of text holds all parts.
func hasLine(text string, parts []string) bool {
	for line := range strings.Lines(text) {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(line, part)
		}
		if all {
			return true
		}
	}
	return false
}

func TestRunLeavesNoTrace(t *testing.T) {
	o := healthy(t)
	o.Setup.NoModel = false
	if err := Run(t.Context(), o, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(o.Setup.Cache); err == nil {
		t.Error("the cache folder was made")
	}
}

func TestHealth(t *testing.T) {
	tests := []struct {
		name    string
		state   state.State
		verdict verdict
		want    string
	}{
		{
			name:    "ready",
			state:   state.State{Listen: "127.0.0.1:1", Ready: true, Processes: []state.Process{{Name: "envoy", Status: state.Running}}},
			verdict: ok,
			want:    "runs at 127.0.0.1:1, 1 processes",
		},
		{
			name:    "not ready yet",
			state:   state.State{Processes: []state.Process{{Name: "envoy", Status: state.Running}}},
			verdict: warn,
			want:    "not ready",
		},
		{
			name:    "a part is down",
			state:   state.State{Ready: true, Processes: []state.Process{{Name: "xds", Status: state.Down, Reason: "exit status 1"}}},
			verdict: warn,
			want:    "xds down (exit status 1)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := health(tt.state)
			if got.verdict != tt.verdict || !strings.Contains(got.found, tt.want) {
				t.Errorf("health() = %+v, want %s …%s…", got, tt.verdict, tt.want)
			}
		})
	}
}

func TestAvailableMemory(t *testing.T) {
	got, err := availableMemory(strings.NewReader("MemTotal:       24609804 kB\nMemAvailable:   1024 kB\n"))
	if err != nil || got != 1<<20 {
		t.Errorf("availableMemory() = %d, %v, want %d", got, err, 1<<20)
	}
	if _, err := availableMemory(strings.NewReader("")); err == nil {
		t.Error("availableMemory() of nothing: no error")
	}
}
