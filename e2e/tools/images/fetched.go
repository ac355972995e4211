package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// part is what set-up fetched, as `millrace setup -json` prints it.
type part struct {
	Name     string
	Folder   string
	Archives []struct {
		Project, Version, SHA256 string
		Source                   bool
	}
	Files []struct{ Name, SHA256 string }
}

// fetched has set-up fetch what is missing, and returns all.
func (c checkout) fetched(ctx context.Context, cache string) ([]part, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.out, "millrace"), "setup", "-json", "-cache", cache)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("millrace setup: %w", err)
	}
	var parts []part
	if err := json.Unmarshal(b, &parts); err != nil {
		return nil, fmt.Errorf("millrace setup -json: %w", err)
	}
	return parts, nil
}

// place says where a file of set-up lies in the images, and in which layer.
func place(name string) (layer, to string) {
	switch {
	case name == "envoy":
		return "envoy", binaries + "envoy"
	case strings.HasSuffix(name, ".gguf"):
		return "models", modelPlace
	case strings.HasPrefix(name, "LICENSE."):
		return "", licences + strings.TrimPrefix(path.Ext(name), ".") + "/LICENSE"
	}
	return "llamacpp", runtimePlace + name
}

// layers returns the part's layer and the layer's name. A file that isn't what set-up
// wrote is an error.
func (p part) layers() (string, layer, error) {
	l := layer{files: tree{}}
	name := ""
	for _, f := range p.Files {
		from := filepath.Join(p.Folder, f.Name)
		sum, err := (file{Path: from}).sum()
		if err != nil {
			return "", layer{}, err
		}
		if got := hex.EncodeToString(sum); got != f.SHA256 {
			return "", layer{}, fmt.Errorf("%s: sha256 is %s, must be %s; remove it and run millrace setup", from, got, f.SHA256)
		}
		st, err := os.Stat(from)
		if err != nil {
			return "", layer{}, err
		}
		of, to := place(f.Name)
		if of != "" {
			name = of
		}
		l.files[to] = file{Mode: 0o644 | st.Mode()&0o111, Path: from, hash: sum}
	}
	for _, a := range p.Archives {
		l.components = append(l.components, component{Kind: "pypi", Name: a.Project, Version: a.Version, SHA256: a.SHA256})
	}
	product, version, _ := strings.Cut(p.Name, " ")
	l.components = append(l.components, component{Kind: "generic", Name: strings.ToLower(product), Version: version})
	return name, l, nil
}
