// Package rig holds what every test of the built programs needs: where programs and
// fetched parts are, processes that end with their test, a whole mesh, Envoy and
// llama-server, waiting, HTTP and OpenAI calls, steady load, metrics and logs.
//
// Called by the packages of e2e and by its benchmark. Its one rule: it reads what
// anybody can read (state.json, logs, admin ports, /proc) and never reaches into a
// program. What takes a testing.TB fails the test; what returns an error is for
// conditions of Wait and for the benchmark.
package rig

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// Deadlines of a whole mesh. They bound a broken one: a healthy one needs a tenth
// of them.
const (
	StartLimit = 2 * time.Minute
	StopLimit  = 20 * time.Second
	BackLimit  = time.Minute // until a part that was hurt serves again
)

// Model is the id of the default model, and Weights its file in set-up's folder.
const (
	Model   = "smollm2"
	Weights = "models/SmolLM2-*.gguf"
)

// Root is the repository: the nearest folder above the working folder with a go.mod.
var Root = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "."
})

// Program returns the path of a built program, in bin/ or where MILLRACE_BIN says.
func Program(name string) (string, error) {
	path := filepath.Join(cmp.Or(os.Getenv("MILLRACE_BIN"), filepath.Join(Root(), "bin")), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; run `make build` first", err)
	}
	return path, nil
}

// Cache is set-up's folder, filled by `make setup`.
func Cache() string {
	return cmp.Or(os.Getenv("MILLRACE_CACHE"), filepath.Join(Root(), ".cache"))
}

// Cached returns the one path in set-up's folder that matches the pattern.
func Cached(pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join(Cache(), pattern))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%s in %s: found %v, %v; run `make setup` first", pattern, Cache(), found, err)
	}
	return filepath.Abs(found[0])
}

// MustCached is Cached for tests.
func MustCached(t testing.TB, pattern string) string {
	t.Helper()
	path, err := Cached(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Address is host and port of a loopback port.
func Address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Addresses returns n loopback addresses on which nobody listens now.
func Addresses(n int) ([]string, error) {
	ports, err := proc.FreePorts(n)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, p := range ports {
		all = append(all, Address(p))
	}
	return all, nil
}

// MustAddresses is Addresses for tests.
func MustAddresses(t testing.TB, n int) []string {
	t.Helper()
	all, err := Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// MustPorts returns n loopback ports on which nobody listens now.
func MustPorts(t testing.TB, n int) []int {
	t.Helper()
	ports, err := proc.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

// Write writes a file, and the folder that it is in, as an editor saves it: in its
// place, not at once.
func Write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Replace writes a file beside its place and renames it: readers see all of the old
// text or all of the new one.
func Replace(t testing.TB, path, text string) {
	t.Helper()
	Write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Read returns the text of a file.
func Read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
