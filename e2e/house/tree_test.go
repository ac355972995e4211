package house

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// top is what may lie at the repository's root, besides names with a dot first.
var top = []string{
	"extproc", "xds", "nodeagent", "engine", "manifests", "envoy", "e2e", "internal",
	"main.go", "main_test.go", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE",
}

func TestTopLevel(t *testing.T) {
	seen := map[string]bool{} // first elements of all names
	for _, name := range tracked(t) {
		first, _, _ := strings.Cut(name, "/")
		if !seen[first] && !strings.HasPrefix(first, ".") && !slices.Contains(top, first) {
			t.Errorf("%s: has no place at the root; put it below one of %s", first, strings.Join(top, ", "))
		}
		seen[first] = true
	}
	for _, name := range top {
		if !seen[name] && name != "main_test.go" {
			t.Errorf("%s: missing", name)
		}
	}
}

func TestPackagesAreShallow(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(s.dir(), "/") + 1; n > 3 {
			t.Errorf("%s: %d folders deep; must be at most 3", s.name, n)
		}
	}
}

func TestPackagesSayWhatTheyGive(t *testing.T) {
	vague := []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "shared", "lib"}
	for _, s := range sources(t) {
		name := strings.TrimSuffix(s.file.Name.Name, "_test")
		if slices.Contains(vague, name) || slices.Contains(vague, path.Base(s.dir())) {
			t.Errorf("%s: package %s; name it after what it gives", s.name, name)
		}
	}
}

func TestPackagesHaveOneComment(t *testing.T) {
	comments := map[string][]string{} // text by folder; the folder alone if there is none
	for _, s := range sources(t) {
		if s.generated() || strings.HasSuffix(s.file.Name.Name, "_test") {
			continue
		}
		dir := s.dir()
		comments[dir] = append(comments[dir], strings.TrimSpace(s.file.Doc.Text()))
		if doc := s.file.Doc.Text(); doc != "" {
			want := "Package " + s.file.Name.Name + " "
			if s.file.Name.Name == "main" {
				want = "Command " + program(dir) + " "
			}
			if !strings.HasPrefix(doc, want) {
				t.Errorf("%s: package comment must begin with %q", s.name, want)
			}
		}
	}
	for dir, texts := range comments {
		texts = slices.DeleteFunc(texts, func(s string) bool { return s == "" })
		if len(texts) != 1 {
			t.Errorf("%s: %d package comments; must be 1", dir, len(texts))
		}
	}
}

// program is the name of the program whose main lies in dir.
func program(dir string) string {
	if dir == "." {
		return path.Base(module)
	}
	return path.Base(dir)
}

// deepCopy is what controller-gen makes of the Go types beside it.
const deepCopy = "zz_generated.deepcopy.go"

func TestGeneratedCodeLiesBesideItsContract(t *testing.T) {
	files := tracked(t)
	suffixes := []string{".pb.go", "_grpc.pb.go", ".pb.validate.go"}
	for _, name := range files {
		base, ok := strings.CutSuffix(name, ".proto")
		if !ok {
			continue
		}
		if !strings.HasSuffix(path.Dir(name), "pb") {
			t.Errorf("%s: contracts lie in a folder that ends in pb", name)
		}
		for _, suffix := range suffixes {
			if !slices.Contains(files, base+suffix) {
				t.Errorf("%s: %s is not committed; make generate", name, path.Base(base)+suffix)
			}
		}
	}
	for _, s := range sources(t) {
		if !s.generated() || path.Base(s.name) == deepCopy {
			continue
		}
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(s.name, ".go"), ".validate"), ".pb"), "_grpc")
		if !slices.Contains(files, base+".proto") {
			t.Errorf("%s: generated, but there is no %s.proto beside it", s.name, path.Base(base))
		}
	}
}

// TestNothingNamesOneMachine keeps registries and the paths of somebody's
// machine out: the tools that fetch are configured by the user.
func TestNothingNamesOneMachine(t *testing.T) {
	// In parts, so that this file doesn't name them either.
	places := []string{
		"pypi" + ".org", "python" + "hosted.org", "proxy" + ".golang.org", "sum" + ".golang.org", "registry.npm" + "js",
		"crates" + ".io", "docker" + ".io", "quay" + ".io", "gcr" + ".io", "ghcr" + ".io", "hugging" + "face.co",
		"/" + "root/", "/" + "home/", "/" + "work/", "/" + "tmp/", "/" + "Users/", "/" + "opt/",
	}
	for _, name := range tracked(t) {
		text := read(t, name)
		if name == "LICENSE" || strings.ContainsRune(text, 0) {
			continue
		}
		n := 0
		for line := range strings.Lines(text) {
			n++
			for _, place := range places {
				if strings.Contains(line, place) {
					t.Errorf("%s:%d: names %s", name, n, place)
				}
			}
		}
	}
}

func TestReadme(t *testing.T) {
	text := read(t, "README.md")
	if n := lines(text); n > 150 {
		t.Errorf("README.md has %d lines; must be at most 150", n)
	}
	for _, want := range []string{"make run", "make test", "make clean", "manifests/", "exit code"} {
		if !strings.Contains(strings.ToLower(text), want) {
			t.Errorf("README.md says nothing of %q", want)
		}
	}
	links := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, m := range links.FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Errorf("README.md links to %s, which isn't there", m[1])
		}
	}
}

// TestE2EReadmeNamesEveryFolder holds that who opens e2e finds what each folder is for.
func TestE2EReadmeNamesEveryFolder(t *testing.T) {
	text := read(t, "e2e/README.md")
	for _, s := range sources(t) {
		rest, ok := strings.CutPrefix(s.dir()+"/", "e2e/")
		name, _, _ := strings.Cut(rest, "/")
		if ok && name != "" && !strings.Contains(text, "`"+name+"`") {
			t.Errorf("e2e/README.md says nothing of `%s`", name)
		}
	}
}

var target = regexp.MustCompile(`(?m)^([A-Za-z0-9+-]+):([^=\n].*)?$`)

func TestEveryTargetIsInHelp(t *testing.T) {
	found := map[string]bool{}
	for _, m := range target.FindAllStringSubmatch(read(t, "Makefile"), -1) {
		name, rest := m[1], m[2]
		found[name] = true
		if !strings.HasPrefix(name, "need-") && !strings.Contains(rest, "## ") {
			t.Errorf("make %s: has no `## what it does` for make help", name)
		}
	}
	for _, name := range []string{"help", "run", "setup", "test", "test-unit", "test-e2e", "test-short", "bench", "lint", "generate", "build", "clean"} {
		if !found[name] {
			t.Errorf("make %s: missing", name)
		}
	}
}

func TestCIDoesWhatTheReadmeSays(t *testing.T) {
	st, err := os.Stat(filepath.Join(root, ".ci", "run"))
	if err != nil || st.Mode().Perm()&0o111 == 0 {
		t.Fatalf(".ci/run: must be executable: %v", err)
	}
	for _, line := range []string{"phase make setup", "start lint", "phase make test-unit", "phase make test-e2e", "finish lint"} {
		if !strings.Contains(read(t, ".ci/run"), "\n"+line+"\n") {
			t.Errorf(".ci/run has no line %q", line)
		}
	}
}

// TestCIFailsWithEachPhase runs .ci/run with a make that fails at one target.
func TestCIFailsWithEachPhase(t *testing.T) {
	script, err := filepath.Abs(filepath.Join(root, ".ci", "run"))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"none", "setup", "lint", "test-unit", "test-e2e", "images", "kube-programs"} {
		t.Run(target, func(t *testing.T) {
			bin := t.TempDir()
			for _, tool := range []string{"git", "go", "g++", "python3", "curl", "make"} {
				text := "#!/bin/sh\n[ \"$1\" != " + target + " ]\n"
				if err := os.WriteFile(filepath.Join(bin, tool), []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("bash", script)
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if failed := err != nil; failed != (target != "none") || failed == strings.Contains(string(out), "all ok") {
				t.Errorf("make %s fails: .ci/run ends with %v\n%s", target, err, out)
			}
		})
	}
}
