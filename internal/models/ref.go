package models

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/fetch"
	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/internal/obs"
)

// Ref says which model: exactly one of its kinds is set.
type Ref struct {
	// Name is the model's id in the API.
	Name string
	// Text is what it was called, without who asks.
	Text string

	path      string                 // of what the user has
	url       *url.URL               // of a file, or of a folder that ends in "/"
	repo      repository             // of the mirrors
	catalogue *config.CatalogueModel // of the user's catalogue
	builtin   bool                   // whether it is the one that set-up fetches
}

// repository is org/name, at a revision, and which of its files.
type repository struct{ name, revision, tag string }

func (r repository) String() string {
	text := r.name
	if r.revision != defaultRevision {
		text += "@" + r.revision
	}
	if r.tag != "" {
		text += ":" + r.tag
	}
	return text
}

const defaultRevision = "main"

// Own is the path of a model that the user has; "": it is to be fetched.
func (r Ref) Own() string { return r.path }

// Parse finds out what a text names.
func (s *Store) Parse(text string) (Ref, error) {
	name, rest, given := strings.Cut(text, "=")
	if !given || !config.IsModelName(name) {
		name, rest = "", text
	}
	r, err := s.parse(rest)
	if err != nil {
		return Ref{}, err
	}
	if name != "" {
		r.Name = name
	}
	if !config.IsModelName(r.Name) {
		return Ref{}, &obs.Hint{Err: fmt.Errorf("model %s: no id can be made of its name", r.Text), Next: "give it one: -model ID=" + r.Text}
	}
	return r, nil
}

func (s *Store) parse(text string) (Ref, error) {
	switch {
	case strings.HasPrefix(text, "https://"), strings.HasPrefix(text, "http://"):
		return parseURL(text)
	case isPath(text):
		abs, err := filepath.Abs(text)
		return Ref{Name: idOf(filepath.Base(abs)), Text: text, path: abs}, err
	case strings.Contains(text, "/"):
		return parseRepo(text)
	}
	if m := s.find(text); m != nil {
		return Ref{Name: m.Name, Text: m.Name, catalogue: m}, nil
	}
	if text == config.DefaultModel {
		return Ref{Name: text, Text: text, builtin: true}, nil
	}
	return Ref{}, s.unknown(text)
}

// find returns the model of the user's catalogue that has a name, or nil.
func (s *Store) find(name string) *config.CatalogueModel {
	for i := range s.catalogue {
		if s.catalogue[i].Name == name {
			return &s.catalogue[i]
		}
	}
	return nil
}

func (s *Store) unknown(text string) error {
	known := []string{config.DefaultModel}
	for _, m := range s.catalogue {
		known = append(known, m.Name)
	}
	next := "a file is called ./" + text + ", a repository org/name; -catalogue names a file with further names"
	if near := nearest.Of(text, known); near != "" {
		next = "did you mean " + near + "?"
	}
	return &obs.Hint{Err: fmt.Errorf("no model is called %q", text), Next: next}
}

// isPath reports whether a text means what lies there: it says so, or is there.
func isPath(text string) bool {
	if strings.HasPrefix(text, "/") || strings.HasPrefix(text, "./") || strings.HasPrefix(text, "../") {
		return true
	}
	if strings.HasSuffix(text, ".gguf") && !strings.Contains(text, ":") {
		return true
	}
	_, err := os.Stat(text)
	return err == nil && strings.Contains(text, "/")
}

// parseURL reads the URL of a file or folder. That of a repository's page, and of a page about
// a file, mean what they show.
func parseURL(text string) (Ref, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return Ref{}, errors.New("no URL; must be such as https://example.org/model.gguf")
	}
	u.Path, u.RawPath = strings.Replace(u.Path, "/blob/", "/resolve/", 1), ""
	r := Ref{Text: fetch.Shown(u), url: u}
	switch {
	case strings.HasSuffix(u.Path, ".gguf"):
		r.Name = idOf(path.Base(u.Path))
	case strings.HasSuffix(u.Path, ".safetensors"):
		u.Path = path.Dir(u.Path) + "/"
		fallthrough
	case strings.HasSuffix(u.Path, "/"):
		r.Text, r.Name = fetch.Shown(u), idOf(path.Base(strings.Split(u.Path, "/resolve/")[0]))
	default:
		return Ref{}, &obs.Hint{Err: fmt.Errorf("%s: neither a GGUF file nor a folder", r.Text),
			Next: "a file's URL ends in .gguf, that of a folder with safetensors in /; a repository is called org/name and comes from -mirror"}
	}
	return r, nil
}

func parseRepo(text string) (Ref, error) {
	if !config.RepoForm.MatchString(text) || strings.Contains(text, "..") {
		return Ref{}, &obs.Hint{Err: fmt.Errorf("%.300q: no such file, and no repository", text), Next: "a repository is called org/name, and perhaps @revision and :tag behind it"}
	}
	rest, tag, _ := strings.Cut(text, ":")
	name, revision, _ := strings.Cut(rest, "@")
	if revision == "" {
		revision = defaultRevision
	}
	repo := repository{name: name, revision: revision, tag: tag}
	return Ref{Name: idOf(path.Base(name)), Text: repo.String(), repo: repo}, nil
}

// idOf makes the id of a model of the name of its file or repository.
func idOf(name string) string {
	name = strings.ToLower(name)
	for _, end := range []string{".gguf", "-gguf", "_gguf"} {
		name = strings.TrimSuffix(name, end)
	}
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, name)
	const most = 63
	return strings.Trim(name[:min(len(name), most)], "-.")
}
