package setup

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakePython speaks the command lines that set-up uses of python3: the probe and
// pip download. @VAR@ are filled in by world.
const fakePython = `#!/bin/sh
PATH=/usr/bin:/bin
if [ "$1" = -c ]; then
	case "$2" in
	*pip*) echo "@PIP@"; [ "@PIP@" ] ;;
	*) echo '{"path": "@DIR@/bin/python3", "version": "@VERSION@", "libc": "@LIBC@"}' ;;
	esac
	exit $?
fi
echo "$@" >>@DIR@/calls
@BEHAVE@
[ "$1 $2 $3" = "-m pip download" ] || exit 64
src=
while [ $# -gt 0 ]; do
	case "$1" in
	--requirement) req=$2 ;;
	--dest) dest=$2 ;;
	--no-binary=*) src=.src ;;
	esac
	shift
done
read -r spec hash <"$req"
file=@DIR@/index/${spec%%==*}$src
got=$(sha256sum "$file" | cut -d' ' -f1)
if [ "--hash=sha256:$got" != "$hash" ]; then
	echo "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
	echo "        Expected sha256 ${hash#--hash=sha256:}"
	echo "             Got        $got"
	exit 1
fi
cp "$file" "$dest/"
`

const fakeCompiler = `#!/bin/sh
PATH=/usr/bin:/bin
[ "$1" = --version ] && { echo "fake g++ 1.0"; exit 0; }
@BEHAVE@
while [ "$1" != -o ]; do shift; done
cat src/ggml-rpc/ggml-rpc.cpp >"$2"
`

// world is a machine with a fake python3 and g++, a package index and a cache.
type world struct {
	t     *testing.T
	dir   string
	cache string
	parts []part
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	w.cache = filepath.Join(w.dir, "cache")
	t.Setenv("PATH", filepath.Join(w.dir, "bin"))
	t.Setenv("CXX", "")
	w.python(nil)
	w.compiler("")
	gate := w.publish("gate", false, map[string]string{"gate/bin/gate": "#!gate", "gate/other": "not wanted"})
	gate.Take = []rule{{"gate/bin/gate", "gate"}}
	wheel := w.publish("llama", false, map[string]string{"llama/__init__.py": "import", "llama/llama.so": "ELF"})
	wheel.Take = []rule{{"llama/*", "llama/"}}
	source := w.publish("llama", true, map[string]string{"llama-1/ggml-rpc.cpp": "int rpc;", "llama-1/test.cpp": ""})
	source.Take = []rule{{"llama-1/ggml-rpc.cpp", "src/src/ggml-rpc/"}}
	w.parts = []part{
		{Name: "Gate 1", Folder: "gate-1", Archives: []archive{gate}, Sums: map[string]string{"gate": sum("#!gate")}},
		{Name: "Llama 1", Folder: "llama-1", Archives: []archive{wheel, source}, Plugin: true},
	}
	return w
}

// python writes the fake python3, with other answers than usual.
func (w *world) python(set map[string]string) {
	script := fakePython
	for name, usual := range map[string]string{"VERSION": "3.11.2", "PIP": "23.0.1", "LIBC": "glibc", "BEHAVE": ""} {
		if v, ok := set[name]; ok {
			usual = v
		}
		script = strings.ReplaceAll(script, "@"+name+"@", usual)
	}
	w.write("bin/python3", strings.ReplaceAll(script, "@DIR@", w.dir))
}

// compiler writes the fake g++, which runs the line behave before it compiles.
func (w *world) compiler(behave string) {
	w.write("bin/g++", strings.ReplaceAll(fakeCompiler, "@BEHAVE@", behave))
}

func (w *world) write(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := os.RemoveAll(filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

// publish puts an archive with the files into the index.
func (w *world) publish(project string, source bool, files map[string]string) archive {
	w.t.Helper()
	pack, name := zipped, "index/"+project
	if source {
		pack, name = tarred, name+".src"
	}
	b := pack(w.t, files)
	w.write(name, string(b))
	return archive{Project: project, Version: "1", Source: source, SHA256: sum(string(b)), Size: int64(len(b))}
}

func zipped(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		f, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarred(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	z := tar.NewWriter(g)
	for name, text := range files {
		if err := z.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(z, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (w *world) ensure() error {
	return ensure(w.t.Context(), w.cache, w.parts, io.Discard)
}

// downloads is how often pip was asked.
func (w *world) downloads() int {
	b, err := os.ReadFile(filepath.Join(w.dir, "calls"))
	if err != nil {
		return 0
	}
	return strings.Count(string(b), "\n")
}

// read returns a file of the cache.
func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.cache, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
