package config

import (
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"millrace.dev/millrace/internal/regular"
)

// Forms of a model's files.
const (
	GGUF        = "gguf"
	Safetensors = "safetensors"
)

// Catalogue is what `millrace up -catalogue` reads: what names of models stand for. It is one
// YAML document.
type Catalogue struct {
	// Models are those that there are names for, at most 4096.
	Models []CatalogueModel `json:"models"`
}

// CatalogueModel is a model that has a name.
type CatalogueModel struct {
	// Name is the model's id in the API, and what -model calls it.
	Name string `json:"name"`
	// URLs are where its file is, or, of safetensors, its folder: the same content each, asked
	// in turn, at most 16. Of weights in one GGUF file; a file in parts needs Repo.
	URLs []string `json:"urls,omitempty"`
	// Repo names a repository of the mirrors instead, such as org/name:Q4_K_M.
	Repo string `json:"repo,omitempty"`
	// SHA256 is the GGUF file's hash. Empty: what the server says, and what came first.
	SHA256 string `json:"sha256,omitempty"`
	// Size is the GGUF file's. 0: what the server says.
	Size Bytes `json:"size,omitempty"`
	// Format is "gguf" or "safetensors". Default: gguf where SHA256, Size or a URL ending in
	// .gguf is given, else what the repository has.
	Format string `json:"format,omitempty"`
	// Tokenizer is the URL of a tokenizer.json, for a file that has none of its own.
	Tokenizer string `json:"tokenizer,omitempty"`
	// ContextTokens is the context of one sequence, 128 to 16777216 tokens. Default 4096.
	ContextTokens int `json:"contextTokens,omitempty"`
}

const (
	maxCatalogue     = 4096 // models
	maxCatalogueURLs = 16
	maxCatalogueURL  = 2048 // characters
)

// RepoForm is org/name, and behind it perhaps @revision and :tag.
var RepoForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9][A-Za-z0-9._-]{0,95})?(:[A-Za-z0-9][A-Za-z0-9._/-]{0,255})?$`)

var sumForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// LoadCatalogue reads the file at path. Its error is one Fault a line, or that of reading it.
func LoadCatalogue(path string) (Catalogue, error) {
	b, err := regular.Read(path, MaxFile)
	if err != nil {
		return Catalogue{}, err
	}
	return ParseCatalogue(path, b)
}

// ParseCatalogue reads the text of the file of the given name.
func ParseCatalogue(name string, text []byte) (c Catalogue, err error) {
	d := decoder{lines: map[string]int{"": 1}}
	if n, fault := single(text, "an object with models"); fault != nil {
		d.faults = append(d.faults, *fault)
	} else {
		d.value("", n, reflect.ValueOf(&c).Elem())
		d.check(c.validate(&d))
	}
	for i := range d.faults {
		d.faults[i].File = name
	}
	if err := join(d.faults); err != nil {
		return Catalogue{}, err
	}
	for i := range c.Models {
		c.Models[i].complete()
	}
	return c, nil
}

// complete fills in the format, as far as it is known.
func (m *CatalogueModel) complete() {
	if m.Format == "" && (m.SHA256 != "" || m.Size > 0 || slices.ContainsFunc(m.URLs, func(u string) bool { return strings.HasSuffix(u, ".gguf") })) {
		m.Format = GGUF
	}
}

func (c Catalogue) validate(d *decoder) []Fault {
	var r rules
	r.between("models", len(c.Models), 1, maxCatalogue)
	names := map[string]string{} // where it is, by name
	for i, m := range c.Models {
		at := "models[" + strconv.Itoa(i) + "]"
		m.validate(at, &r)
		if first := names[m.Name]; first != "" {
			r.broken(at+".name", "%q; is already the name of the model %s", m.Name, first)
		}
		names[m.Name] = fmt.Sprintf("in line %d", d.line(at))
	}
	return r
}

func (m CatalogueModel) validate(at string, r *rules) {
	r.matches(at+".name", m.Name, modelName)
	switch {
	case (len(m.URLs) == 0) == (m.Repo == ""):
		r.broken(at, "urls and repo; must be one of them")
	case m.Repo != "" && !RepoForm.MatchString(m.Repo):
		r.broken(at+".repo", "%.80q; must be org/name, and perhaps @revision and :tag behind it", m.Repo)
	}
	r.between(at+".urls", len(m.URLs), 0, maxCatalogueURLs)
	for i, u := range m.URLs {
		r.url(at+".urls["+strconv.Itoa(i)+"]", u)
	}
	if m.Tokenizer != "" {
		r.url(at+".tokenizer", m.Tokenizer)
	}
	if m.SHA256 != "" && !sumForm.MatchString(m.SHA256) {
		r.broken(at+".sha256", "%.80q; must be 64 hexadecimal digits, lower case", m.SHA256)
	}
	r.holds(at+".size", m.Size, 0, 1<<50)
	if m.Format != "" {
		r.oneOf(at+".format", m.Format, GGUF, Safetensors)
	}
	if m.Format == Safetensors && (m.SHA256 != "" || m.Size > 0) {
		r.broken(at+".format", "%q; sha256 and size are of one file: must be left out", m.Format)
	}
	if n := m.ContextTokens; n != 0 {
		r.between(at+".contextTokens", n, 128, 1<<24)
	}
}

// url checks an address of a file; what it has of secrets isn't shown.
func (r *rules) url(at, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || len(text) > maxCatalogueURL {
		r.broken(at, "no URL of a file; must be such as https://example.org/model.gguf")
	}
}
