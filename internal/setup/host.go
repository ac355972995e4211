package setup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Python is the user's own Python.
type Python struct {
	// Path is the interpreter itself, not a launcher that happens to be on PATH:
	// some of those start pip as a child, which then can't be ended by its id.
	Path string `json:"path"`
	// Version is Python's, such as "3.11.7".
	Version string `json:"version"`
	// Libc is the C library that it is linked to: "glibc" or something else.
	Libc string `json:"libc"`
}

// Compiler is a C++ compiler.
type Compiler struct {
	// Path is the program.
	Path string
	// Version is the first line of what it says of itself.
	Version string
}

const (
	pythonProbe = `import json, platform, sys; print(json.dumps({"path": sys.executable, "version": platform.python_version(), "libc": platform.libc_ver()[0]}))`
	pipProbe    = `import pip; print(pip.__version__)`
)

// FindPython returns the python3 on PATH, or why it can't be used to run
// llama.cpp.
func FindPython(ctx context.Context) (Python, error) {
	path, err := exec.LookPath("python3")
	if err != nil {
		return Python{}, hint(errors.New("python3 is not on PATH"),
			"install Python 3.10 or newer (Debian: apt-get install python3 python3-pip)")
	}
	p := Python{Path: path}
	printed, err := output(ctx, exec.Command(path, "-c", pythonProbe))
	if err == nil {
		err = json.Unmarshal([]byte(printed), &p)
	}
	if err != nil {
		return p, hint(fmt.Errorf("%s doesn't run: %s: %w", path, lastLine(printed), err), "repair it, or put another python3 first on PATH")
	}
	if !atLeast(p.Version, 3, 10) {
		return p, hint(fmt.Errorf("%s is Python %s; must be 3.10 or newer", path, p.Version), "put a newer python3 first on PATH")
	}
	return p, nil
}

// FindPip returns the version of py's pip, which set-up downloads with.
func FindPip(ctx context.Context, py Python) (string, error) {
	printed, err := output(ctx, exec.Command(py.Path, "-c", pipProbe))
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", hint(fmt.Errorf("%s has no pip", py.Path), "install pip (Debian: apt-get install python3-pip)")
	}
	return strings.TrimSpace(printed), nil
}

// atLeast compares a version "major.minor.…" with a required one.
func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a > major || a == major && b >= minor)
}

// FindCompiler returns $CXX, g++, c++ or clang++, whichever is there first.
func FindCompiler(ctx context.Context) (Compiler, error) {
	for _, name := range []string{os.Getenv("CXX"), "g++", "c++", "clang++"} {
		if name == "" {
			continue
		}
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		printed, err := output(ctx, exec.Command(path, "--version"))
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(printed, "\n")
		return Compiler{Path: path, Version: first}, nil
	}
	return Compiler{}, hint(errors.New("no C++ compiler on PATH; llama.cpp's RPC plugin is compiled once"),
		"install g++ (Debian: apt-get install g++)")
}

// CheckPlatform says why the pinned archives can't run here.
func CheckPlatform(py Python) error {
	if runtime.GOOS == "linux" && runtime.GOARCH == "amd64" && (py.Libc == "glibc" || py.Libc == "") {
		return nil
	}
	return hint(fmt.Errorf("set-up has files for x86-64 Linux with glibc only, this is %s/%s %s", runtime.GOOS, runtime.GOARCH, py.Libc),
		"bring your own parts: -envoy, -llama-server, -rpc-server and -model")
}

// CheckCache says why nothing can be written into the cache folder, which need
// not exist yet.
func CheckCache(cache string) error {
	dir := cache
	for {
		st, err := os.Stat(dir)
		if err == nil && !st.IsDir() {
			err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return explain(err, cache)
		}
		dir = filepath.Dir(dir)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return explain(err, cache)
	}
	return explain(errors.Join(probe.Close(), os.Remove(probe.Name())), cache)
}

// FreeBytes returns how much a user may still write to the file system that
// holds dir, or the closest folder above it that exists.
func FreeBytes(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, unix.ENOENT) || parent == dir {
			return 0, fmt.Errorf("statfs %s: %w", dir, err)
		}
		dir = parent
	}
}

// preflight finds the tools that installing needs, before anything is fetched.
func preflight(ctx context.Context, cache string, missing []part) (Python, Compiler, error) {
	py, err := FindPython(ctx)
	if err != nil {
		return py, Compiler{}, err
	}
	if err := CheckPlatform(py); err != nil {
		return py, Compiler{}, err
	}
	if _, err := FindPip(ctx, py); err != nil {
		return py, Compiler{}, err
	}
	if err := CheckCache(cache); err != nil {
		return py, Compiler{}, err
	}
	need := needed(missing)
	if err := CheckDisk(cache, need.Disk); err != nil || !need.Compiler {
		return py, Compiler{}, err
	}
	cxx, err := FindCompiler(ctx)
	return py, cxx, err
}

// CheckDisk says why need bytes don't fit into dir.
func CheckDisk(dir string, need int64) error {
	free, err := FreeBytes(dir)
	if err != nil || free >= need {
		return err
	}
	return hint(fmt.Errorf("%s: %d MB free, set-up needs %d MB", dir, free>>20, need>>20),
		"free some space, or set -cache (MILLRACE_CACHE) to a folder on another disk")
}
