// Package browser drives a headless Chromium, and says what is wrong with the pages that it
// opens: errors in its console, what axe-core finds, what is fetched from elsewhere.
//
// Called by the tests of xds' live page, with the tag "page": those beside it, on recorded
// states, and the one here, on a real mesh. Run by `make test-page`. Its one rule: what a test
// sees is what Chromium shows.
package browser

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// Browser is one Chromium with one page at a time.
type Browser struct {
	t   testing.TB
	in  *json.Encoder
	out *bufio.Scanner
}

// Found is what a command has found; each fills in its own.
type Found struct {
	// Headline is the page's, of Await.
	Headline string `json:"headline"`
	// Findings are axe-core's, Errors those of the console, Foreign what was asked of others, of
	// Check. PaintMs is until something was shown, Bytes what was fetched, Wide by how many pixels
	// the page is wider than its window, Moving how many animations run.
	Findings []string `json:"findings"`
	Errors   []string `json:"errors"`
	Foreign  []string `json:"foreign"`
	PaintMs  int      `json:"paint_ms"`
	Bytes    int      `json:"bytes"`
	Wide     int      `json:"wide"`
	Moving   int      `json:"moving"`
	// Seen is where Tab leads, Unseen where that does not show, of Walk.
	Seen   []string `json:"seen"`
	Unseen []string `json:"unseen"`
	// Text is what Explain and Chat were answered, Answer what a model has.
	Text   string `json:"text"`
	Answer string `json:"answer"`
	// Failed is why a command could not be done.
	Failed string `json:"failed"`
}

// Start starts a browser for a test. Its pictures go to $MILLRACE_SHOTS, else a folder below
// the cache.
func Start(t testing.TB) *Browser {
	t.Helper()
	from := filepath.Join(rig.Cache(), "page")
	shots := os.Getenv("MILLRACE_SHOTS")
	if shots == "" {
		shots = filepath.Join(from, "shots")
	}
	if err := os.MkdirAll(shots, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", filepath.Join(rig.Root(), "e2e/browser/drive.mjs"), filepath.Join(from, "node"), filepath.Join(from, "chromium"), shots)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; make test-page sets up what it needs", err)
	}
	b := &Browser{t: t, in: json.NewEncoder(in), out: bufio.NewScanner(out)}
	b.out.Buffer(nil, 1<<20)
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return b
}

// Do does what drive.mjs calls what, with arguments in pairs of name and value.
func (b *Browser) Do(what string, arguments ...any) Found {
	b.t.Helper()
	command := map[string]any{"do": what}
	for i := 0; i < len(arguments); i += 2 {
		command[arguments[i].(string)] = arguments[i+1]
	}
	if err := b.in.Encode(command); err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	if !b.out.Scan() {
		b.t.Fatalf("%s: the browser has ended: %v", what, b.out.Err())
	}
	var f Found
	if err := json.Unmarshal(b.out.Bytes(), &f); err != nil {
		b.t.Fatalf("%s: %s: %v", what, b.out.Text(), err)
	}
	if f.Failed != "" {
		b.t.Fatalf("%s %v: %s", what, arguments, f.Failed)
	}
	return f
}

// Check takes a picture under a name, and fails the test by what is wrong with the page.
func (b *Browser) Check(name string) {
	b.t.Helper()
	f := b.Do("check", "name", name)
	for what, all := range map[string][]string{"axe": f.Findings, "console": f.Errors, "fetched from elsewhere": f.Foreign} {
		for _, one := range all {
			b.t.Errorf("%s: %s: %s", name, what, one)
		}
	}
	if f.Wide > 0 {
		b.t.Errorf("%s: %d pixels wider than the window", name, f.Wide)
	}
	fmt.Printf("page: %-28s axe findings %d, console errors %d, %d bytes, first paint %d ms, %d animations\n", name, len(f.Findings), len(f.Errors), f.Bytes, f.PaintMs, f.Moving)
}
