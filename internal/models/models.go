// Package models finds models by name, fetches them from places that the user names, and
// keeps them in the cache.
//
// What a model may be called (a Ref):
//
//	smollm2                       a name of the catalogue; this one is built in
//	org/repo:Q4_K_M               a repository of the mirrors, and which of its GGUF files: a
//	                              word of its name or the name itself; Q4_K_M if it is left out.
//	                              One that has no GGUF file is taken as a folder of safetensors.
//	org/repo@revision             a branch, tag or commit instead of main
//	https://host/file.gguf        that file; https://host/folder/ a folder of safetensors
//	./own.gguf, /models/qwen/     what lies there; nothing is fetched or kept
//
// and NAME=REF to give it another id in the API than the one made of its name.
//
// A mirror is the root of a server that answers as Hugging Face's does (ROOT/api/models/… and
// ROOT/org/repo/resolve/revision/file), or a URL with {repo}, {revision} and {file} in it.
//
// Each model has a folder of the cache with its files and model.json, which says which hash
// each file has and how that came to be known. The hashes stay when the files are removed:
// who fetches it again, from wherever, gets the same content or an error.
//
// Called by the millrace command and by mesh. Its one rule: nobody is asked over the network
// for a model that is there, and nobody but those whom the user has named.
package models

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/fetch"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/progress"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/setup"
)

// Options is what the user says of where models come from.
type Options struct {
	// Cache is the folder of set-up; "" is setup.DefaultCache.
	Cache string
	// Mirrors are asked for repositories, in this order.
	Mirrors []string
	// Catalogue is a file with further names; "": there are none.
	Catalogue string
	// TokenFile is a file with the token of the mirrors, or with lines "HOST TOKEN"; "": none.
	TokenFile string
	// Out gets what a person wants to know meanwhile; nil drops it.
	Out io.Writer
	// Events is called with what a script wants to know meanwhile; nil: no script does.
	Events func(Event)
	// Client fetches; nil: one with fetch.DefaultLimits.
	Client *fetch.Client
}

// Event is how far the fetching of a file is.
type Event struct {
	Model string `json:"model"`
	File  string `json:"file"`
	// Done and Total are bytes; a Total of 0 is not known.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// Environment returns the options as environment variables set them.
func Environment() Options {
	o := Options{Catalogue: os.Getenv("MILLRACE_CATALOGUE"), TokenFile: os.Getenv("MILLRACE_TOKEN_FILE")}
	o.Mirrors = strings.FieldsFunc(os.Getenv("MILLRACE_MIRROR"), func(r rune) bool { return r == ',' || r == ' ' })
	if hub := os.Getenv("HF_ENDPOINT"); hub != "" && len(o.Mirrors) == 0 {
		o.Mirrors = []string{hub}
	}
	return o
}

// Store is the models of a cache, and the ways to more.
type Store struct {
	// Constant after Open.
	o         Options
	folder    string // with a folder for each model
	catalogue []config.CatalogueModel
	mirrors   []mirror
	client    *fetch.Client
	show      *progress.Progress
}

// who begins the lines of progress.
const who = "models"

// Open reads what the options name. It writes nothing.
func Open(o Options) (*Store, error) {
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Cache == "" {
		o.Cache = setup.DefaultCache()
	}
	abs, err := filepath.Abs(o.Cache)
	if err != nil {
		return nil, err
	}
	o.Cache = abs
	s := &Store{o: o, folder: filepath.Join(o.Cache, "pulled"), show: progress.New(o.Out, who)}
	if o.Catalogue != "" {
		c, err := config.LoadCatalogue(o.Catalogue)
		if err != nil {
			return nil, &obs.Hint{Err: fmt.Errorf("catalogue: %w", err), Next: "manifests/models.md says what a catalogue looks like"}
		}
		s.catalogue = c.Models
	}
	for _, text := range o.Mirrors {
		m, err := parseMirror(text)
		if err != nil {
			return nil, err
		}
		s.mirrors = append(s.mirrors, m)
	}
	tokens, err := s.tokens()
	if err != nil {
		return nil, err
	}
	s.client = o.Client
	if s.client == nil {
		s.client = &fetch.Client{Limits: fetch.DefaultLimits(), Free: fetch.Free}
	}
	s.client.Token = tokens
	return s, nil
}

// maxTokens is the most that is read of a file of tokens, in bytes.
const maxTokens = 64 << 10

// tokens returns who gets which token: each host its own of the file; the mirrors that the
// user has named, the one that has no host; the host of $HF_ENDPOINT, $HF_TOKEN.
func (s *Store) tokens() (func(host string) string, error) {
	byHost := map[string]string{}
	if token := os.Getenv("HF_TOKEN"); token != "" {
		if u, err := url.Parse(os.Getenv("HF_ENDPOINT")); err == nil && u.Host != "" {
			byHost[u.Host] = token
		}
	}
	any := os.Getenv("MILLRACE_TOKEN")
	if s.o.TokenFile != "" {
		b, err := regular.Read(s.o.TokenFile, maxTokens)
		if err != nil {
			return nil, fmt.Errorf("token file: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			switch words := strings.Fields(line); {
			case len(words) == 0 || strings.HasPrefix(line, "#"):
			case len(words) == 1:
				any = words[0]
			case len(words) == 2:
				byHost[words[0]] = words[1]
			default:
				return nil, fmt.Errorf("token file %s: a line of %d words; must be TOKEN, or HOST TOKEN", s.o.TokenFile, len(words))
			}
		}
	}
	for _, m := range s.mirrors {
		if any != "" && byHost[m.host] == "" {
			byHost[m.host] = any
		}
	}
	return func(host string) string { return byHost[host] }, nil
}

// Model is one that can be served.
type Model struct {
	// Name is its id in the API, Ref what it was called.
	Name string `json:"name"`
	Ref  string `json:"ref"`
	// Format is config.GGUF or config.Safetensors.
	Format string `json:"format"`
	// Weights is the path of its file or folder; "": it is the one that set-up fetches.
	Weights string `json:"weights"`
	// Tokenizer is the path of a file of its own; "": it has none, or it is in Weights.
	Tokenizer string `json:"tokenizer,omitempty"`
	// ContextTokens is its context; 0: nobody says.
	ContextTokens int `json:"context_tokens,omitempty"`
	// Size in bytes of all its files, SHA256 of the weights' first file; "" of what is not kept here.
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// denied says what to do where a server wants to know who asks, and other ways out.
func advise(err error) error {
	var h *obs.Hint
	switch {
	case err == nil || errors.As(err, &h):
		return err
	case errors.Is(err, fetch.ErrDenied):
		return &obs.Hint{Err: err, Next: "put a token that may read it into a file and give that with -token-file; some publishers want you to accept their terms first"}
	case errors.Is(err, fetch.ErrMismatch):
		return &obs.Hint{Err: err, Next: "don't use it: see whether a proxy or mirror changes downloads. If its publisher has changed it and you trust that: millrace models rm -forget, and pull again"}
	case errors.Is(err, fetch.ErrMissing):
		return &obs.Hint{Err: err, Next: "look for the repository, revision and file in a browser; private ones need -token-file"}
	}
	return err
}
