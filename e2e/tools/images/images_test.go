package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// stage is what a stage of the Dockerfile makes.
type stage struct {
	layers     []string
	env        []string
	user       string
	entrypoint string
}

func TestDockerfileHasTheSameImages(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "manifests", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*stage{}
	var s *stage
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch {
		case words[0] == "FROM":
			s = &stage{}
			if words[1] == "scratch" {
				got[words[3]] = s
			}
		case words[0] == "COPY" && words[1] == "--from=build":
			name, ok := strings.CutPrefix(words[2], "/images/layers/")
			if !ok || words[3] != "/" {
				t.Errorf("%q: not a layer onto /", line)
			}
			s.layers = append(s.layers, strings.TrimSuffix(name, "/"))
		case words[0] == "ENV":
			s.env = words[1:]
		case words[0] == "USER":
			s.user = words[1]
		case words[0] == "ENTRYPOINT":
			s.entrypoint = words[1]
		}
	}
	want := map[string]*stage{}
	for _, i := range images() {
		want[i.Name] = &stage{layers: append(slices.Clone(i.Layers), "sbom-"+i.Name), env: i.env(), user: user, entrypoint: `["/usr/bin/` + i.Program + `"]`}
	}
	for name := range want {
		if got[name] == nil || !reflect.DeepEqual(got[name], want[name]) {
			t.Errorf("stage %s is %+v, want %+v", name, got[name], want[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d stages from scratch, want %d", len(got), len(want))
	}
}

func TestLockHasThePackages(t *testing.T) {
	a, err := newArchive(t.TempDir(), "debian.lock")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, names := range packages() {
		for _, name := range names {
			if _, ok := a.lock[name]; !ok {
				t.Errorf("debian.lock has no %s", name)
			}
			n++
		}
	}
	if n != len(a.lock) {
		t.Errorf("debian.lock has %d packages, want %d", len(a.lock), n)
	}
}

func TestParseLock(t *testing.T) {
	sum := strings.Repeat("0", 64)
	tests := []struct {
		name, text, want string
	}{
		{name: "empty", text: "# a comment\n\n"},
		{name: "a package", text: "libc6 2.36 " + sum + "\n"},
		{name: "no hash", text: "\nlibc6 2.36\n", want: "debian.lock:2: "},
		{name: "a short hash", text: "libc6 2.36 00\n", want: "debian.lock:1: "},
		{name: "twice", text: "libc6 2.36 " + sum + "\nlibc6 2.37 " + sum + "\n", want: "debian.lock:2: libc6: twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseLock(tt.text)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseLock() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestTaken(t *testing.T) {
	tests := []struct {
		pkg, name, want string // want "": it is left out
	}{
		{"libc6", "lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"},
		{"libc6", "lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"},
		{"libc6", "usr/lib/x86_64-linux-gnu/gconv/BIG5.so", ""},
		{"libc6", "usr/share/doc/libc6/copyright", "usr/share/licenses/debian/libc6/copyright"},
		{"libc6", "usr/share/doc/libc6/changelog.gz", ""},
		{"ca-certificates", "usr/sbin/update-ca-certificates", ""},
		{"base-files", "etc/os-release", "etc/os-release"},
		{"dash", "usr/bin/dash", ""},
		{"dash", "bin/sh", ""},
		{"python3-minimal", "usr/bin/python3", "usr/bin/python3"},
		{"python3-minimal", "usr/bin/py3compile", ""},
		{"libpython3.11-stdlib", "usr/lib/python3.11/ctypes/util.py", "usr/lib/python3.11/ctypes/util.py"},
		{"libpython3.11-stdlib", "usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so", "usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so"},
		{"libpython3.11-stdlib", "usr/lib/python3.11/lib-dynload/_ctypes_test.cpython-311-x86_64-linux-gnu.so", ""},
		{"libpython3.11-stdlib", "usr/lib/python3.11/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so", ""},
	}
	for _, tt := range tests {
		if got, ok := taken(tt.pkg, tt.name); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("taken(%s, %s) = %q, %v; want %q", tt.pkg, tt.name, got, ok, tt.want)
		}
	}
}

// sample is a tree with a file of each kind.
func sample(t *testing.T, content string) tree {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	s := tree{}
	s.program("usr/bin/x", name)
	s.text("etc/passwd", "root\n")
	s.link("lib", "usr/lib")
	s["tmp"] = file{Mode: fs.ModeDir | fs.ModeSticky | 0o777}
	s.text("usr/share/licenses/"+strings.Repeat("deep/", 30)+"LICENSE", "free\n")
	return s
}

func TestTarHasNothingOfThisMachine(t *testing.T) {
	var one, two bytes.Buffer
	if err := sample(t, "ELF").write(&one); err != nil {
		t.Fatal(err)
	}
	if err := sample(t, "ELF").write(&two); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same tree of other files is another tar")
	}
	modes := map[string]int64{}
	var names []string
	in := tar.NewReader(&one)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || !h.ModTime.Equal(epoch) {
			t.Errorf("%s: of %d:%d %q:%q at %v", h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime)
		}
		modes[strings.TrimSuffix(h.Name, "/")] = h.Mode
		names = append(names, h.Name)
	}
	for name, want := range map[string]int64{"usr": 0o755, "usr/bin": 0o755, "usr/bin/x": 0o755, "tmp": 0o1777, "etc/passwd": 0o644} {
		if modes[name] != want {
			t.Errorf("%s has mode %o, want %o", name, modes[name], want)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("not sorted: %q", names)
	}
}

func TestTreeSumSeesEverything(t *testing.T) {
	base, err := sample(t, "ELF").sum()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(tree){
		"content": func(s tree) { s.text("etc/passwd", "toor\n") },
		"mode":    func(s tree) { s["etc/passwd"] = file{Mode: 0o600, Data: []byte("root\n")} },
		"link":    func(s tree) { s.link("lib", "usr/lib64") },
		"name":    func(s tree) { s["etc/password"] = s["etc/passwd"]; delete(s, "etc/passwd") },
		"more":    func(s tree) { s.text("etc/group", "") },
		"program": func(s tree) { s["usr/bin/x"] = sample(t, "elf")["usr/bin/x"] },
	} {
		s := sample(t, "ELF")
		change(s)
		if sum, err := s.sum(); err != nil || sum == base {
			t.Errorf("another %s has the same sum, %v", name, err)
		}
	}
	if sum, err := sample(t, "ELF").sum(); err != nil || sum != base {
		t.Errorf("the same tree has sums %s and %s, %v", base, sum, err)
	}
}

func TestMergeRefusesTwo(t *testing.T) {
	s := sample(t, "ELF")
	if err := s.merge(tree{"etc/passwd": {}}); err == nil || !strings.Contains(err.Error(), "etc/passwd: in two trees") {
		t.Errorf("merge() = %v", err)
	}
}

func TestUnresolved(t *testing.T) {
	libc := &object{name: "lib/libc.so.6", soname: "libc.so.6", offers: map[string]bool{"GLIBC_2.36": true}}
	tests := []struct {
		name  string
		needs map[string][]string
		want  string
	}{
		{name: "all there", needs: map[string][]string{"libc.so.6": {"GLIBC_2.36"}}},
		{name: "no version asked for", needs: map[string][]string{"libc.so.6": nil}},
		{name: "a library is missing", needs: map[string][]string{"libssl.so.3": nil}, want: "/bin/x needs libssl.so.3, which the image lacks"},
		{name: "a newer C library", needs: map[string][]string{"libc.so.6": {"GLIBC_2.38"}}, want: "/bin/x needs GLIBC_2.38 of libc.so.6"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := unresolved([]*object{libc, {name: "bin/x", soname: "x", needs: tt.needs}})
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("unresolved() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBill(t *testing.T) {
	components := []component{
		{Kind: "golang", Name: "github.com/a/b", Version: "v1.0.0"},
		{Kind: "deb", Name: "libstdc++6", Version: "1:2.3+deb12u1~x", SHA256: "ab"},
		{Kind: "golang", Name: "github.com/a/b", Version: "v1.0.0"},
	}
	b, err := billOf("x", "sum", components)
	if err != nil {
		t.Fatal(err)
	}
	var doc spdx
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	var purls []string
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		if ids[p.ID] || notID.MatchString(p.ID) {
			t.Errorf("id %q is taken or wrong", p.ID)
		}
		ids[p.ID] = true
		for _, r := range p.Refs {
			purls = append(purls, r.Locator)
		}
	}
	want := []string{"pkg:deb/debian/libstdc++6@1%3A2.3%2Bdeb12u1~x?distro=debian-12", "pkg:golang/github.com/a/b@v1.0.0"}
	if !slices.Equal(purls, want) {
		t.Errorf("packages %q, want %q", purls, want)
	}
	for _, r := range doc.Relationships[1:] {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%s %s %s: between things that aren't there", r.From, r.Type, r.To)
		}
	}
	if again, err := billOf("x", "sum", []component{components[1], components[0]}); err != nil || !bytes.Equal(b, again) {
		t.Errorf("another order is another bill, %v", err)
	}
}

func TestSavedImage(t *testing.T) {
	dir := t.TempDir()
	build := func() string {
		b, err := store{filepath.Join(dir, "layers")}.blob(sample(t, "ELF"))
		if err != nil {
			t.Fatal(err)
		}
		img, err := image{Name: "x", Layers: []string{"x"}, Program: "x", Env: []string{"A=b"}}.assemble([]*blob{b})
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "x.tar")
		if err := save(img, "millrace.dev/x", "1", name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	name := build()
	img, err := tarball.ImageFromPath(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Config.User != user || !slices.Equal(c.Config.Entrypoint, []string{"/usr/bin/x"}) || !slices.Equal(c.Config.Env, []string{"PATH=/usr/bin", "A=b"}) {
		t.Errorf("config %+v", c.Config)
	}
	first, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.Stat(build()); err != nil || !os.SameFile(first, second) {
		t.Errorf("the same image was written again, %v", err)
	}
	// A file that was cut off isn't what its index says.
	if err := os.Truncate(name, first.Size()/2); err != nil {
		t.Fatal(err)
	}
	if third, err := os.Stat(build()); err != nil || third.Size() != first.Size() {
		t.Errorf("%d bytes, want %d, %v", third.Size(), first.Size(), err)
	}
}
