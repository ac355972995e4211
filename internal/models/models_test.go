package models

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/fetch"
	"millrace.dev/millrace/internal/obs"
)

// gguf is a whole GGUF file without tensors; the text is its only entry.
func gguf(text string) string {
	b := []byte("GGUF\x03\x00\x00\x00")
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = append(binary.LittleEndian.AppendUint64(b, 4), "name"...)
	b = binary.LittleEndian.AppendUint32(b, 8)
	return string(append(binary.LittleEndian.AppendUint64(b, uint64(len(text))), text...))
}

// tensors is a whole safetensors file with one tensor.
func tensors(name string) string {
	head := `{"` + name + `":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(head)))) + head + "x"
}

func sumOf(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

const commit = "0123456789abcdef0123456789abcdef01234567"

// hub answers as Hugging Face's server does, for repositories by name with their files.
type hub struct {
	*httptest.Server
	mu       sync.Mutex
	repos    map[string]map[string]string
	requests []string
	token    string // that it files
}

func newHub(t *testing.T, repos map[string]map[string]string) *hub {
	t.Helper()
	h := &hub{repos: repos}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r.URL.Path)
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	for name, files := range h.repos {
		if r.URL.Path == "/api/models/"+name+"/revision/main" && r.URL.Query().Get("blobs") == "true" {
			var all []any
			for file, text := range files {
				s := map[string]any{"rfilename": file, "size": len(text)}
				if !strings.HasSuffix(file, ".json") {
					s["lfs"] = map[string]any{"sha256": sumOf(text), "size": len(text)}
				}
				all = append(all, s)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"sha": commit, "siblings": all})
			return
		}
		for _, at := range []string{"/" + name + "/resolve/" + commit + "/", "/" + name + "/resolve/main/"} {
			if file, ok := strings.CutPrefix(r.URL.Path, at); ok && files[file] != "" {
				http.ServeContent(w, r, "", time.Time{}, strings.NewReader(files[file]))
				return
			}
		}
	}
	http.NotFound(w, r)
}

func (h *hub) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.requests)
}

func (h *hub) set(repo, file, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repos[repo][file] = text
}

// open returns a store in a new cache, or in that of the options.
func open(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Cache == "" {
		o.Cache = t.TempDir()
	}
	if o.Client == nil {
		l := fetch.DefaultLimits()
		l.Tries, l.Backoff = 2, time.Millisecond
		o.Client = &fetch.Client{Limits: l, Free: func(string) (int64, error) { return 1 << 40, nil }}
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pull(ctx context.Context, s *Store, text string) (Model, error) {
	r, err := s.Parse(text)
	if err != nil {
		return Model{}, err
	}
	return s.Pull(ctx, r, nil)
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNames says what is taken for what, and which id it gets.
func TestNames(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("own/model", 0o755); err != nil {
		t.Fatal(err)
	}
	catalogue := file(t, "c.yaml", "models: [{name: tiny, repo: a/b}]")
	s := open(t, Options{Catalogue: catalogue})
	tests := []struct{ text, name, kind, want string }{
		{"smollm2", "smollm2", "builtin", ""},
		{"tiny", "tiny", "catalogue", ""},
		{"fast=tiny", "fast", "catalogue", ""},
		{"own.gguf", "own", "path", ""},
		{"./tiny", "tiny", "path", ""},
		{"own/model", "model", "path", ""},
		{"/models/Qwen2.5-7B_Instruct.Q4_K_M.gguf", "qwen2.5-7b-instruct.q4-k-m", "path", ""},
		{"Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", "qwen2.5-0.5b-instruct", "repo", ""},
		{"org/repo@v1:sub/file.gguf", "repo", "repo", ""},
		{"https://h.example/a/b.gguf?sig=x=y", "b", "url", ""},
		{"b2=https://user:pw@h.example/a/b.gguf", "b2", "url", ""},
		{"https://hub.example/org/Repo/resolve/main/", "repo", "url", ""},
		{"https://hub.example/org/repo/blob/main/model.safetensors", "repo", "url", ""},
		{"https://hub.example/org/repo", "", "", "neither a GGUF file nor a folder"},
		{"tinny", "", "", `no model is called "tinny"`},
		{"a/b/c", "", "", "no repository"},
		{"a/../b", "", "", "no repository"},
		{"org/---", "", "", "no repository"},
		{"", "", "", `no model is called ""`},
		{"ftp://x/y.gguf", "", "", "no repository"},
	}
	for _, tt := range tests {
		r, err := s.Parse(tt.text)
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %v, want %q", tt.text, err, tt.want)
			continue
		}
		kinds := map[string]bool{"builtin": r.builtin, "catalogue": r.catalogue != nil, "path": r.path != "", "repo": r.repo.name != "", "url": r.url != nil}
		for kind, is := range kinds {
			if err == nil && is != (kind == tt.kind) {
				t.Errorf("Parse(%q): %s is %v, want it to be a %s", tt.text, kind, is, tt.kind)
			}
		}
		if r.Name != tt.name || strings.Contains(r.Text, "pw") || strings.Contains(r.Text, "sig") {
			t.Errorf("Parse(%q) = %q, %q; want id %q, and no secrets", tt.text, r.Name, r.Text, tt.name)
		}
	}
}

var repos = map[string]map[string]string{
	"org/One-GGUF":  {"one.Q4_0.gguf": gguf("one"), "README.md": "x", "mmproj-one.gguf": gguf("eyes")},
	"org/Many-GGUF": {"many-Q4_K_M.gguf": gguf("4"), "many-IQ4_K_M.gguf": gguf("i4"), "many-Q8_0.gguf": gguf("8"), "big/many-BF16-00001-of-00002.gguf": gguf("b1"), "big/many-BF16-00002-of-00002.gguf": gguf("b2")},
	"org/Half-GGUF": {"half-Q8_0-00001-of-00002.gguf": gguf("h1")},
	"org/folder":    {"config.json": "{}", "tokenizer.json": "{}", "m-1.safetensors": tensors("a"), "m-2.safetensors": tensors("b"), "model.safetensors.index.json": `{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}`, "pytorch_model.bin": "x", "modeling.py": "x"},
	"org/lacks":     {"config.json": "{}", "m-1.safetensors": tensors("a"), "model.safetensors.index.json": `{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}`},
	"org/page":      {"page.gguf": "<html>log in</html>"},
	"org/code":      {"main.py": "x"},
}

// TestPull fetches from a server like Hugging Face's, and the second time asks nobody.
func TestPull(t *testing.T) {
	h := newHub(t, repos)
	catalogue := file(t, "c.yaml", `models:
- {name: tiny, urls: ["`+h.URL+`/nowhere/t.gguf", "`+h.URL+`/org/One-GGUF/resolve/main/one.Q4_0.gguf"], sha256: `+sumOf(gguf("one"))+`, contextTokens: 512, tokenizer: "`+h.URL+`/org/folder/resolve/main/tokenizer.json"}
- {name: wrong, urls: ["`+h.URL+`/org/One-GGUF/resolve/main/one.Q4_0.gguf"], sha256: `+sumOf("")+`}
- {name: long, repo: org/One-GGUF, size: 7}
- {name: flat, urls: ["`+h.URL+`/org/folder/resolve/main/model.safetensors"], format: safetensors}
`)
	tests := []struct {
		text   string
		files  []string // of its folder, but for the record
		main   string   // "": the folder
		format string
		want   string // part of the error
	}{
		{"org/One-GGUF", []string{"one.Q4_0.gguf"}, "one.Q4_0.gguf", config.GGUF, ""},
		{"org/One-GGUF@main:one.Q4_0.gguf", []string{"one.Q4_0.gguf"}, "one.Q4_0.gguf", config.GGUF, ""},
		{"org/Many-GGUF", []string{"many-Q4_K_M.gguf"}, "many-Q4_K_M.gguf", config.GGUF, ""},
		{"org/Many-GGUF:q8_0", []string{"many-Q8_0.gguf"}, "many-Q8_0.gguf", config.GGUF, ""},
		{"org/Many-GGUF:BF16", []string{"big/many-BF16-00001-of-00002.gguf", "big/many-BF16-00002-of-00002.gguf"}, "big/many-BF16-00001-of-00002.gguf", config.GGUF, ""},
		{"org/Many-GGUF:Q2_K", nil, "", "", "which file?"},
		{"org/Half-GGUF", nil, "", "", "1 of its 2 parts"},
		{"org/folder", []string{"config.json", "m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json", "tokenizer.json"}, "", config.Safetensors, ""},
		{"org/lacks", nil, "", "", "m-2.safetensors, which is not there"},
		{"org/page", nil, "", "", "not a GGUF file"},
		{"org/code", nil, "", "", "neither a GGUF file nor a folder"},
		{"org/none", nil, "", "", "HTTP 404"},
		{h.URL + "/org/One-GGUF/resolve/main/one.Q4_0.gguf", []string{"one.Q4_0.gguf"}, "one.Q4_0.gguf", config.GGUF, ""},
		{h.URL + "/org/folder/resolve/main/", []string{"config.json", "m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json", "tokenizer.json"}, "", config.Safetensors, ""},
		{h.URL + "/org/none/resolve/main/", nil, "", "", "HTTP 404"},
		{"tiny", []string{"t.gguf", "tokenizer.json"}, "t.gguf", config.GGUF, ""},
		{"flat", []string{"config.json", "m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json", "tokenizer.json"}, "", config.Safetensors, ""},
		{"wrong", nil, "", "", "must be " + sumOf("")},
		{"long", nil, "", "", "must be 7"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			var events int
			s := open(t, Options{Mirrors: []string{h.URL + "/"}, Catalogue: catalogue, Events: func(e Event) { events++ }})
			m, err := pull(t.Context(), s, tt.text)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Pull() = %v, want %q", err, tt.want)
			}
			if err != nil {
				if list, err := s.List(t.Context(), nil); err != nil || len(list) > 1 && list[1].State == Fetched {
					t.Errorf("list after a failure: %+v, %v", list, err)
				}
				return
			}
			folder := filepath.Dir(m.Weights)
			if tt.main == "" {
				folder = m.Weights
			} else if strings.Contains(tt.main, "/") {
				folder = filepath.Dir(folder)
			}
			var files []string
			for _, f := range tt.files {
				if _, err := os.Stat(filepath.Join(folder, f)); err == nil {
					files = append(files, f)
				}
			}
			all, _ := filepath.Glob(filepath.Join(folder, "*"))
			more, _ := filepath.Glob(filepath.Join(folder, "*", "*"))
			if !strings.Contains(tt.main, "/") && len(all) != len(tt.files)+1 || len(more) > 2 {
				t.Errorf("in its folder: %v %v", all, more)
			}
			if diff := cmp.Diff(tt.files, files); diff != "" || m.Weights != filepath.Join(folder, tt.main) || m.Format != tt.format || m.SHA256 == "" || events == 0 {
				t.Errorf("%+v after %d events; files (-want +got):\n%s", m, events, diff)
			}
			before := h.asked()
			again, err := pull(t.Context(), open(t, Options{Cache: s.o.Cache, Mirrors: []string{h.URL}, Catalogue: catalogue}), tt.text)
			if diff := cmp.Diff(m, again); diff != "" || err != nil || h.asked() != before {
				t.Errorf("the second time: %v, %d requests, (-first +second):\n%s", err, h.asked()-before, diff)
			}
		})
	}
}

// TestTokens gives a token to the mirrors that the user has named, and to nobody else.
func TestTokens(t *testing.T) {
	private := newHub(t, map[string]map[string]string{"org/a": {"a.gguf": gguf("a")}})
	private.token = "hush"
	host := strings.TrimPrefix(private.URL, "http://")
	url := private.URL + "/org/a/resolve/main/a.gguf"
	for _, tt := range []struct {
		name, token, text string
		mirrors           []string
		want              error
	}{
		{"to a mirror", "hush", "org/a", []string{private.URL}, nil},
		{"by host", "# mine\n" + host + " hush\nothers no", url, nil, nil},
		{"not to a host that is no mirror", "hush", url, nil, fetch.ErrDenied},
		{"of none", "", "org/a", []string{private.URL}, fetch.ErrDenied},
		{"of none, for one of several files", "", "org/a:Q4_0", []string{private.URL}, fetch.ErrDenied},
		{"a wrong one", "loud", "org/a", []string{private.URL}, fetch.ErrDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Mirrors: tt.mirrors}
			if tt.token != "" {
				o.TokenFile = file(t, "token", tt.token+"\n")
			}
			_, err := pull(t.Context(), open(t, o), tt.text)
			var h *obs.Hint
			if !errors.Is(err, tt.want) || err != nil && (!errors.As(err, &h) || !strings.Contains(h.Next, "-token-file") || strings.Contains(err.Error(), "loud")) {
				t.Errorf("Pull() = %v, want %v", err, tt.want)
			}
		})
	}
	if _, err := Open(Options{TokenFile: file(t, "token", "a b c")}); err == nil || strings.Contains(err.Error(), "a b c") {
		t.Errorf("a line of three words: %v", err)
	}
}

// TestPins holds a model to the content that it had the first time, from whatever mirror.
func TestPins(t *testing.T) {
	h := newHub(t, map[string]map[string]string{"org/a": {"a.gguf": gguf("first")}})
	s := open(t, Options{Mirrors: []string{h.URL}})
	if _, err := pull(t.Context(), s, "org/a"); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Remove(t.Context(), "a", false, nil); err != nil || freed == 0 {
		t.Fatalf("Remove() = %d, %v", freed, err)
	}
	list, err := s.List(t.Context(), nil)
	if err != nil || len(list) != 2 || list[0].State != Known || list[0].SHA256 != sumOf(gguf("first")) {
		t.Errorf("List() = %+v, %v; want it known, with its hash", list, err)
	}
	h.set("org/a", "a.gguf", gguf("other"))
	if _, err := pull(t.Context(), s, "org/a"); !errors.Is(err, fetch.ErrMismatch) {
		t.Errorf("changed content: %v", err)
	}
	other := newHub(t, map[string]map[string]string{"org/a": {"a.gguf": gguf("first")}})
	two := open(t, Options{Cache: s.o.Cache, Mirrors: []string{other.URL}})
	if m, err := pull(t.Context(), two, "org/a"); err != nil || m.SHA256 != sumOf(gguf("first")) {
		t.Errorf("from another mirror: %+v, %v", m, err)
	}
	if _, err := s.Remove(t.Context(), "org/a", true, nil); err != nil {
		t.Fatal(err)
	}
	if m, err := pull(t.Context(), s, "org/a"); err != nil || m.SHA256 != sumOf(gguf("other")) {
		t.Errorf("once forgotten: %+v, %v", m, err)
	}
}

// TestChangedOnDisk finds a file that is not what was fetched.
func TestChangedOnDisk(t *testing.T) {
	h := newHub(t, map[string]map[string]string{"org/a": {"a.gguf": gguf("first")}})
	s := open(t, Options{Mirrors: []string{h.URL}})
	m, err := pull(t.Context(), s, "org/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(m.Weights, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t.Context(), s, "org/a"); err != nil {
		t.Errorf("only touched: %v", err)
	}
	if err := os.WriteFile(m.Weights, []byte(gguf("worst")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t.Context(), s, "org/a"); err == nil || !strings.Contains(err.Error(), "it has changed") {
		t.Errorf("changed: %v", err)
	}
	before := h.asked()
	if err := os.Remove(m.Weights); err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t.Context(), s, "org/a"); err != nil || h.asked() == before {
		t.Errorf("gone: %v after %d requests", err, h.asked()-before)
	}
}

// TestAtOnce has several fetch the same model: one does.
func TestAtOnce(t *testing.T) {
	h := newHub(t, map[string]map[string]string{"org/a": {"a.gguf": gguf("a")}})
	cache := t.TempDir()
	var g errgroup.Group
	for range 6 {
		s := open(t, Options{Cache: cache, Mirrors: []string{h.URL}})
		g.Go(func() error { _, err := pull(t.Context(), s, "org/a"); return err })
	}
	if err := g.Wait(); err != nil || h.asked() != 2 {
		t.Errorf("%v after %d requests, want a listing and a file", err, h.asked())
	}
}

// TestMirrors asks them in turn, also those that only have files.
func TestMirrors(t *testing.T) {
	down := newHub(t, nil)
	h := newHub(t, repos)
	flat := h.URL + "/{repo}/resolve/main/{file}"
	for name, tt := range map[string]struct {
		mirrors []string
		text    string
		want    string
	}{
		"the second":                 {[]string{down.URL, h.URL}, "org/One-GGUF", ""},
		"a template, with a file":    {[]string{flat}, "org/One-GGUF:one.Q4_0.gguf", ""},
		"a template, with a folder":  {[]string{flat}, "org/folder", ""},
		"a template, without a file": {[]string{flat}, "org/Many-GGUF:Q8_0", "no mirror says which files it has"},
		"none":                       {nil, "org/One-GGUF", "no mirror is named"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pull(t.Context(), open(t, Options{Mirrors: tt.mirrors}), tt.text)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Pull() = %v, want %q", err, tt.want)
			}
		})
	}
	for _, bad := range []string{"hub.example.org", "ftp://x", "https://x/{repo}", "https://x/?a=b", "::"} {
		if _, err := Open(Options{Mirrors: []string{bad}}); err == nil {
			t.Errorf("mirror %q is taken", bad)
		}
	}
}

// TestFullDisk says so before anything is fetched.
func TestFullDisk(t *testing.T) {
	h := newHub(t, repos)
	l := fetch.DefaultLimits()
	s := open(t, Options{Mirrors: []string{h.URL}, Client: &fetch.Client{Limits: l, Free: func(string) (int64, error) { return 1000, nil }}})
	_, err := pull(t.Context(), s, "org/folder")
	var hint *obs.Hint
	if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &hint) || h.asked() != 1 {
		t.Errorf("Pull() = %v after %d requests, want ENOSPC with a way out after the listing", err, h.asked())
	}
}

// TestRemove refuses what a mesh has loaded, and what is not there.
func TestRemove(t *testing.T) {
	h := newHub(t, repos)
	s := open(t, Options{Mirrors: []string{h.URL}})
	m, err := pull(t.Context(), s, "org/One-GGUF")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Parse("org/One-GGUF")
	if err != nil {
		t.Fatal(err)
	}
	s.Use(time.Unix(1e9, 0), r)
	loaded := map[string][]Place{m.Weights: {{Node: "node-a", State: "loaded"}, {Node: "node-b", State: "asleep"}, {Node: "node-c", State: "failed", Why: "no memory"}}}
	for name, want := range map[string]string{"one": "is served by node-a, node-b asleep, node-c failed: no memory", "onn": "did you mean", "smollm2": "belongs to set-up", "x": "models list"} {
		_, err := s.Remove(t.Context(), name, false, loaded)
		var h *obs.Hint
		text := ""
		if errors.As(err, &h) {
			text = h.Next
		}
		if err == nil || !strings.Contains(err.Error()+text, want) {
			t.Errorf("Remove(%s) = %v (%s), want %q", name, err, text, want)
		}
	}
}

// FuzzListing reads what a mirror says.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"sha":"` + commit + `","siblings":[{"rfilename":"a-Q4_0.gguf","size":3,"lfs":{"sha256":"` + sumOf("") + `"}},{"rfilename":"../x.gguf"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseListing(b)
		if err != nil {
			return
		}
		p, err := chooseFiles(l.files(), repository{name: "a/b", revision: "main"}, "")
		if err != nil {
			return
		}
		for _, w := range p.files {
			if !filepath.IsLocal(w.name) || bytes.ContainsAny([]byte(w.name), "\\\x00") {
				t.Errorf("fetches %q", w.name)
			}
		}
	})
}

// FuzzRecord reads what is kept of a model.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"ref":"a/b","files":[{"name":"a.gguf","size":1}]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, recordFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, ok, err := readRecord(dir)
		if ok == (err != nil) {
			t.Errorf("readRecord() = %v, %v", ok, err)
		}
		for _, file := range r.Files {
			if ok && !filepath.IsLocal(file.Name) {
				t.Errorf("names %q", file.Name)
			}
		}
	})
}
