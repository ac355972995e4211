package models

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/fetch"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/weights"
)

// mirror is a server with repositories.
type mirror struct {
	template string // a URL with {repo}, {revision} and {file}
	list     string // where it says what a repository has, with {repo} and {revision}; "": nowhere
	host     string
}

func parseMirror(text string) (mirror, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return mirror{}, errors.New("mirror: no URL; must be such as https://hub.example.org, or https://host/models/{repo}/{file}")
	}
	if strings.Contains(text, "{file}") {
		return mirror{template: text, host: u.Host}, nil
	}
	if strings.ContainsAny(text, "{}?#") {
		return mirror{}, fmt.Errorf("mirror %s: it lacks {file}", fetch.Shown(u))
	}
	root := strings.TrimRight(text, "/")
	return mirror{template: root + "/{repo}/resolve/{revision}/{file}", list: root + "/api/models/{repo}/revision/{revision}?blobs=true", host: u.Host}, nil
}

// at returns where a file of a repository is; "" is its folder.
func (m mirror) at(r repository, file string) (*url.URL, error) {
	escaped := (&url.URL{Path: file}).EscapedPath()
	return url.Parse(strings.NewReplacer("{repo}", r.name, "{revision}", url.PathEscape(r.revision), "{file}", escaped).Replace(m.template))
}

// listing is what a mirror says of a repository.
type listing struct {
	Commit string   `json:"sha"`
	Files  []listed `json:"siblings"`
}

// listed is a file of a listing. What is kept as a large file has its hash.
type listed struct {
	Name string `json:"rfilename"`
	Size int64  `json:"size"`
	LFS  *struct {
		SHA256 string `json:"sha256"`
	} `json:"lfs"`
}

// maxListing is the most that is read of a listing, in bytes.
const maxListing = 16 << 20

var isCommit = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// lists asks a mirror what a repository has.
func (s *Store) lists(ctx context.Context, m mirror, r repository) (listing, error) {
	u, err := url.Parse(strings.NewReplacer("{repo}", r.name, "{revision}", url.PathEscape(r.revision)).Replace(m.list))
	if err != nil {
		return listing{}, err
	}
	b, _, err := s.client.Text(ctx, u, maxListing)
	if err != nil {
		return listing{}, fmt.Errorf("%s: %w", fetch.Shown(u), err)
	}
	l, err := parseListing(b)
	if err != nil {
		return listing{}, fmt.Errorf("%s: %w", fetch.Shown(u), err)
	}
	return l, nil
}

// parseListing reads a listing. Files with names that lead elsewhere, and hashes that are
// none, are left out.
func parseListing(b []byte) (listing, error) {
	var l listing
	if err := json.Unmarshal(b, &l); err != nil {
		return l, errors.New("no listing of a repository")
	}
	if !isCommit.MatchString(l.Commit) {
		l.Commit = ""
	}
	l.Files = slices.DeleteFunc(l.Files, func(f listed) bool { return !isFileName(f.Name) || f.Size < 0 })
	return l, nil
}

// isFileName reports whether a name stays in the folder of its model.
func isFileName(name string) bool {
	return name != "" && len(name) < 512 && filepath.IsLocal(name) && path.Clean(name) == name && !strings.ContainsAny(name, "\\\x00\n")
}

// files returns the files of a listing.
func (l listing) files() []wanted {
	var all []wanted
	for _, f := range l.Files {
		w := wanted{name: f.Name, size: f.Size}
		if f.LFS != nil && isHash.MatchString(f.LFS.SHA256) {
			w.sha256 = f.LFS.SHA256
		}
		all = append(all, w)
	}
	return all
}

var isHash = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ofRepo plans the fetching of a repository: the first mirror that lists it says what it has,
// all of them are asked for the files.
func (s *Store) ofRepo(ctx context.Context, r repository, format string) (plan, error) {
	var errs []error
	for _, m := range s.mirrors {
		if m.list == "" {
			continue
		}
		l, err := s.lists(ctx, m, r)
		if ctx.Err() != nil {
			return plan{}, ctx.Err()
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p, err := chooseFiles(l.files(), r, format)
		if err != nil {
			return plan{}, err
		}
		at := r
		at.revision = cmp.Or(l.Commit, r.revision)
		return p, s.locate(&p, at)
	}
	p, err := unlisted(r, format)
	if err != nil {
		for _, e := range errs {
			if !errors.Is(e, fetch.ErrMissing) {
				return plan{}, errors.Join(errs...) // what to do about it says more
			}
		}
		return plan{}, errors.Join(append(errs, err)...)
	}
	return p, s.locate(&p, r)
}

// locate says of each file where the mirrors have it.
func (s *Store) locate(p *plan, r repository) error {
	p.more = func(file string) ([]*url.URL, error) {
		var all []*url.URL
		for _, m := range s.mirrors {
			u, err := m.at(r, file)
			if err != nil {
				return nil, err
			}
			all = append(all, u)
		}
		return all, nil
	}
	return p.locate()
}

// unlisted plans without anybody who says what a repository has: the file is named, or the
// names of a folder of safetensors are known.
func unlisted(r repository, format string) (plan, error) {
	switch {
	case strings.HasSuffix(r.tag, ".gguf") && isFileName(r.tag):
		return plan{format: config.GGUF, main: r.tag, files: []wanted{{name: r.tag, sidecar: true}}}, nil
	case format == config.Safetensors || r.tag == "" && format == "":
		return folderPlan(), nil
	}
	return plan{}, &obs.Hint{Err: fmt.Errorf("%s: no mirror says which files it has", r), Next: "name the file: " + r.name + ":FILE.gguf"}
}

// quants are which GGUF file is taken where nobody says, in this order.
var quants = []string{"Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0"}

// part is the name of a file of several that make one GGUF model.
var partForm = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// chooseFiles returns which files of a repository make the model.
func chooseFiles(all []wanted, r repository, format string) (plan, error) {
	byModel := map[string][]wanted{} // files of a GGUF model, by the name of the first
	for _, w := range all {
		if !strings.HasSuffix(w.name, ".gguf") || strings.Contains(strings.ToLower(path.Base(w.name)), "mmproj") {
			continue
		}
		first := w.name
		if m := partForm.FindStringSubmatch(w.name); m != nil {
			first = m[1] + "-00001-of-" + m[3] + ".gguf"
		}
		byModel[first] = append(byModel[first], w)
	}
	if format == config.Safetensors || len(byModel) == 0 && r.tag == "" && format == "" {
		return chooseFolder(all, r)
	}
	first, err := chooseGGUF(byModel, r)
	if err != nil {
		return plan{}, err
	}
	files := byModel[first]
	slices.SortFunc(files, func(a, b wanted) int { return cmp.Compare(a.name, b.name) })
	if m := partForm.FindStringSubmatch(first); m != nil && (fmt.Sprintf("%05d", len(files)) != m[3] || files[0].name != first) {
		return plan{}, fmt.Errorf("%s: %d of its %s parts are there", r, len(files), strings.TrimLeft(m[3], "0"))
	}
	return plan{format: config.GGUF, main: first, files: files}, nil
}

// chooseGGUF returns which model of a repository is meant, by the name of its first file.
func chooseGGUF(byModel map[string][]wanted, r repository) (string, error) {
	names := make([]string, 0, len(byModel))
	for name := range byModel {
		names = append(names, name)
	}
	slices.Sort(names)
	tags := []string{r.tag}
	if r.tag == "" {
		if len(names) == 1 {
			return names[0], nil
		}
		tags = quants
	}
	for _, tag := range tags {
		var found []string
		for _, name := range names {
			if name == tag || hasWord(name, tag) {
				found = append(found, name)
			}
		}
		if slices.Contains(found, tag) {
			return tag, nil
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	const most = 30
	return "", &obs.Hint{Err: fmt.Errorf("%s: which file? no one alone is meant", r),
		Next: "name it behind a colon: " + strings.Join(names[:min(len(names), most)], ", ")}
}

// hasWord reports whether a file's name has the tag as a word of its own.
func hasWord(name, tag string) bool {
	name, tag = strings.ToLower(strings.TrimSuffix(name, ".gguf")), strings.ToLower(tag)
	if m := partForm.FindStringSubmatch(name + ".gguf"); m != nil {
		name = m[1]
	}
	for at := 0; tag != ""; {
		i := strings.Index(name[at:], tag)
		if i < 0 {
			return false
		}
		begin, end := at+i, at+i+len(tag)
		if (begin == 0 || strings.ContainsRune("-._/", rune(name[begin-1]))) && (end == len(name) || strings.ContainsRune("-./", rune(name[end]))) {
			return true
		}
		at = begin + 1
	}
	return false
}

// settings are the files of a folder that are not weights, and whether it can do without them.
var settings = map[string]bool{
	"config.json": false, "generation_config.json": true, "tokenizer.json": true, "tokenizer_config.json": true, "tokenizer.model": true,
	"special_tokens_map.json": true, "added_tokens.json": true, "vocab.json": true, "merges.txt": true,
	"chat_template.jinja": true, "chat_template.json": true, "preprocessor_config.json": true, weights.IndexFile: true,
}

// oneFile is the name of weights that are in a single file.
const oneFile = "model.safetensors"

// chooseFolder returns what of a repository makes a folder of safetensors. Code, and weights
// in other forms, stay where they are.
func chooseFolder(all []wanted, r repository) (plan, error) {
	p := plan{format: config.Safetensors}
	shards, whole := 0, false
	for _, w := range all {
		_, known := settings[w.name]
		shard := strings.HasSuffix(w.name, ".safetensors") && !strings.Contains(w.name, "/")
		if shard {
			shards++
		}
		whole = whole || w.name == "config.json"
		if known || shard {
			p.files = append(p.files, w)
		}
	}
	if shards == 0 || !whole {
		return plan{}, fmt.Errorf("%s: neither a GGUF file nor a folder with config.json and safetensors", r)
	}
	return p, nil
}

// folderPlan is for a folder that nobody lists: its index, which is fetched first, says which
// weights it has.
func folderPlan() plan {
	p := plan{format: config.Safetensors, guess: true}
	for name, optional := range settings {
		p.files = append(p.files, wanted{name: name, optional: optional})
	}
	slices.SortFunc(p.files, func(a, b wanted) int { return cmp.Compare(a.name, b.name) })
	return p
}
