//go:build templates

package jinja

import (
	"bytes"
	"flag"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	seed   = flag.Int("seed", 1, "of the first templates by chance")
	count  = flag.Int("count", 20_000, "how many of them")
	update = flag.Bool("update", false, "write testdata/pairs.jsonl anew")
)

// committed is how many templates by chance testdata/pairs.jsonl has, and their seed.
const (
	committed     = 700
	committedSeed = 2026
)

// cached is a path below the folder that `make test-templates` fills.
func cached(t *testing.T, names ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{os.Getenv("MILLRACE_CACHE"), "templates"}, names...)...)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run `make test-templates`", err)
	}
	return path
}

// oracle runs Jinja2 and returns what it prints.
func oracle(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := osexec.CommandContext(t.Context(), cached(t, "python", "bin", "python"), append([]string{"testdata/oracle.py"}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	return out
}

func pairsOf(t *testing.T, lines []byte) []pair {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pairs.jsonl")
	if err := os.WriteFile(name, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	return readPairs(t, name)
}

// TestTemplatesByChance holds templates made by chance to Jinja2.
func TestTemplatesByChance(t *testing.T) {
	const part = 2_500
	n := &tally{unsupported: map[string]int{}}
	for from := 0; from < *count; from += part {
		lines := oracle(t, nil, "generate", strconv.Itoa(*seed+from/part), strconv.Itoa(min(part, *count-from)))
		for _, p := range pairsOf(t, lines) {
			n.compare(t, &p)
		}
	}
	if n.pairs < *count {
		t.Errorf("%d pairs of %d", n.pairs, *count)
	}
	t.Log(n)
}

// TestTemplatesOfModels holds templates that models were published with to Jinja2.
func TestTemplatesOfModels(t *testing.T) {
	tallies := map[string]*tally{}
	for _, p := range pairsOf(t, oracle(t, nil, "families", cached(t, "package", "src", "chat-template-automap.ts"))) {
		n := tallies[p.Family]
		if n == nil {
			n = &tally{unsupported: map[string]int{}}
			tallies[p.Family] = n
		}
		n.compare(t, &p)
	}
	names := make([]string, 0, len(tallies))
	for name := range tallies {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Logf("%-26s %v", name, tallies[name])
		if n := tallies[name]; n.same+n.refused < n.pairs {
			t.Errorf("%s: %v", name, n)
		}
	}
}

// TestCommittedPairs holds testdata/pairs.jsonl to what Jinja2 makes of it today.
func TestCommittedPairs(t *testing.T) {
	cases, err := os.ReadFile("testdata/cases.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	now := slices.Concat(oracle(t, cases, "cases"), oracle(t, nil, "generate", strconv.Itoa(committedSeed), strconv.Itoa(committed), "600"))
	const name = "testdata/pairs.jsonl"
	if *update {
		if err := os.WriteFile(name, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(was, now) {
		t.Errorf("%s is not what Jinja2 makes of the cases and of seed %d: %v; -update writes it anew", name, committedSeed, err)
	}
}
