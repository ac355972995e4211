package setup

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"millrace.dev/millrace/internal/regular"
)

// Installed is a part that lies in the cache: what it is made of, and its files.
type Installed struct {
	// Name is the part's, such as "Envoy 1.40.0"; Folder, absolute, holds its files.
	Name   string `json:"name"`
	Folder string `json:"folder"`
	// Archives are what it was unpacked from.
	Archives []Archive `json:"archives"`
	// Files are its own: others in the folder are the user's.
	Files []File `json:"files"`
}

// Archive is a file of PyPI.
type Archive struct {
	// Project and Version name it; Source says whether it is the source distribution.
	Project string `json:"project"`
	Version string `json:"version"`
	Source  bool   `json:"source,omitempty"`
	// SHA256 is the pinned hash.
	SHA256 string `json:"sha256"`
}

// File is a file of an installed part.
type File struct {
	// Name is below the part's folder.
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// Inventory returns what of the options' parts is in the cache, as Ensure left it.
func Inventory(o Options) ([]Installed, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	return inventory(o.Cache, o.parts())
}

func inventory(cache string, parts []part) ([]Installed, error) {
	var all []Installed
	for _, p := range parts {
		b, err := regular.Read(stampPath(cache, p), maxStamp)
		var s stamp
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err == nil && s.Pin != p.pin() {
			err = hint(fmt.Errorf("%s: version or hash differs from the pinned one", stampPath(cache, p)), "run millrace setup, which installs it again")
		}
		if err != nil {
			return nil, fmt.Errorf("inventory: %s: %w", p.Name, err)
		}
		i := Installed{Name: p.Name, Folder: filepath.Join(cache, p.Folder)}
		for _, a := range p.Archives {
			i.Archives = append(i.Archives, Archive{Project: a.Project, Version: a.Version, Source: a.Source, SHA256: a.SHA256})
		}
		for _, f := range s.Files {
			i.Files = append(i.Files, File{Name: f.Name, SHA256: f.SHA256})
		}
		all = append(all, i)
	}
	return all, nil
}

// Model fetches the default model alone and returns its GGUF file, or the user's own.
func Model(ctx context.Context, o Options) (string, error) {
	o, err := o.complete()
	if err == nil && o.Model == "" {
		err = ensure(ctx, o.Cache, []part{modelPart()}, o.Out)
	}
	if err != nil {
		return "", fmt.Errorf("set-up: %w", err)
	}
	return o.paths().Model, nil
}

// ModelPath is where the default model of a cache lies, once it is fetched.
func ModelPath(cache string) string { return filepath.Join(cache, modelFolder, modelFile) }

// ModelSum is the SHA-256 of the default model's file.
func ModelSum() string { return modelPart().Sums[modelFile] }

// ModelSize is how many bytes the archive with the default model has.
func ModelSize() int64 { return modelPart().Archives[0].Size }
