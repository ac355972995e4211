package main

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
)

// component is something that an image has in it, for its bill of materials.
type component struct {
	// Kind is golang, deb, pypi or generic, as in a package URL.
	Kind, Name, Version string
	// SHA256 is the hash of what it was taken from; "" where there is none.
	SHA256 string
}

// layer is a layer's files and what they are.
type layer struct {
	files      tree
	components []component
}

// checkout is this repository.
type checkout struct {
	root  string // absolute
	out   string // where programs are built
	named string // commit, where git does not know it
}

// build compiles all programs: without paths, times and settings of this machine, so
// that the same commit gives the same bytes. Settings end up in a program's build info.
func (c checkout) build(ctx context.Context) error {
	flags := "-s -w -buildid= -X millrace.dev/millrace/internal/program.commit=" + c.commit(ctx)
	for _, cgo := range []bool{false, true} {
		args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", c.out + "/"}
		for _, p := range programs() {
			if p.cgo == cgo {
				args = append(args, p.folder)
			}
		}
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = c.root
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=", "GOEXPERIMENT=",
			"CGO_CFLAGS=-O2 -Wno-deprecated-declarations", "CGO_CPPFLAGS=", "CGO_CXXFLAGS=", "CGO_LDFLAGS=", "CGO_ENABLED="+map[bool]string{false: "0", true: "1"}[cgo])
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

// commit names the commit, as make build does; empty: not known.
func (c checkout) commit(ctx context.Context) string {
	if c.named != "" {
		return c.named
	}
	cmd := exec.CommandContext(ctx, "git", "-C", c.root, "describe", "--always", "--abbrev=12", "--exclude", "*", "--dirty")
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// program returns the layer of a program of ours: itself and the licences of all
// that is in it, by the folders of sources.
func (c checkout) program(name string, sources map[string]string) (layer, error) {
	from := filepath.Join(c.out, name)
	info, err := buildinfo.ReadFile(from)
	if err != nil {
		return layer{}, err
	}
	l := layer{files: tree{}}
	l.files.program(binaries+name, from)
	l.components = modules(info)
	for _, m := range l.components {
		dir, ok := sources[m.Name]
		if !ok {
			return layer{}, fmt.Errorf("%s: module %s is not in the module cache", name, m.Name)
		}
		if err := l.files.licence("go/"+m.Name+"/", dir); err != nil {
			return layer{}, err
		}
	}
	return l, nil
}

// modules are what a program was linked from.
func modules(info *debug.BuildInfo) []component {
	all := []component{{Kind: "golang", Name: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")},
		{Kind: "golang", Name: info.Main.Path, Version: info.Main.Version}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, component{Kind: "golang", Name: m.Path, Version: m.Version})
	}
	return all
}

// sources are the folders of all modules that are there, by path; "stdlib" is Go's own.
func (c checkout) sources(ctx context.Context) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-json=Path,Dir", "all")
	cmd.Dir = c.root
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m all: %w", err)
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	folders := map[string]string{"stdlib": strings.TrimSpace(string(goroot))}
	for dec := json.NewDecoder(strings.NewReader(string(b))); dec.More(); {
		var m struct{ Path, Dir string }
		if err := dec.Decode(&m); err != nil {
			return nil, err
		}
		if m.Dir != "" {
			folders[m.Path] = m.Dir
		}
	}
	return folders, nil
}

// licenceName is what files with licences are called.
var licenceName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([-_.][a-z0-9.-]+)?$`)

// licence adds the licence texts of a folder of sources. A module may have none of its
// own: those below a repository have it at its root.
func (t tree) licence(to, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && licenceName.MatchString(e.Name()) && !strings.HasSuffix(e.Name(), ".go") {
			t[licences+to+e.Name()] = file{Mode: 0o644, Path: filepath.Join(dir, e.Name())}
		}
	}
	return nil
}
