package models

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/weights"
)

// wanted is a file to fetch.
type wanted struct {
	name   string // below the model's folder, with "/"
	urls   []*url.URL
	sha256 string // "": not known
	size   int64  // 0: not known
	// sidecar is whether its hash may lie beside it, optional whether the model can do without.
	sidecar, optional bool
}

// plan is how a model is fetched.
type plan struct {
	format    string
	main      string // name of the GGUF file to load; "": the folder
	tokenizer string // name of a tokenizer's file beside it; ""
	context   int    // tokens; 0: nobody says
	files     []wanted
	// more returns where a file of the model is. guess is whether files are only tried by
	// their usual names: weights are added once the index is there.
	more  func(name string) ([]*url.URL, error)
	guess bool
}

// locate fills in where files are that have no place yet.
func (p *plan) locate() (err error) {
	for i := range p.files {
		if w := &p.files[i]; len(w.urls) == 0 && err == nil {
			w.urls, err = p.more(w.name)
		}
	}
	return err
}

// plan finds out how a model is fetched. A repository is asked for what it has.
func (s *Store) plan(ctx context.Context, r Ref) (plan, error) {
	switch {
	case r.url != nil:
		return ofURLs([]*url.URL{r.url})
	case r.catalogue != nil:
		return s.ofCatalogue(ctx, r.catalogue)
	}
	return s.ofRepo(ctx, r.repo, "")
}

// ofURLs plans the fetching of a file, or of a folder whose URLs end in "/".
func ofURLs(at []*url.URL) (plan, error) {
	if !strings.HasSuffix(at[0].Path, "/") {
		name := path.Base(at[0].Path)
		if !isFileName(name) {
			return plan{}, fmt.Errorf("%.80q is not the name of a file", name)
		}
		return plan{format: config.GGUF, main: name, files: []wanted{{name: name, urls: at, sidecar: true}}}, nil
	}
	p := folderPlan()
	p.more = func(name string) (all []*url.URL, err error) {
		for _, folder := range at {
			u := *folder
			u.Path += name
			all = append(all, &u)
		}
		return all, nil
	}
	return p, p.locate()
}

func (s *Store) ofCatalogue(ctx context.Context, m *config.CatalogueModel) (p plan, err error) {
	if m.Repo != "" {
		r, err := parseRepo(m.Repo)
		if err != nil {
			return plan{}, err
		}
		if p, err = s.ofRepo(ctx, r.repo, m.Format); err != nil {
			return plan{}, err
		}
	} else if p, err = ofURLs(folders(m)); err != nil {
		return plan{}, err
	}
	p.context = m.ContextTokens
	if i := slices.IndexFunc(p.files, func(w wanted) bool { return w.name == p.main }); i >= 0 {
		if m.SHA256 != "" {
			p.files[i].sha256 = m.SHA256
		}
		if m.Size > 0 {
			p.files[i].size = int64(m.Size)
		}
	}
	if m.Tokenizer != "" {
		u, err := url.Parse(m.Tokenizer)
		if err != nil {
			return plan{}, err
		}
		p.tokenizer = "tokenizer.json"
		p.files = append(p.files, wanted{name: p.tokenizer, urls: []*url.URL{u}})
	}
	return p, nil
}

// folders returns the URLs of a catalogue's model. Those of a folder end in "/", and those of
// a GGUF file don't, whatever they look like.
func folders(m *config.CatalogueModel) (all []*url.URL) {
	for _, text := range m.URLs {
		u, err := url.Parse(text)
		if err != nil {
			continue // the catalogue was checked
		}
		if m.Format != config.GGUF && !strings.HasSuffix(u.Path, "/") {
			if u.Path = strings.TrimSuffix(u.Path, "/"+oneFile); !strings.HasSuffix(u.Path, "/") {
				u.Path += "/"
			}
		}
		all = append(all, u)
	}
	return all
}

// guessed returns the weights of a folder whose other files are there.
func (p *plan) guessed(folder string) ([]wanted, error) {
	names := map[string]bool{oneFile: true}
	shards, err := weights.Shards(filepath.Join(folder, weights.IndexFile))
	if err == nil {
		names = map[string]bool{}
		for _, file := range shards {
			names[file] = true
		}
	}
	var all []wanted
	for name := range names {
		urls, err := p.more(name)
		if err != nil {
			return nil, err
		}
		all = append(all, wanted{name: name, urls: urls, sidecar: true})
	}
	slices.SortFunc(all, func(a, b wanted) int { return strings.Compare(a.name, b.name) })
	return all, nil
}
