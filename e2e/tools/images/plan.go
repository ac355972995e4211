package main

import (
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// user runs every image: nobody's, and not root.
const user = "65532:65532"

// Where things lie in the images.
const (
	binaries     = "usr/bin/"
	licences     = "usr/share/licenses/"
	documents    = "usr/share/doc/millrace/"
	bill         = documents + "sbom.spdx.json"
	runtimePlace = "usr/lib/millrace/llamacpp/"
	modelPlace   = "usr/share/millrace/smollm2.gguf"
)

// image is an image to build.
type image struct {
	Name string
	// Layers are the names of its layers, the lowest first, those of others before its own.
	Layers []string
	// Program is what it runs, in binaries.
	Program string
	// Env are variables besides PATH.
	Env []string
}

// env are all variables.
func (i image) env() []string { return append([]string{"PATH=/usr/bin"}, i.Env...) }

// images are all there are, by name. A layer that several have is stored and loaded
// once. manifests/Dockerfile says the same; a test compares them.
func images() []image {
	return []image{
		{Name: "xds", Layers: []string{"base", "xds"}, Program: "xds"},
		{Name: "extproc", Layers: []string{"base", "extproc"}, Program: "extproc"},
		{Name: "millrace", Layers: []string{"base", "millrace"}, Program: "millrace"},
		{Name: "models", Layers: []string{"base", "millrace", "models"}, Program: "millrace",
			Env: []string{"MILLRACE_MODEL=/" + modelPlace}},
		{Name: "nodeagent", Layers: []string{"base", "glibc", "nodeagent"}, Program: "nodeagent"},
		{Name: "envoy", Layers: []string{"base", "glibc", "envoy"}, Program: "envoy"},
		{Name: "engine", Layers: []string{"base", "glibc", "python", "llamacpp", "engine"}, Program: "engine",
			Env: []string{"MILLRACE_RUNTIME=/" + strings.TrimSuffix(runtimePlace, "/"), "PYTHONDONTWRITEBYTECODE=1"}},
	}
}

// program is one of ours, and whether it needs a C library.
type program struct {
	name, folder string
	cgo          bool
}

// programs are ours. The nodeagent loads the driver's NVML, which is C.
func programs() []program {
	return []program{
		{name: "millrace", folder: "."},
		{name: "xds", folder: "./xds"},
		{name: "extproc", folder: "./extproc"},
		{name: "engine", folder: "./engine"},
		{name: "nodeagent", folder: "./nodeagent", cgo: true},
	}
}

// packages are Debian's, by the layer that has them.
func packages() map[string][]string {
	return map[string][]string{
		"base":  {"base-files", "ca-certificates"},
		"glibc": {"libc6", "gcc-12-base", "libgcc-s1", "libstdc++6"},
		"python": {"libexpat1", "libffi8", "libgomp1", "zlib1g",
			"libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "python3-minimal"},
	}
}

// takes are the patterns of what of Debian's packages goes into an image: no shell, no
// script, no document but the licence.
var takes = []*regexp.Regexp{
	regexp.MustCompile(`^(etc|usr/lib)/os-release$`),
	regexp.MustCompile(`^usr/share/common-licenses/`),
	regexp.MustCompile(`^usr/share/ca-certificates/mozilla/`),
	regexp.MustCompile(`^(usr/)?lib(64|/x86_64-linux-gnu)/[^/]+\.so[^/]*$`),
	regexp.MustCompile(`^usr/bin/python3(\.11)?$`),
	regexp.MustCompile(`^(etc|usr/lib)/python3\.11/.*\.(py|so)$`),
}

// left is what of that is left out: parts of Python that need libraries which nobody here
// uses, and its tests.
var left = regexp.MustCompile(`/lib-dynload/(_bz2|_crypt|_curses|_curses_panel|_dbm|_hashlib|_lzma|_sqlite3|_ssl|_uuid|nis|readline|_?xx[a-z0-9_]*|_ctypes_test|_test[a-z]*)\.cpython`)

// taken says whether the file of a Debian package goes into an image, and where to.
func taken(pkg, name string) (string, bool) {
	switch {
	case name == "usr/share/doc/"+pkg+"/copyright":
		return licences + "debian/" + pkg + "/copyright", true
	case left.MatchString(name):
		return "", false
	case strings.HasPrefix(name, "lib"):
		// One place for libraries, to which base has links.
		return "usr/" + name, matchesAny(takes, name)
	}
	return name, matchesAny(takes, name)
}

func matchesAny(patterns []*regexp.Regexp, name string) bool {
	return slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(name) })
}

// base are the files of every image that are in no package: who runs it, how names
// are found, where it may write if somebody mounts something there.
func base() tree {
	t := tree{}
	t.text("etc/passwd", "root:x:0:0:root:/:/usr/sbin/nologin\nmillrace:x:65532:65532:millrace:/:/usr/sbin/nologin\n")
	t.text("etc/group", "root:x:0:\nmillrace:x:65532:\n")
	t.text("etc/nsswitch.conf", "hosts: files dns\n")
	t["tmp"] = file{Mode: fs.ModeDir | fs.ModeSticky | 0o777}
	t.link("lib", "usr/lib")
	t.link("lib64", "usr/lib64")
	t["usr/lib64"] = file{Mode: fs.ModeDir | 0o755}
	return t
}
