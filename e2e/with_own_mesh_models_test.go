package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// linkedCache is a cache with all that set-up fetched, to which more may be added.
func linkedCache(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(rig.Cache())
	if err != nil {
		t.Fatalf("%v; run `make setup` first", err)
	}
	for _, e := range entries {
		if e.IsDir() && (!strings.HasPrefix(e.Name(), ".") || e.Name() == ".stamps") && e.Name() != "pulled" {
			if err := os.Symlink(filepath.Join(rig.Cache(), e.Name()), filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// mirror serves one model as a repository of Hugging Face's server, and cuts the first
// download off in the middle. files counts the requests for the file.
func mirror(t *testing.T, repo, name, path string) (url string, files *atomic.Int32) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	files = &atomic.Int32{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer hush":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/api/models/"+repo+"/revision/main":
			_ = json.NewEncoder(w).Encode(map[string]any{"siblings": []any{map[string]any{
				"rfilename": name, "size": len(content), "lfs": map[string]any{"sha256": hex.EncodeToString(sum[:])},
			}}})
		case r.URL.Path == "/"+repo+"/resolve/main/"+name:
			w.Header().Set("ETag", `"1"`)
			if files.Add(1) == 1 {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				_, _ = w.Write(content[:len(content)/2])
				panic(http.ErrAbortHandler)
			}
			http.ServeFile(w, r, path)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, files
}

// listed is a model as `millrace models list -json` has it.
type listed struct {
	Name, State, SHA256 string
	Loaded              []string
}

// TestModelsByName serves two models in one mesh: one from a mirror that cuts it off and wants
// a token, one from a file, each by its own name. Afterwards the mirror is not needed any more.
func TestModelsByName(t *testing.T) {
	weights := rig.MustCached(t, "models/*.gguf")
	url, files := mirror(t, "org/Tiny-GGUF", "tiny.Q4_1.gguf", weights)
	cache := linkedCache(t)
	token := rig.Write(t, filepath.Join(t.TempDir(), "token"), "hush\n")
	from := []string{"-cache", cache, "-mirror", url, "-token-file", token}
	m := own(t, append(from, "-nodes", "2", "-model", "org/Tiny-GGUF:Q4_1", "-model", "mine="+weights)...)
	if n := files.Load(); n != 2 {
		t.Errorf("the file was asked for %d times, want 2: it was cut off once", n)
	}
	for _, name := range []string{"tiny", "mine"} {
		q := rig.Ask(8, "Hello!")
		q.Model = name
		c, a, err := rig.Complete(t.Context(), m.URL(t, "/v1/chat/completions"), q)
		if err != nil || c.Model != name {
			t.Errorf("%s: %v, model %q: %.200s", name, err, c.Model, a.Body)
		}
	}
	got := rig.Millrace(t, "", "models", "list", "-json", "-cache", cache, "-dir", m.Dir)
	list := rig.Decode[[]listed](t, []byte(got.Stdout))
	i := slices.IndexFunc(list, func(e listed) bool { return e.Name == "tiny" })
	if i < 0 || list[i].State != "fetched" || list[i].SHA256 == "" || len(list[i].Loaded) != 1 {
		t.Errorf("models list: %s", got.Stdout)
	}
	if got := rig.Millrace(t, "", "models", "rm", "tiny", "-cache", cache, "-dir", m.Dir); got.Code != exitUsage || !strings.Contains(got.Stderr, "is served by node-") {
		t.Errorf("models rm of what is loaded: %+v", got)
	}
	if err := m.End(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(m.Out.String(), "hush") {
		t.Error("the token was shown")
	}
	before := files.Load()
	if got := rig.Millrace(t, "", "setup", "-cache", cache, "-model", "org/Tiny-GGUF:Q4_1"); got.Code != 0 || !strings.Contains(got.Stdout, "tiny.Q4_1.gguf") || files.Load() != before {
		t.Errorf("the second time, without mirror: %+v", got)
	}
	if got := rig.Millrace(t, "", "models", "rm", "tiny", "-cache", cache, "-dir", m.Dir); got.Code != 0 {
		t.Errorf("models rm: %+v", got)
	}
	if got := rig.Millrace(t, "", "models", "pull", "org/Tiny-GGUF:Q4_1", "-json", "-cache", cache, "-mirror", url); got.Code != exitSetup || !strings.Contains(got.Stderr, "access denied") || !strings.Contains(got.Stderr, "-token-file") {
		t.Errorf("models pull without the token: %+v", got)
	}
}
