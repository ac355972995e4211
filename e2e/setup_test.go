package e2e

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// Exit codes, as documented.
const (
	exitUsage  = 2
	exitConfig = 3
	exitSetup  = 4
	exitInUse  = 5
)

// TestBadSetUp starts meshes that can't work. Each must end by itself with one
// clear line, the way out and the documented exit code.
func TestBadSetUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	tmp := t.TempDir()
	file := rig.Write(t, filepath.Join(tmp, "file"), "not a folder")
	bad := rig.Write(t, filepath.Join(tmp, "bad.yaml"), `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec:
  backend: {slots: 0, kind: abacus}
  colour: red
`)
	tests := []struct {
		name string
		args []string
		env  []string
		code int
		want []string // parts of stderr
	}{
		{"port in use", []string{"-listen", ln.Addr().String()}, nil, exitInUse, []string{ln.Addr().String(), "in use"}},
		{"cache is not writable", []string{"-cache", filepath.Join(file, "cache")}, nil, exitSetup, []string{file, "-cache"}},
		{"missing model", []string{"-model", filepath.Join(tmp, "none.gguf")}, nil, exitSetup, []string{"none.gguf"}},
		{"model that was cut", []string{"-model", cutModel(t)}, nil, exitSetup, []string{"cut.gguf", "the file is cut off", "-model"}},
		{"weights that were cut", []string{"-config", rig.Write(t, filepath.Join(tmp, "cut.yaml"), strings.Replace(modelOf, "PATH", cutModel(t), 1))},
			nil, exitConfig, []string{"model smollm2: weights: ", "the file is cut off", "spec.weights"}},
		{"Envoy that is none", []string{"-envoy", "/bin/true"}, nil, exitSetup, []string{"/bin/true: not an Envoy", "-envoy"}},
		{"hash mismatch", []string{"-cache", alteredCache(t)}, nil, exitSetup, []string{".gguf", "sha256", "remove"}},
		{"no python", nil, []string{"PATH=" + tmp}, exitSetup, []string{"python3", "install"}},
		{"bad YAML", []string{"-config", bad}, nil, exitConfig, []string{"bad.yaml:5: spec.backend.slots: 0", "spec.backend.kind", "bad.yaml:6: spec.colour"}},
		{"missing config", []string{"-config", filepath.Join(tmp, "none.yaml")}, nil, exitConfig, []string{"none.yaml"}},
		{"unknown flag", []string{"-colour", "red"}, nil, exitUsage, []string{"-colour"}},
		{"no nodes", []string{"-nodes", "0"}, nil, exitUsage, []string{"nodes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"up", "-listen", "127.0.0.1:0", "-dir", t.TempDir(), "-cache", rig.Cache()}, tt.args...)
			got := rig.MillraceEnv(t, tt.env, "", args...)
			if got.Code != tt.code {
				t.Errorf("exit code = %d, want %d", got.Code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(strings.ToLower(got.Stderr), strings.ToLower(want)) {
					t.Errorf("stderr has no %q", want)
				}
			}
			checkClear(t, tt.code, got)
		})
	}
	if left := rig.Marked("command"); len(left) > 0 {
		t.Errorf("processes are left: %v", rig.Describe(left))
	}
}

// checkClear wants an error and the way out, each on lines of its own, and no
// stack of a panic.
func checkClear(t *testing.T, code int, got rig.Result) {
	t.Helper()
	t.Logf("%s", got.Stderr)
	if !strings.Contains(got.Stderr, "millrace: ") {
		t.Error("no line `millrace: what: cause`")
	}
	if code != exitUsage && !strings.Contains(got.Stderr, "millrace: hint: ") {
		t.Error("no line `millrace: hint: way out`")
	}
	if strings.Contains(got.Stderr, "goroutine ") {
		t.Error("it panicked")
	}
}

const modelOf = `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {weights: PATH}
`

// cutModel returns a copy of the model that lacks its last byte.
func cutModel(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(rig.Cache(), "models", "SmolLM2-135M-Instruct.Q4_1.gguf"))
	if err != nil {
		t.Fatalf("%v; run `make setup` first", err)
	}
	return rig.Write(t, filepath.Join(t.TempDir(), "cut.gguf"), string(b[:len(b)-1]))
}

// alteredCache returns a cache like the real one, but for one byte of the model.
func alteredCache(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(rig.Cache())
	if err != nil {
		t.Fatalf("%v; run `make setup` first", err)
	}
	for _, e := range entries {
		from, to := filepath.Join(rig.Cache(), e.Name()), filepath.Join(dir, e.Name())
		switch {
		case e.Name() == "models":
			err = copyTree(from, to)
		case e.Name() == ".stamps":
			err = os.CopyFS(to, os.DirFS(from))
		case e.IsDir() && !strings.HasPrefix(e.Name(), "."):
			err = os.Symlink(from, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// copyTree copies a folder of models and changes one byte of each.
func copyTree(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte{0xff}, 1<<20)
		return err
	})
}
