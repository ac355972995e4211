// Package house holds the rules of this repository that a machine can check:
// how the tree looks, what code may not do, what the README promises.
//
// Run by `make test` and `make test-short`. Its one rule: a fault names the file
// and line, and says what to do instead.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "millrace.dev/millrace"

// root is the repository, seen from this package's folder.
var root = filepath.Join("..", "..")

// tracked returns every file that git has or would take, with "/" in between,
// and fails if there is none.
func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	var files []string
	for name := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		// A file that is removed but not committed yet is still listed.
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			files = append(files, name)
		}
	}
	slices.Sort(files)
	files = slices.Compact(files)
	if len(files) == 0 {
		t.Fatal("git knows no file")
	}
	return files
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// source is one Go file of ours, parsed.
type source struct {
	name string // in the repository
	file *ast.File
	set  *token.FileSet
}

func (s source) test() bool      { return strings.HasSuffix(s.name, "_test.go") }
func (s source) generated() bool { return ast.IsGenerated(s.file) }
func (s source) dir() string     { return path.Dir(s.name) }

// line returns the line of a position in the file.
func (s source) line(at token.Pos) int { return s.set.Position(at).Line }

// sources parses all Go files but those of testdata.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, name := range tracked(t) {
		if path.Ext(name) != ".go" || slices.Contains(strings.Split(name, "/"), "testdata") {
			continue
		}
		all = append(all, parse(t, name, read(t, name)))
	}
	return all
}

// lines returns how many lines text has.
func lines(text string) int {
	return strings.Count(strings.TrimSuffix(text, "\n"), "\n") + 1
}

// parse reads the text of a Go file.
func parse(t *testing.T, name, text string) source {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return source{name: name, file: file, set: set}
}
